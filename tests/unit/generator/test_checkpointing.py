from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_action.generator.causality import BlockCausality, bidirectional
from lightning_action.generator.checkpointing import Checkpointing
from lightning_action.generator.cost import activation_bytes, training_flops
from tests.support.small_generator import small_generator, small_inputs


class Attentions(TorchDispatchMode):
    """Counts forward calls of attention, and the bytes that they give."""

    count = num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if "_scaled_dot_product" in str(func) and "backward" not in str(func):
            self.count += 1
            self.num_bytes += sum(x.numel() * x.element_size() for x in tree_leaves(given) if isinstance(x, Tensor))
        return given


def step(checkpointing: Checkpointing) -> tuple[dict[str, Tensor | None], int]:
    generator = small_generator(activation_checkpointing=checkpointing, flex_on_cuda=False)
    x, causality = small_inputs(4, height=8, width=8), BlockCausality(2)
    with Attentions() as attentions:
        velocity = generator.teacher_forcing(
            x["clean"], x["noisy"], x["timestep"], x["text"], causality, x["modulation"]
        )
        velocity.square().mean().backward()
    return {name: parameter.grad for name, parameter in generator.named_parameters()}, attentions.count


def test_no_gradient_changes_and_attention_is_not_repeated_where_it_is_kept() -> None:
    (plain, once), (all_again, twice), (kept, kept_once) = (step(way) for way in (False, True, "keep_attention"))
    # Two layers, each with four blocks of self-attention, clean and noisy, and with cross-attention.
    assert (once, twice, kept_once) == (2 * 5, 2 * 2 * 5, 2 * 5)
    for name, gradient in plain.items():
        assert gradient is not None and gradient.abs().max() > 0
        assert torch.equal(all_again[name], gradient) and torch.equal(kept[name], gradient), name  # type: ignore[arg-type]


def test_memory_and_operations_are_counted() -> None:
    ways: tuple[Checkpointing, ...] = (False, True, "keep_attention")
    generators = [small_generator(activation_checkpointing=way, flex_on_cuda=False) for way in ways]
    x = small_inputs(3, batch_size=1)
    with Attentions() as attentions:
        generators[0](x["noisy"], x["timestep"], x["text"])
    _, all_again, kept = (activation_bytes(generator, 18, torch.float32) for generator in generators)
    assert kept - all_again == attentions.num_bytes
    flops = [training_flops(generator, bidirectional(3), 6) for generator in generators]
    assert [each.linear / flops[0].linear for each in flops] == [1, 4 / 3, 4 / 3]
    assert [each.attention / flops[0].attention for each in flops] == [1, 4 / 3, 1]


def test_what_flex_attention_gives_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match="set flex_on_cuda: false"):
        small_generator(activation_checkpointing="keep_attention")

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_action.checkpoints.lora import LoRASettings, inject_lora
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.checkpointing import Checkpointing
from lightning_action.generator.estimates import activation_bytes
from tests.support.attentions import Attentions
from tests.support.small_generator import fill, small_generator, small_inputs


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


@pytest.mark.parametrize("checkpointing", [True, "keep_attention"])
def test_dropout_of_lora_is_the_same_when_it_is_computed_again(checkpointing: Checkpointing) -> None:
    gradients = []
    for way in (False, checkpointing):
        generator = small_generator(activation_checkpointing=way, flex_on_cuda=False)
        inject_lora(generator, LoRASettings(rank=2, dropout=0.5))
        fill(generator)
        x = small_inputs(3)
        torch.manual_seed(5)
        generator.train()(x["noisy"], x["timestep"], x["text"]).square().mean().backward()
        gradients.append({name: p.grad for name, p in generator.named_parameters() if p.grad is not None})
    assert any("lora_A" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name  # type: ignore[arg-type]


def test_memory_is_counted() -> None:
    ways: tuple[Checkpointing, ...] = (False, True, "keep_attention")
    generators = [small_generator(activation_checkpointing=way, flex_on_cuda=False) for way in ways]
    x = small_inputs(3, batch_size=1)
    with Attentions() as attentions:
        generators[0](x["noisy"], x["timestep"], x["text"])
    _, all_again, kept = (activation_bytes(generator, 18, torch.float32) for generator in generators)
    assert kept - all_again == attentions.num_bytes


def test_what_flex_attention_gives_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match="set flex_on_cuda: false"):
        small_generator(activation_checkpointing="keep_attention")

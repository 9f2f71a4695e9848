"""Formulas against what torch counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightning_action.checkpoints.lora import LoRASettings, inject_lora
from lightning_action.generator import attention
from lightning_action.generator.causality import (
    BlockCausality,
    Visibility,
    bidirectional,
    block_causal,
    teacher_forcing,
)
from lightning_action.generator.estimates import (
    activation_bytes,
    context_cache_bytes,
    context_flops,
    count,
    kv_cache_bytes,
    parameters_by_part,
    training_flops,
    video_flops,
)
from lightning_action.generator.image import ImageCondition
from lightning_action.generator.kv_cache import KVCache
from lightning_action.generator.model import CausalWanModel
from tests.support.small_generator import small_generator, small_inputs

PUBLISHED = {
    "1.3B": {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
    "14B": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
    "5B": {"dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30, "in_dim": 48, "out_dim": 48},
}


def on_meta(size: str, **changes: object) -> CausalWanModel:
    with torch.device("meta"):
        return CausalWanModel(**{**PUBLISHED[size], **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "block", "seen", "tokens", "teraflops"),
    [
        ("1.3B", 3, 12, 1560, 28.3),
        ("1.3B", 3, 21, 1560, 40.4),
        ("14B", 3, 6, 1560, 150),
        ("14B", 3, 21, 1560, 239),
        ("5B", 8, 32, 880, 136),
    ],
)
def test_published_figures(size: str, block: int, seen: int, tokens: int, teraflops: float) -> None:
    """TFLOP of one forward pass of a block, as worked out for the released models."""
    flops = video_flops(on_meta(size), (Visibility(range(seen - block, seen), (range(seen),)),), tokens)
    assert flops.total / 1e12 == pytest.approx(teraflops, rel=5e-3)
    if (size, seen) == ("1.3B", 12):
        assert (flops.linear / 1e12, flops.attention / 1e12) == pytest.approx((11.7, 16.6), rel=5e-3)


def counted(generator: CausalWanModel, mode: str) -> float:
    x = {name: tensor.to("meta") for name, tensor in small_inputs(6, batch_size=1).items()}
    image = ImageCondition()
    if generator.img_emb is not None:
        image = ImageCondition(torch.empty(1, 6, 4, 4, 3, device="meta"), torch.empty(1, 257, 10, device="meta"))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if mode == "bidirectional":
            generator(x["noisy"], x["timestep"], x["text"], None, image)
        elif mode == "block_causal":
            generator.block_causal(x["noisy"], x["timestep"], x["text"], BlockCausality(2, 5, 1), None, image)
        else:
            causality = BlockCausality(2, 5, 1)
            generator.teacher_forcing(x["clean"], x["noisy"], x["timestep"], x["text"], causality, None, image)
    return counter.get_total_flops()


@pytest.mark.parametrize("sees_image", [False, True])
@pytest.mark.parametrize("mode", ["bidirectional", "block_causal", "teacher_forcing"])
def test_flops_are_those_that_torch_counts(mode: str, sees_image: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Block by block: what a mask hides is not computed.
    monkeypatch.setattr(attention, "_SMALL_BLOCK", 0)
    changes: dict[str, object] = {"in_dim": 9, "image_dim": 10} if sees_image else {}
    generator = small_generator(**changes).to("meta")
    visibility = {
        "bidirectional": bidirectional(6),
        "block_causal": block_causal(6, BlockCausality(2, 5, 1)),
        "teacher_forcing": teacher_forcing(6, BlockCausality(2, 5, 1)),
    }[mode]
    expected = video_flops(generator, visibility, 6).total + context_flops(generator).total
    # The clean frames of teacher forcing go through the layers only.
    without_head = 6 * 6 if mode == "teacher_forcing" else 0
    assert counted(generator, mode) == expected - 2 * without_head * generator.head.head.weight.numel()


def train(generator: CausalWanModel, parts: str) -> None:
    """Freeze all but some parts, by their names; `lora` adds LoRA layers and trains them alone."""
    for name, parameter in generator.named_parameters():
        parameter.requires_grad = parts == "all" or name.startswith(parts)
    if parts == "lora":
        inject_lora(generator, LoRASettings(rank=3))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("sees_image", [False, True])
@pytest.mark.parametrize("acts", [True, False])
@pytest.mark.parametrize("parts", ["all", "none", "blocks", "blocks.1.ffn", "text_embedding", "head", "lora"])
def test_flops_of_training_are_those_that_torch_counts(
    parts: str, acts: bool, sees_image: bool, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_SMALL_BLOCK", 0)
    changes: dict[str, object] = {"in_dim": 9, "image_dim": 10} if sees_image else {}
    generator = small_generator(activation_checkpointing=checkpointing, **changes).to("meta")
    train(generator, parts)
    x = {name: tensor.to("meta") for name, tensor in small_inputs(6, batch_size=1).items()}
    modulation = x["modulation"].requires_grad_() if acts else None
    image = ImageCondition()
    if sees_image:
        image = ImageCondition(torch.empty(1, 6, 4, 4, 3, device="meta"), torch.empty(1, 257, 10, device="meta"))
    with FlopCounterMode(display=False) as counter:
        causality = BlockCausality(2, 5, 1)
        loss = generator.block_causal(x["noisy"], x["timestep"], x["text"], causality, modulation, image).sum()
        if loss.requires_grad:
            loss.backward()
    expected = training_flops(generator, block_causal(6, causality), 6, acts).total
    if acts or parts in ("all", "none", "blocks", "head"):
        assert counter.get_total_flops() == expected
    else:  # in the first layer that trains
        forward = video_flops(generator, block_causal(6, causality), 6).total
        assert counter.get_total_flops() < expected < counter.get_total_flops() + forward


def test_attention_that_is_kept_is_not_computed_again() -> None:
    """By hand, since the counter does not see through a fused kernel, and no other attention can be kept."""
    x = small_inputs(6, batch_size=1)
    generators = [
        small_generator(activation_checkpointing=way, flex_on_cuda=False) for way in (False, True, "keep_attention")
    ]
    plain, again, kept = (training_flops(generator, bidirectional(6), 6) for generator in generators)
    assert again.linear == kept.linear and kept.attention == plain.attention
    assert again.attention == plain.attention * 4 / 3
    with FlopCounterMode(display=False) as counter:
        generators[2](x["noisy"], x["timestep"], x["text"]).sum().backward()
    assert counter.get_total_flops() == kept.linear


def test_flops_of_a_block_under_the_cache_of_the_14b_model() -> None:
    generator = on_meta("14B").to(torch.bfloat16)
    cache = KVCache(40, 1, 40, 128, 1560, 21, BlockCausality(3, 6), "meta", torch.bfloat16)
    cache.position = 3
    with FlopCounterMode(display=False) as counter:
        text = generator.text_cache(torch.empty(1, 512, 4096, device="meta", dtype=torch.bfloat16))
    assert counter.get_total_flops() == context_flops(generator).total
    latents = torch.empty(1, 3, 16, 60, 104, device="meta", dtype=torch.bfloat16)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        generator.denoise(latents, torch.empty(1, 3, device="meta"), text, cache)
    expected = video_flops(generator, (Visibility(range(3, 6), (range(6),)),), 1560).total
    assert counter.get_total_flops() == expected


def test_every_parameter_is_in_one_part() -> None:
    generator = small_generator(in_dim=9, image_dim=10)
    generator.blocks.requires_grad_(False)
    parts = parameters_by_part(generator)
    assert sum(part.total for part in parts.values()) == sum(p.numel() for p in generator.parameters())
    assert parts["feed_forward"].trainable == 0 and parts["head"].frozen == 0
    assert parts["head"].trainable == 36 * 10 + 10 + 2 * 36
    assert parts["self_attention"] == count(p for b in generator.blocks for p in b.self_attn.parameters())  # type: ignore[union-attr]
    assert "image_embedding" not in parameters_by_part(small_generator())


def test_lora_layers_are_a_part_and_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_SMALL_BLOCK", 0)
    generator = small_generator()
    plain = parameters_by_part(generator)
    inject_lora(generator, LoRASettings(rank=3))
    parts = parameters_by_part(generator)
    assert parts.pop("lora").total > 0
    assert {part: numbers.total for part, numbers in parts.items()} == {p: n.total for p, n in plain.items()}
    generator.to("meta")
    expected = video_flops(generator, bidirectional(6), 6).total + context_flops(generator).total
    assert counted(generator, "bidirectional") == expected
    assert activation_bytes(generator, 6, torch.float32) > 0


def test_caches_of_the_released_models() -> None:
    """Bytes of a token, a latent frame at 480 x 832, a window, and the prompt of the 1.3B model in bfloat16."""
    generator = on_meta("1.3B")
    window = kv_cache_bytes(generator, BlockCausality(3, 12, 3), 99, 1560, torch.bfloat16)
    assert window == 12 * 1560 * 184_320 and window / 12 / 2**20 == pytest.approx(274, abs=0.5)
    assert kv_cache_bytes(generator, BlockCausality(3), 21, 1560, torch.bfloat16) == 21 * 1560 * 184_320
    assert context_cache_bytes(generator, torch.bfloat16) == 90 * 2**20
    cache = KVCache(2, 1, 3, 12, 6, 6, BlockCausality(2))
    small = small_generator()
    assert kv_cache_bytes(small, BlockCausality(2), 6, 6, torch.float32) == cache.num_bytes
    keys, values, _ = small.text_cache(torch.zeros(1, 7, 9)).layers[1][0]
    assert context_cache_bytes(small, torch.float32) == 2 * 4 * (keys.numel() + values.numel())


def bytes_kept_for_backward(generator: CausalWanModel, latents: Tensor, text: Tensor) -> int:
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is used twice
    weights = {parameter.untyped_storage().data_ptr() for parameter in generator.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        generator(latents, torch.rand(latents.shape[:2]), text).sum()
    return sum(kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_autograd_keeps(dtype: torch.dtype, checkpointing: bool) -> None:
    """Of seven layers more: what the ends of the network keep is left out of the formula."""
    latents, text = torch.randn(1, 4, 4, 16, 32, dtype=dtype), torch.randn(1, 3, 5, dtype=dtype)
    kept, expected = [], []
    for num_layers in (2, 9):
        generator = CausalWanModel(96, 200, 4, num_layers, 4, 4, freq_dim=8, text_dim=5, text_len=3)
        generator.activation_checkpointing = checkpointing
        kept.append(bytes_kept_for_backward(generator.to(dtype), latents, text))
        expected.append(activation_bytes(generator, 4 * 8 * 16, dtype))
    assert kept[1] - kept[0] == pytest.approx(expected[1] - expected[0], rel=0.03)

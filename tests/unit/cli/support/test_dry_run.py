"""What a dry run says about a small model, and about batches that do not fit it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_action.cli.support.dry_run import (
    ActionTime,
    Precision,
    action_times,
    blocks,
    flops,
    frozen_classes,
    geometry,
    memory,
    parameters_of,
    settings,
    shapes,
)
from lightning_action.frozen.umt5 import UMT5TextEncoder
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.estimates import Parameters, count
from lightning_action.generator.kv_cache import KVCache
from tests.support.small_generator import small_generator
from tests.support.small_module import batch_of, small_module

FLOAT32 = Precision(torch.float32, torch.float32, torch.float32)


def test_sizes_of_a_batch() -> None:
    sizes = geometry(small_module(), batch_of(), trains=True)
    assert (sizes.batch_size, sizes.num_latents, sizes.pixels) == (3, 4, (16, 24))
    assert (sizes.latent_shape, sizes.tokens_per_frame) == ((5, 2, 3), 3)


def test_sizes_of_a_batch_to_predict_from_follow_its_actions() -> None:
    start = batch_of(video=torch.zeros(3, 1, 3, 16, 24))
    assert geometry(small_module(), start, trains=False).num_latents == 4
    without_video = batch_of(video=..., frame_size=torch.tensor([[16, 24]] * 3))
    assert geometry(small_module(), without_video, trains=False).num_latents == 4


def test_shapes_are_those_that_the_networks_give() -> None:
    module = small_module()
    found = shapes(module, geometry(module, batch_of(), trains=True))
    assert found == {
        "video": [3, 13, 3, 16, 24],
        "latents": [3, 4, 5, 2, 3],
        "tokens": [3, 4, 3, 36],
        "text": [3, 7, 9],
        "time_modulation": [3, 4, 6, 36],
        "action_rows": [3, 12, 3],
        "action_vectors": [3, 4, 12],
        "action_modulation": [3, 4, 2, 6, 36],
        "velocity": [3, 4, 5, 2, 3],
    }
    latents, text, modulation = (
        torch.empty(*found[name], device="meta") for name in ("latents", "text", "action_modulation")
    )
    velocity = module.generator(latents, torch.empty(3, 4, device="meta"), text, modulation)
    assert list(velocity.shape) == found["velocity"]


def test_parameters_of_every_part() -> None:
    module = small_module()
    module.generator.requires_grad_(False)
    found = parameters_of(module)
    assert found["generator"] == count(module.generator.parameters())
    assert found["generator"] == Parameters(0, sum(p.numel() for p in module.generator.parameters()))
    assert module.action_projection is not None
    assert found["action_projection"] == Parameters(sum(p.numel() for p in module.action_projection.parameters()), 0)
    assert found["text_encoder"] == Parameters(0, 0)
    assert frozen_classes(module)["text_encoder"] == "HashingTextEncoder"
    released = small_module(text_encoder=UMT5TextEncoder)
    assert parameters_of(released)["text_encoder"] == Parameters(0, 5_680_910_336)
    assert frozen_classes(released)["text_encoder"] == "UMT5TextEncoder, as released"


def test_blocks() -> None:
    module = small_module(causality=BlockCausality(2, 5, 1))
    assert blocks(module, geometry(module, batch_of(29), trains=True)) == {
        "tokens_per_frame": 3,
        "tokens_per_block": 6,
        "tokens_per_video": 24,
        "num_blocks": 4,
        "frames_per_block": 2,
        "frames_seen": 5,
    }


@pytest.mark.parametrize(
    "causality", [BlockCausality(1), BlockCausality(2, 5, 1), BlockCausality(3, 4), BlockCausality(2)]
)
def test_no_block_sees_more_than_the_last(causality: BlockCausality) -> None:
    seen = [sum(map(len, causality.past(block))) + len(block) for block in causality.split(12)]
    assert seen == sorted(seen)


def test_memory() -> None:
    module = small_module()
    sizes = geometry(module, batch_of(), trains=True)
    found = memory(module, sizes, FLOAT32)
    numbers = sum(p.numel() for p in module.parameters())
    cache = KVCache(2, 1, 3, 12, 3, 4, BlockCausality(2)).num_bytes
    told = ("weights", "gradients", "adamw_moments", "kv_cache", "kv_cache_per_frame")
    assert [found[name] for name in told] == [4 * numbers, 4 * numbers, 8 * numbers, cache, cache // 4]
    half = memory(module, sizes, Precision(torch.float32, torch.bfloat16, torch.bfloat16))
    assert [half[name] for name in told] == [4 * numbers, 4 * numbers, 8 * numbers, cache // 2, cache // 8]
    assert found["activations"] / 2 < half["activations"] < found["activations"]
    # Teacher forcing has the clean half too.
    diffusion = memory(small_module(objective="diffusion_forcing"), sizes, FLOAT32)
    assert diffusion["activations"] * 2 == found["activations"]


def test_flops() -> None:
    sizes = geometry(small_module(), batch_of(), trains=True)
    found = flops(small_module(), sizes)
    assert found["block"].total == pytest.approx(9 * found["one_pass"].total), "8 steps and the clean pass"
    assert found["pixel_frame"].total == pytest.approx(found["block"].total / 8), "2 latent frames of 4"
    guided = small_module(sampling=Sampling(denoising_step_list=[1000, 500], action_guidance_scale=2.0))
    assert flops(guided, sizes)["block"].total == pytest.approx(6 * found["one_pass"].total)
    caches = [memory(module, sizes, FLOAT32)["kv_cache"] for module in (small_module(), guided)]
    assert caches[1] == 2 * caches[0]
    checkpointed = small_module(generator=lambda: small_generator(activation_checkpointing=True))
    assert flops(checkpointed, sizes)["training_step"].attention == found["training_step"].attention * 4 / 3
    checkpointed.generator.requires_grad_(False)
    assert flops(checkpointed, sizes)["training_step"].total < found["training_step"].total


def test_settings() -> None:
    guided = small_module(sampling=Sampling(denoising_step_list=[1000, 500], action_guidance_scale=2.0))
    precision = Precision(torch.float32, torch.bfloat16, torch.float16)
    assert settings(guided, geometry(guided, batch_of(), trains=True), precision) == {
        "batch_size": 3,
        "num_steps": 2,
        "num_clean_passes": 1,
        "num_branches": 2,
        "activation_checkpointing": False,
        "cache_frames": 4,
        "weights_dtype": "float32",
        "cache_dtype": "bfloat16",
        "compute_dtype": "float16",
    }


def test_action_times() -> None:
    assert action_times(small_module().schema, 3) == [
        ActionTime(0, [0], []),
        ActionTime(1, [1, 2, 3, 4], [0, 1, 2, 3]),
        ActionTime(2, [5, 6, 7, 8], [4, 5, 6, 7]),
    ]


def test_nothing_is_allocated() -> None:
    tensors: list[Tensor] = list(small_module().parameters())
    assert all(tensor.is_meta for tensor in tensors)

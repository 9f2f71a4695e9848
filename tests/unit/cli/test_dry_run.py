"""What a dry run says about a small model, and about batches that do not fit it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_action.cli.dry_run import (
    ActionTime,
    Precision,
    action_times,
    blocks,
    flops,
    geometry,
    memory,
    parameters_of,
    shapes,
)
from lightning_action.frozen.umt5 import UMT5TextEncoder
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.cost import Parameters, count
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
    assert list(found.values()) == [
        [3, 13, 3, 16, 24],
        [3, 4, 5, 2, 3],
        [3, 4, 3, 36],
        [3, 7, 9],
        [3, 4, 6, 36],
        [3, 12, 3],
        [3, 4, 12],
        [3, 4, 2, 6, 36],
        [3, 4, 5, 2, 3],
    ]
    latents = torch.empty(*found["latents [B, F, C, h, w]"], device="meta")
    text = torch.empty(*found["text [B, L, text_dim]"], device="meta")
    modulation = torch.empty(*found["action modulation [B, F, ..., 6, D]"], device="meta")
    velocity = module.generator(latents, torch.empty(3, 4, device="meta"), text, modulation)
    assert list(velocity.shape) == found["velocity [B, F, C, h, w]"]


def test_parameters_of_every_part() -> None:
    module = small_module()
    module.generator.requires_grad_(False)
    found = parameters_of(module)
    assert found["generator"] == count(module.generator.parameters())
    assert found["generator"] == Parameters(0, sum(p.numel() for p in module.generator.parameters()))
    assert module.action_projection is not None
    assert found["action projection"] == Parameters(sum(p.numel() for p in module.action_projection.parameters()), 0)
    assert found["text encoder, HashingTextEncoder"] == Parameters(0, 0)
    released = parameters_of(small_module(text_encoder=UMT5TextEncoder))
    assert released["text encoder, UMT5TextEncoder, as released"] == Parameters(0, 5_680_910_336)


def test_blocks() -> None:
    module = small_module(causality=BlockCausality(2, 5, 1))
    assert list(blocks(module, geometry(module, batch_of(29), trains=True)).values()) == [3, 6, 24, 4, 2, 5]


def test_memory() -> None:
    module = small_module()
    sizes = geometry(module, batch_of(), trains=True)
    found = list(memory(module, sizes, FLOAT32).values())
    numbers = sum(p.numel() for p in module.parameters())
    cache = KVCache(2, 1, 3, 12, 3, 4, BlockCausality(2)).num_bytes
    assert found[:3] == [4 * numbers, cache // 4, cache]
    assert found[4:6] == [4 * numbers, 8 * numbers]
    half = list(memory(module, sizes, Precision(torch.float32, torch.bfloat16, torch.bfloat16)).values())
    assert half[:3] == [4 * numbers, cache // 8, cache // 2] and half[4:6] == found[4:6]
    assert found[-1] / 2 < half[-1] < found[-1]
    # Teacher forcing has the clean half too.
    diffusion = small_module(objective="diffusion_forcing")
    assert list(memory(diffusion, sizes, FLOAT32).values())[-1] * 2 == found[-1]


def test_flops() -> None:
    sizes = geometry(small_module(), batch_of(), trains=True)
    one_pass, block, pixel_frame, _, training = flops(small_module(), sizes).values()
    assert block.total == pytest.approx(9 * one_pass.total), "8 steps and the clean pass"
    assert pixel_frame.total == pytest.approx(block.total / 8), "2 latent frames of 4"
    guided = small_module(sampling=Sampling(denoising_step_list=[1000, 500], action_guidance_scale=2.0))
    assert list(flops(guided, sizes).values())[1].total == pytest.approx(6 * one_pass.total)
    caches = [list(memory(module, sizes, FLOAT32).values())[2] for module in (small_module(), guided)]
    assert caches[1] == 2 * caches[0]
    checkpointed = small_module(generator=lambda: small_generator(activation_checkpointing=True))
    assert list(flops(checkpointed, sizes).values())[-1].total == pytest.approx(training.total * 4 / 3)


def test_action_times() -> None:
    module = small_module()
    assert action_times(module, 3) == [
        ActionTime(0, [0], []),
        ActionTime(1, [1, 2, 3, 4], [0, 1, 2, 3]),
        ActionTime(2, [5, 6, 7, 8], [4, 5, 6, 7]),
    ]
    assert action_times(small_module(action_projection=None), 3) == []


def test_nothing_is_allocated() -> None:
    tensors: list[Tensor] = list(small_module().parameters())
    assert all(tensor.is_meta for tensor in tensors)

"""What a dry run says about a small model, and about batches that do not fit it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.batch import Batch
from lightning_action.cost import Parameters, count
from lightning_action.dry_run import (
    ActionTime,
    Precision,
    action_times,
    blocks,
    flops,
    geometry,
    memory,
    misfits,
    parameters_of,
    shapes,
)
from lightning_action.frozen.codec import LinearVideoCodec
from lightning_action.frozen.text import HashingTextEncoder
from lightning_action.frozen.umt5 import UMT5TextEncoder
from lightning_action.generator.blocks import BlockCausality
from lightning_action.generator.kv_cache import KVCache
from lightning_action.module import ActionVideoModule
from lightning_action.settings import Sampling
from tests.helpers import small_generator

FLOAT32 = Precision(torch.float32, torch.float32, torch.float32)


def small_module(**changes: Any) -> ActionVideoModule:
    """5 latent channels, patches of 8 x 8 pixels, blocks of 2 latent frames, actions of 3 columns."""
    arguments: dict[str, Any] = {
        "generator": small_generator,
        "text_encoder": lambda: HashingTextEncoder(text_dim=9, text_len=7),
        "vae": lambda: LinearVideoCodec(latent_dim=5, patch_size=8),
        "action_projection": lambda action_dim, dim: ActionModulationProjection(action_dim, dim, 10, num_layers=2),
        "schema": ActionSchema([ActionPart("stick", size=3)], "transition", "concat"),
        "causality": BlockCausality(2),
    }
    module = ActionVideoModule(**{**arguments, **changes})
    module.configure_model()
    module.to("meta")
    return module


def batch_of(num_frames: int = 13, **changes: Any) -> Batch:
    """Three videos of 16 x 24 pixels."""
    batch = {
        "video": torch.rand(3, num_frames, 3, 16, 24) * 2 - 1,
        "action": torch.rand(3, num_frames - 1, 3),
        "prompt": ["a", "b", "a b c"],
        "sample_id": torch.arange(3),
    }
    return {key: value for key, value in {**batch, **changes}.items() if value is not ...}


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
    with_files = small_module(text_encoder=UMT5TextEncoder)
    assert parameters_of(with_files)["text encoder, UMT5TextEncoder"] is None


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


@pytest.mark.parametrize("trains", [True, False])
def test_a_batch_that_fits(trains: bool) -> None:
    assert misfits(small_module(), batch_of(), trains) == []
    assert misfits(small_module(text_encoder=UMT5TextEncoder), batch_of(), trains) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": ...}, r"no `video` \[B, T, 3, H, W\], which training needs"),
        ({"prompt": ["a", "b"]}, "`prompt` must be a list of 3 strings"),
        ({"prompt": "a b"}, "`prompt` must be a list of 3 strings"),
        ({"sample_id": ...}, "the batch has no sample_id"),
        ({"video": torch.zeros(3, 13, 3, 16, 24, dtype=torch.uint8)}, r"floats .* got torch.uint8"),
        ({"video": torch.zeros(3, 12, 3, 16, 24)}, r"12 frames is no whole number of latent frames: expected 1 \+ 4 n"),
        ({"video": torch.zeros(3, 9, 3, 16, 24)}, "3 latent frames .* not a whole number of blocks"),
        ({"video": torch.zeros(3, 13, 3, 20, 24)}, "20"),
        ({"video": torch.zeros(3, 13, 3, 24, 24)}, "not a whole number of patches of 2 x 1"),
        ({"video": torch.zeros(3, 13, 4, 16, 24)}, r"expected `video` \[3, T, 3, H, W\], got \[3, 13, 4, 16, 24\]"),
        ({"video": torch.full((3, 13, 3, 16, 24), 255.0)}, r"pixels are in \[-1, 1\], .* from 255 to 255"),
        ({"video": torch.full((3, 13, 3, 16, 24), torch.nan)}, r"pixels are in \[-1, 1\], .* nan"),
        ({"action": ...}, "no `action` .* no action_module infers one"),
        ({"action": torch.zeros(3, 12, 2)}, r"must be \[B, 12, 3\] .* got \[3, 12, 2\]"),
        ({"action": torch.zeros(3, 13, 3)}, r"must be \[B, 12, 3\] .* got \[3, 13, 3\].*state 13"),
        ({"action": torch.zeros(2, 12, 3)}, r"must be a tensor \[3, rows, columns\], got \[2, 12, 3\]"),
        ({"action": [0.0]}, r"must be a tensor \[3, rows, columns\], got list"),
        ({"action": torch.full((3, 12, 3), torch.inf)}, "not finite"),
        ({"prompt": ["a b c d e f g h", "a", "b"]}, "prompt has 8 words"),
    ],
)
def test_a_training_batch_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    told = misfits(small_module(), batch_of(**changes), trains=True)
    assert told
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(told))


def test_several_problems_are_told_together_and_each_once() -> None:
    told = misfits(small_module(), batch_of(video=torch.zeros(3, 9, 3, 20, 24), action=torch.zeros(3, 5, 3)), True)
    assert len(told) == len(set(told)) == 3, told


def test_a_batch_to_predict_from_needs_its_first_frames_only() -> None:
    start = batch_of(video=torch.zeros(3, 1, 3, 16, 24))
    assert misfits(small_module(), start, trains=False) == []
    more = small_module(sampling=Sampling(num_initial_latents=2))
    (told,) = misfits(more, start, trains=False)
    assert "num_initial_latents 2 needs 5 frames, got 1" in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": lambda: LinearVideoCodec(latent_dim=6, patch_size=8)}, "takes 5 channels, 6 of them latents"),
        ({"generator": lambda: small_generator(out_dim=4)}, "out_dim = 4 channels, the VAE's latents have 5"),
        ({"text_encoder": lambda: HashingTextEncoder(text_dim=8, text_len=7)}, r"text must be .* got \[1, 7, 8\]"),
        (
            {"action_projection": lambda a, d: ActionModulationProjection(a, d + 1, 10)},
            r"action_modulation must be .* got \[1, 1, 6, 37\]",
        ),
    ],
)
def test_networks_that_do_not_belong_together(changes: dict[str, Any], message: str) -> None:
    (told,) = misfits(small_module(**changes), batch_of(), trains=True)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(told)


def test_an_image_to_video_model_fits() -> None:
    module = small_module(generator=lambda: small_generator(in_dim=14, image_dim=10))
    assert misfits(module, batch_of(), trains=True) == []


def test_nothing_is_allocated() -> None:
    tensors: list[Tensor] = list(small_module().parameters())
    assert all(tensor.is_meta for tensor in tensors)

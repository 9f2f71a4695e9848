"""The codec that comes trained: sharp on worlds that it never saw, and decoded block by block as in one piece."""

from __future__ import annotations

import pytest
import torch

from lightning_action.batch import to_unit_range
from lightning_action.data.panning_world import PanningCameraWorld
from lightning_action.data.scenery import SHAPES
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld
from lightning_action.data.world import World
from lightning_action.evaluation.metrics.video_quality import VideoQuality
from lightning_action.frozen.interfaces import FittedCodec
from lightning_action.frozen.sprite_codec import SpriteVideoCodec

RICH = MovingSpriteWorld(background="textured", shapes=SHAPES, shaded=True)


@pytest.mark.parametrize(("world", "psnr", "moving"), [(RICH, 31.5, 23.5), (PanningCameraWorld(), 25.5, 21.0)])
def test_pictures_stay_sharp_and_sprites_where_they_are(world: World, psnr: float, moving: float) -> None:
    data = SpriteDataModule(world, num_latents=3, seed=77)
    batch = data.dataset("test").batch(range(32))
    codec = SpriteVideoCodec()
    decoded = codec.streaming_decoder()(codec.encode(batch["video"]))
    quality = VideoQuality(num_initial_frames=0)
    quality.update(to_unit_range(decoded), to_unit_range(batch["video"]))
    figures = quality.compute()
    assert figures["psnr_db"] > psnr and figures["psnr_moving_db"] > moving
    positions, found = data.read_positions(decoded, batch, "test")
    assert found.float().mean() > 0.98
    assert (positions - batch["position"]).norm(dim=-1)[found].mean() < 0.5


def test_blocks_decode_as_the_whole_and_later_frames_change_nothing_before() -> None:
    video = SpriteDataModule(RICH, num_latents=5, seed=78).dataset("test").batch([0, 1])["video"]
    codec = SpriteVideoCodec(mixes_in_time=True)
    latents = codec.encode(video)
    assert latents.shape == (2, 5, 24, 4, 4)
    whole, decode = codec.streaming_decoder()(latents), codec.streaming_decoder()
    assert torch.equal(torch.cat([decode(part) for part in latents.split([1, 3, 1], dim=1)], dim=1), whole)
    assert torch.equal(codec.encode(video[:, :9]), latents[:, :3])
    assert torch.equal(codec.streaming_decoder()(latents[:, :3]), whole[:, :9])


def test_it_needs_no_fit_and_does_not_train() -> None:
    codec = SpriteVideoCodec()
    assert isinstance(codec, FittedCodec) and codec.fitted
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    assert not any(parameter.dtype != torch.float32 for parameter in codec.parameters())


@pytest.mark.parametrize("mixes_in_time", [False, True])
def test_codes_have_the_scale_of_noise(mixes_in_time: bool) -> None:
    latents = SpriteVideoCodec(mixes_in_time).encode(
        SpriteDataModule(RICH, seed=79).dataset("test").batch(range(16))["video"]
    )
    assert abs(latents.mean()) < 0.15 and abs(latents.std() - 1) < 0.2


def test_codes_may_stay_side_by_side() -> None:
    """Of a video that moves, what changes within a latent frame is then far less of it."""
    video = SpriteDataModule(RICH, num_latents=3, seed=80).dataset("test").batch(range(8))["video"]
    changes = []
    for codec in (SpriteVideoCodec(), SpriteVideoCodec(mixes_in_time=True)):
        latents = codec.encode(video)[:, 1:].unflatten(2, (4, 6))
        changes.append((latents - latents.mean(2, keepdim=True)).square().mean() / latents.square().mean())
        assert (codec.decode(codec.encode(video)) - video).square().mean() < 0.004
    assert 2 * changes[0] < changes[1]


def test_latents_of_before_are_those_of_codes_side_by_side() -> None:
    """Stores of latents and recordings name the codec by this; they were made when no codec mixed."""
    assert SpriteVideoCodec().identity() == "SpriteVideoCodec edbfc5bdd0e56750"
    assert SpriteVideoCodec(mixes_in_time=True).identity() != SpriteVideoCodec().identity()

"""`WanVideoVAE` against diffusers' `AutoencoderKLWan` in the folder that it writes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.frozen.wan_vae import WanVideoVAE
from tests.support.wan_parts import GEOMETRY, small_vae, video

# Float32: diffusers takes one convolution over all latents, where ours goes latent by latent.
TOLERANCE = 1e-5
VERSIONS = ("2.1", "2.2")


def statistics(theirs: Any) -> Tensor:
    """Mean and deviation of the latents, `[2, C, 1, 1]`."""
    return torch.tensor([theirs.config.latents_mean, theirs.config.latents_std])[..., None, None]


def both(version: str, folder: Path) -> tuple[WanVideoVAE, Any]:
    theirs = small_vae(version)
    theirs.save_pretrained(folder / "vae")
    return WanVideoVAE(str(folder), **GEOMETRY[version]), theirs


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("num_frames", [1, 5, 13])
def test_latents_are_the_normalised_means_of_diffusers(version: str, num_frames: int, tmp_path: Path) -> None:
    ours, theirs = both(version, tmp_path)
    pixels = video(version, num_frames)
    mean, deviation = statistics(theirs)
    expected = theirs.encode(pixels.transpose(1, 2)).latent_dist.mean.transpose(1, 2)
    latents = ours.encode(pixels)
    assert latents.shape == (2, 1 + (num_frames - 1) // 4, *ours.latent_shape(*pixels.shape[-2:]))
    torch.testing.assert_close(latents, (expected - mean) / deviation, atol=TOLERANCE, rtol=0)
    assert (latents - expected).abs().max() > 0.1


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("splits", [[4], [1, 3], [2, 1, 1], [1, 1, 1, 1]])
def test_whole_and_streamed_decoding_equal_diffusers(version: str, splits: list[int], tmp_path: Path) -> None:
    ours, theirs = both(version, tmp_path)
    latents = torch.randn(2, 4, *ours.latent_shape(32, 48))
    mean, deviation = statistics(theirs)
    expected = theirs.decode((latents * deviation + mean).transpose(1, 2)).sample.transpose(1, 2)
    assert expected.shape == (2, 13, 3, 32, 48)
    assert expected.std() > 0.1

    decode_next = ours.streaming_decoder()
    parts = [decode_next(part) for part in latents.split(splits, dim=1)]
    assert [part.shape[1] for part in parts] == [4 * length - (index == 0) * 3 for index, length in enumerate(splits)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(ours.decode(latents), expected, atol=TOLERANCE, rtol=0)


def test_diffusers_known_statistics_of_wan_2_1() -> None:
    """A file without configuration has them from diffusers' defaults."""
    config = small_vae("2.1").config
    assert config.latents_mean[:2] + config.latents_std[-2:] == [-0.7571, -0.7089, 2.8251, 1.9160]

"""Names and sizes of Wan VAE files, at full size: nothing is allocated on the meta device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_action.frozen.wan_vae import WanVideoVAE
from lightning_action.frozen.wan_vae_format import (
    WanVaeLayout,
    config_of,
    is_original,
    original_layout,
    to_diffusers_name,
)
from tests.support.wan_parts import original_vae_name, small_vae

Shapes = Iterator[tuple[str, tuple[int, ...]]]


class Release(NamedTuple):
    """Sizes of an original VAE, and how many parameters they amount to."""

    encoder_dim: int
    decoder_dim: int
    latent_dim: int
    pixel_channels: int
    layout: WanVaeLayout
    num_parameters: int
    diffusers: dict[str, Any]


RELEASES = {
    "2.1": Release(96, 96, 16, 3, WanVaeLayout(False, 4, 2), 126_892_531, {}),
    "2.2": Release(
        *(160, 256, 48, 12, WanVaeLayout(True, 4, 2), 704_688_668),
        {
            "base_dim": 160,
            "decoder_base_dim": 256,
            "z_dim": 48,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
        },
    ),
}


def convolution(name: str, num_inputs: int, num_outputs: int, *kernel: int) -> Shapes:
    yield f"{name}.weight", (num_outputs, num_inputs, *kernel)
    yield f"{name}.bias", (num_outputs,)


def residual_block(name: str, num_inputs: int, num_outputs: int) -> Shapes:
    yield f"{name}.residual.0.gamma", (num_inputs, 1, 1, 1)
    yield from convolution(f"{name}.residual.2", num_inputs, num_outputs, 3, 3, 3)
    yield f"{name}.residual.3.gamma", (num_outputs, 1, 1, 1)
    yield from convolution(f"{name}.residual.6", num_outputs, num_outputs, 3, 3, 3)
    if num_inputs != num_outputs:
        yield from convolution(f"{name}.shortcut", num_inputs, num_outputs, 1, 1, 1)


def middle(name: str, width: int) -> Shapes:
    yield from residual_block(f"{name}.0", width, width)
    yield f"{name}.1.norm.gamma", (width, 1, 1)
    yield from convolution(f"{name}.1.to_qkv", width, 3 * width, 1, 1)
    yield from convolution(f"{name}.1.proj", width, width, 1, 1)
    yield from residual_block(f"{name}.2", width, width)


def encoder(release: Release) -> Shapes:
    widths = [release.encoder_dim * factor for factor in (1, 1, 2, 4, 4)]
    yield from convolution("encoder.conv1", release.pixel_channels, widths[0], 3, 3, 3)
    for stage, (num_inputs, width) in enumerate(zip(widths, widths[1:], strict=False)):
        within = f"encoder.downsamples.{stage}.downsamples." if release.layout.residual else "encoder.downsamples."
        start = 0 if release.layout.residual else 3 * stage
        yield from residual_block(f"{within}{start}", num_inputs, width)
        yield from residual_block(f"{within}{start + 1}", width, width)
        if stage < 3:
            yield from convolution(f"{within}{start + 2}.resample.1", width, width, 3, 3)
        if stage in (1, 2):
            yield from convolution(f"{within}{start + 2}.time_conv", width, width, 3, 1, 1)
    yield from middle("encoder.middle", widths[-1])
    yield "encoder.head.0.gamma", (widths[-1], 1, 1, 1)
    yield from convolution("encoder.head.2", widths[-1], 2 * release.latent_dim, 3, 3, 3)


def decoder(release: Release) -> Shapes:
    widths = [release.decoder_dim * factor for factor in (4, 4, 4, 2, 1)]
    yield from convolution("decoder.conv1", release.latent_dim, widths[0], 3, 3, 3)
    yield from middle("decoder.middle", widths[0])
    for stage, (num_inputs, width) in enumerate(zip(widths, widths[1:], strict=False)):
        residual = release.layout.residual
        within = f"decoder.upsamples.{stage}.upsamples." if residual else "decoder.upsamples."
        start = 0 if residual else 4 * stage
        # In Wan 2.1 the resampler before has halved the channels.
        yield from residual_block(f"{within}{start}", num_inputs if residual or stage == 0 else num_inputs // 2, width)
        yield from residual_block(f"{within}{start + 1}", width, width)
        yield from residual_block(f"{within}{start + 2}", width, width)
        if stage < 3:
            yield from convolution(f"{within}{start + 3}.resample.1", width, width if residual else width // 2, 3, 3)
        if stage < 2:
            yield from convolution(f"{within}{start + 3}.time_conv", width, 2 * width, 3, 1, 1)
    yield "decoder.head.0.gamma", (widths[-1], 1, 1, 1)
    yield from convolution("decoder.head.2", widths[-1], release.pixel_channels, 3, 3, 3)


def original_shapes(release: Release) -> dict[str, tuple[int, ...]]:
    """What the original files hold."""
    latent_dim = release.latent_dim
    return {
        **dict(encoder(release)),
        **dict(convolution("conv1", 2 * latent_dim, 2 * latent_dim, 1, 1, 1)),
        **dict(convolution("conv2", latent_dim, latent_dim, 1, 1, 1)),
        **dict(decoder(release)),
    }


def diffusers_tensors(release: Release) -> dict[str, Tensor]:
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        return dict(AutoencoderKLWan(**release.diffusers).state_dict())


@pytest.mark.parametrize("version", RELEASES)
def test_original_names_and_shapes_at_full_size(version: str) -> None:
    release = RELEASES[version]
    original = original_shapes(release)
    assert is_original(original)
    assert original_layout(original) == release.layout
    theirs = {name: tuple(tensor.shape) for name, tensor in diffusers_tensors(release).items()}
    assert {to_diffusers_name(name, release.layout): shape for name, shape in original.items()} == theirs
    assert {original_vae_name(name, release.layout): shape for name, shape in theirs.items()} == original
    assert not is_original(theirs)
    assert sum(torch.Size(shape).numel() for shape in original.values()) == release.num_parameters


def test_diffusers_converts_wan_2_1_likewise() -> None:
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    release = RELEASES["2.1"]
    for name in original_shapes(release):
        assert list(convert_wan_vae_to_diffusers({name: None})) == [to_diffusers_name(name, release.layout)]


@pytest.mark.parametrize("version", RELEASES)
def test_sizes_are_seen_in_the_tensors(version: str) -> None:
    from diffusers import AutoencoderKLWan

    release = RELEASES[version]
    tensors = diffusers_tensors(release)
    with torch.device("meta"):
        again = AutoencoderKLWan(**config_of(tensors)).state_dict()
    assert {name: tensor.shape for name, tensor in again.items()} == {
        name: tensor.shape for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize(
    "changes",
    [
        {"num_res_blocks": 3, "dim_mult": [1, 2, 2], "temperal_downsample": [True, True]},
        {"temperal_downsample": [True, False, True]},
        {"dim_mult": [1, 2, 2, 4, 4], "temperal_downsample": [False, True, False, True]},
    ],
)
def test_other_sizes_too(version: str, changes: dict[str, Any]) -> None:
    vae = small_vae(version, **changes)
    found = config_of(vae.state_dict())
    for key in ("base_dim", "z_dim", "dim_mult", "num_res_blocks", "temperal_downsample", "is_residual", "patch_size"):
        assert found[key] == vae.config[key], key

    layout = WanVaeLayout(vae.config.is_residual, len(vae.config.dim_mult), vae.config.num_res_blocks)
    original = {original_vae_name(name, layout): name for name in vae.state_dict()}
    assert len(original) == len(vae.state_dict())
    assert original_layout(original) == layout
    assert all(to_diffusers_name(name, layout) == theirs for name, theirs in original.items())
    assert not {name for name in original if "_block" in name or "resnets" in name}


def test_the_published_statistics_of_wan_2_2() -> None:
    config = config_of(diffusers_tensors(RELEASES["2.2"]))
    mean, deviation = config["latents_mean"], config["latents_std"]
    assert len(mean) == len(deviation) == 48
    assert (mean[0], mean[19], mean[-1]) == (-0.2289, 0.5109, -0.0667)
    assert (deviation[0], deviation[39], deviation[-1]) == (0.4765, 1.6887, 0.7744)
    assert all(value > 0 for value in deviation)


def test_the_configuration_knows_the_size_of_what_is_released() -> None:
    assert WanVideoVAE().num_parameters_released == RELEASES["2.1"].num_parameters
    assert WanVideoVAE(latent_dim=48, spatial_compression_ratio=16).num_parameters_released == (
        RELEASES["2.2"].num_parameters
    )

"""Names and sizes in files of the Wan VAE: the original ones, and those of diffusers' `AutoencoderKLWan`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from lightning_action.weights.fit import Shaped
from lightning_action.weights.names import renamed

# Parts of a residual block and of a resampler.
_BLOCK = (
    ("residual.0.", "norm1."),
    ("residual.2.", "conv1."),
    ("residual.3.", "norm2."),
    ("residual.6.", "conv2."),
    ("shortcut.", "conv_shortcut."),
    ("resample.", "resample."),
    ("time_conv.", "time_conv."),
)

# Mean and deviation of each latent channel, by their number; those of Wan 2.1 are diffusers' defaults.
_STATISTICS: dict[int, dict[str, list[float]]] = {
    16: {},
    48: {
        "latents_mean": [
            *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891),
            *(0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
            *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723),
            *(-0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
        ],
        "latents_std": [
            *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901),
            *(0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
            *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944),
            *(0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
        ],
    },
}


class WanVaeLayout(NamedTuple):
    """Layout on which the names depend: blocks are numbered through in Wan 2.1, and within their stage in Wan 2.2."""

    residual: bool
    num_stages: int
    num_res_blocks: int


def is_original(names: Iterable[str]) -> bool:
    """Tell whether these are the names of `Wan2.1_VAE.pth` and `Wan2.2_VAE.pth`."""
    return "encoder.conv1.weight" in names


def original_layout(names: Iterable[str]) -> WanVaeLayout:
    """Return the layout that original names stand for."""
    pattern = r"encoder\.downsamples\.(\d+\.downsamples\.)?(\d+)\.resample\.1\.weight"
    samplers = [match for match in (re.fullmatch(pattern, name) for name in names) if match]
    # A stage's resampler follows its residual blocks.
    return WanVaeLayout(
        residual=any(sampler.group(1) for sampler in samplers),
        num_stages=len(samplers) + 1,
        num_res_blocks=min((int(sampler.group(2)) for sampler in samplers), default=0),
    )


def to_diffusers_name(name: str, layout: WanVaeLayout) -> str:
    """Return the name that diffusers gives to a tensor of an original file."""
    return renamed(name, _rows(layout))


def config_of(tensors: Mapping[str, Shaped]) -> dict[str, Any]:
    """Return the arguments of `AutoencoderKLWan` that its tensors (diffusers names) show.

    Raises:
        KeyError: A tensor is missing that every Wan VAE has.
        ValueError: The latent channels are neither those of Wan 2.1 nor those of Wan 2.2, whose statistics are known.
    """
    base_dim, in_channels = tensors["encoder.conv_in.weight"].shape[:2]
    latent_dim = tensors["post_quant_conv.weight"].shape[0]
    residual = "decoder.up_blocks.0.upsampler.resample.1.weight" in tensors
    sampler = "upsampler" if residual else "upsamplers.0"
    stages = range(1 + max(_numbers(r"decoder\.up_blocks\.(\d+)\.", tensors), default=0))
    widths = [tensors[f"decoder.up_blocks.{stage}.resnets.0.conv2.weight"].shape[0] for stage in stages]
    upsampled = [f"decoder.up_blocks.{stage}.{sampler}.time_conv.weight" in tensors for stage in stages[:-1]]
    if latent_dim not in _STATISTICS:
        raise ValueError(
            f"its latents have {latent_dim} channels, whose mean and deviation are unknown: give a diffusers folder, "
            "with the config.json that holds them"
        )
    return {
        "base_dim": base_dim,
        "decoder_base_dim": widths[-1],
        "z_dim": latent_dim,
        "dim_mult": [width // widths[-1] for width in reversed(widths)],
        "num_res_blocks": max(_numbers(r"decoder\.up_blocks\.0\.resnets\.(\d+)\.", tensors)),
        "temperal_downsample": upsampled[::-1],
        "is_residual": residual,
        "in_channels": in_channels,
        "out_channels": in_channels,
        "patch_size": math.isqrt(in_channels // 3) if in_channels > 3 else None,
        **_STATISTICS[latent_dim],
    }


def _numbers(pattern: str, names: Iterable[str]) -> list[int]:
    return [int(match.group(1)) for match in (re.match(pattern, name) for name in names) if match]


def _rows(layout: WanVaeLayout) -> Iterator[tuple[str, str]]:
    """Beginnings of names, original and diffusers; each name has one of them."""
    yield "conv1.", "quant_conv."
    yield "conv2.", "post_quant_conv."
    for side in ("encoder", "decoder"):
        yield f"{side}.conv1.", f"{side}.conv_in."
        yield f"{side}.middle.1.", f"{side}.mid_block.attentions.0."
        yield f"{side}.head.0.", f"{side}.norm_out."
        yield f"{side}.head.2.", f"{side}.conv_out."
        for original, theirs in ((0, 0), (2, 1)):
            yield from _block_rows(f"{side}.middle.{original}.", f"{side}.mid_block.resnets.{theirs}.")
    for stage in range(layout.num_stages):
        for position in range(layout.num_res_blocks + 1):
            yield from _block_rows(*_encoder_block(layout, stage, position))
        for position in range(layout.num_res_blocks + 2):
            yield from _block_rows(*_decoder_block(layout, stage, position))


def _block_rows(original: str, theirs: str) -> Iterator[tuple[str, str]]:
    return ((original + inside, theirs + theirs_inside) for inside, theirs_inside in _BLOCK)


def _encoder_block(layout: WanVaeLayout, stage: int, position: int) -> tuple[str, str]:
    """Return how the names of a stage's block begin; the resampler follows the residual blocks."""
    if not layout.residual:
        index = stage * (layout.num_res_blocks + 1) + position
        return f"encoder.downsamples.{index}.", f"encoder.down_blocks.{index}."
    part = f"resnets.{position}" if position < layout.num_res_blocks else "downsampler"
    return f"encoder.downsamples.{stage}.downsamples.{position}.", f"encoder.down_blocks.{stage}.{part}."


def _decoder_block(layout: WanVaeLayout, stage: int, position: int) -> tuple[str, str]:
    sampler = "upsampler" if layout.residual else "upsamplers.0"
    part = f"resnets.{position}" if position <= layout.num_res_blocks else sampler
    index = f"{stage}.upsamples.{position}" if layout.residual else stage * (layout.num_res_blocks + 2) + position
    return f"decoder.upsamples.{index}.", f"decoder.up_blocks.{stage}.{part}."

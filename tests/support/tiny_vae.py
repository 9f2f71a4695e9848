"""Tensors of a tiny autoencoder, as its released files name them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SIZES: dict[str, dict[str, Any]] = {
    "2.1": {"latent_dim": 16, "patch_size": 1},
    "2.2": {"latent_dim": 48, "patch_size": 2},
}


def shapes(
    latent_dim: int,
    patch_size: int,
    widths: tuple[int, ...] = (9, 7, 6, 5),
    encoder_width: int = 4,
    growth: tuple[int, ...] = (1, 2, 2),
    pooling: tuple[int, ...] = (2, 2, 1),
) -> dict[str, tuple[int, ...]]:
    """What `taew2_1.pth` holds, for a decoder and an encoder of the given widths."""
    pixel_channels = 3 * patch_size**2
    found: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, num_inputs: int, num_outputs: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = (num_outputs, num_inputs, 3, 3)
        if bias:
            found[f"{name}.bias"] = (num_outputs,)

    def memory_blocks(side: str, first: int, width: int) -> None:
        for index in range(first, first + 3):
            convolution(f"{side}.{index}.conv.0", 2 * width, width)
            convolution(f"{side}.{index}.conv.2", width, width)
            convolution(f"{side}.{index}.conv.4", width, width)

    convolution("encoder.0", pixel_channels, encoder_width)
    for first, stride in zip((2, 7, 12), pooling, strict=True):
        found[f"encoder.{first}.conv.weight"] = (encoder_width, encoder_width * stride, 1, 1)
        convolution(f"encoder.{first + 1}", encoder_width, encoder_width, bias=False)
        memory_blocks("encoder", first + 2, encoder_width)
    convolution("encoder.17", encoder_width, latent_dim)

    convolution("decoder.1", latent_dim, widths[0])
    for index, first in enumerate((3, 9, 15)):
        memory_blocks("decoder", first, widths[index])
        found[f"decoder.{first + 4}.conv.weight"] = (widths[index] * growth[index], widths[index], 1, 1)
        convolution(f"decoder.{first + 5}", widths[index], widths[index + 1], bias=False)
    convolution("decoder.22", widths[3], pixel_channels)
    return found


def tensors_of(version: str, **changes: Any) -> dict[str, Tensor]:
    """Random weights that make frames of middling brightness."""
    tensors = {
        name: torch.randn(shape) / (torch.Size(shape[1:]).numel() ** 0.5 if len(shape) > 1 else 10)
        for name, shape in shapes(**{**SIZES[version], **changes}).items()
    }
    tensors["decoder.22.weight"] *= 0.1
    tensors["decoder.22.bias"] += 0.5
    return tensors

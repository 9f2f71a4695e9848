"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) over (latent frame, row, column), as in Wan."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

THETA = 10000.0


@lru_cache(maxsize=8)
def rotation(frames: tuple[int, ...], height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    """Cosine and sine of every token's angles.

    The `head_dim / 2` pairs are shared out as rows `c // 3`, columns `c // 3` and frames the rest (`c` the number of
    pairs). Angles are computed from the position itself, so no table ends anywhere. Scores depend on differences of
    positions alone, so a key that was rotated once stays right in the cache, whatever block looks at it later.

    Args:
        frames: Positions in the video of the latent frames of the call, which need not begin at 0 nor differ.
        height: Number of token rows of a frame.
        width: Number of token columns of a frame.
        head_dim: Number of channels of one head, even.
        device: Device of the result.

    Returns:
        `[2, frames * height * width, 1, head_dim / 2]`, float32: cosines, then sines.
    """
    # Tensors kept for later calls must be usable in training, also when a rollout is the first to ask.
    with torch.inference_mode(False):
        return _rotation(frames, height, width, head_dim // 2, device)


def _rotation(frames: tuple[int, ...], height: int, width: int, pairs: int, device: torch.device) -> Tensor:
    # Angles are in float64: in float32, positions of long videos times frequencies lose digits.
    spatial = pairs // 3
    positions = torch.cartesian_prod(
        torch.tensor(frames, dtype=torch.float64),
        torch.arange(height, dtype=torch.float64),
        torch.arange(width, dtype=torch.float64),
    ).reshape(-1, 3)
    shares = (pairs - 2 * spatial, spatial, spatial)
    angles = torch.cat([positions[:, axis, None] * _frequencies(share) for axis, share in enumerate(shares)], dim=1)
    return torch.stack([angles.cos(), angles.sin()])[:, :, None].to(device=device, dtype=torch.float32)


def _frequencies(pairs: int) -> Tensor:
    return THETA ** -(torch.arange(pairs, dtype=torch.float64) / max(pairs, 1))


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate consecutive channel pairs of `x` `[B, N, heads, head_dim]`, in float32, back in the type of `x`."""
    cos, sin = rotation.unbind(0)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)

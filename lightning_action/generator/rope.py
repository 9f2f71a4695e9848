"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) over (latent frame, row, column), as in Wan."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

THETA = 10000.0


@lru_cache(maxsize=8)
def rotation(frames: Sequence[int], height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    """Cosine and sine of every token's angles.

    The `head_dim / 2` pairs are shared out as rows `c // 3`, columns `c // 3` and frames the rest (`c` the number of
    pairs). Angles are computed from the position itself, so no table ends anywhere. Scores depend on differences of
    positions alone, so a key that was rotated once stays right in the cache, whatever block looks at it later.

    Args:
        frames: Positions in the video of the latent frames of the call, a range or a tuple. They need not begin at 0
            nor differ. Those of a range are counted on the device, so that nothing is copied to it.
        height: Number of token rows of a frame.
        width: Number of token columns of a frame.
        head_dim: Number of channels of one head, even.
        device: Device of the result.

    Returns:
        `[frames * height * width, 1, head_dim / 2, 2]`, float32: cosine and sine.
    """
    # Tensors kept for later calls must be usable in training, also when a rollout is the first to ask.
    with torch.inference_mode(False):
        pairs = head_dim // 2
        sizes, shares = (len(frames), height, width), (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
        time = _turns(_counted(frames, device), shares[0])[:, None, None]
        rows, columns = _turns_in_space(height, width, shares[1], device)
        every = [axis.expand(*sizes, -1, -1) for axis in (time, rows, columns)]
        return torch.cat(every, dim=3).flatten(0, 2)[:, None]


@lru_cache(maxsize=8)
def _turns_in_space(height: int, width: int, pairs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = (_turns(_counted(range(side), device), pairs) for side in (height, width))
    return rows[:, None], columns


def _counted(positions: Sequence[int], device: torch.device) -> Tensor:
    # In float32, positions of long videos times frequencies would lose digits.
    if isinstance(positions, range):
        return torch.arange(positions.start, positions.stop, dtype=torch.float64, device=device)
    return torch.tensor(positions, dtype=torch.float64, device=device)


def _turns(positions: Tensor, pairs: int) -> Tensor:
    """Cosines and sines `[positions, pairs, 2]` of float64 positions, float32."""
    frequencies = THETA ** -(torch.arange(pairs, dtype=torch.float64, device=positions.device) / max(pairs, 1))
    angles = positions[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate consecutive channel pairs of `x` `[B, N, heads, head_dim]`, in float32, back in the type of `x`."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    else:
        # The same in real numbers, which compilers fuse.
        (even, odd), (cos, sin) = pairs.unbind(-1), rotation.unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)

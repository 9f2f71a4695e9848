"""Numbers in float8 (e4m3) with a scale for each row or head.

The format is that of Micikevicius et al. (2022, arXiv:2209.05433).
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn


def to_float8(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Round to float8; all that `dims` spans has a scale in common.

    The largest number becomes float8's largest, 448; zeros stay zeros.

    Returns:
        The numbers, contiguous, and what brings them back as a factor: float32, of the shape of `x` with `dims` of 1.
    """
    scale = x.abs().amax(dims, keepdim=True).float().clamp(min=1e-12) / torch.finfo(FLOAT8).max
    return (x / scale).to(FLOAT8, memory_format=torch.contiguous_format), scale

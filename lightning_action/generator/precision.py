"""The type that a pass computes in."""

from __future__ import annotations

import torch
from torch import Tensor


def computed_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of linear maps and attention of such tensors: that of autocast where it is on."""
    device_type = like.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else like.dtype

"""Frames as bytes, and those of a block as one picture, which a browser decodes at once."""

from __future__ import annotations

from io import BytesIO
from typing import Literal

import numpy as np
from torch import Tensor

from lightning_action.batch import bytes_of_unit_range

Format = Literal["webp", "jpeg"]
# Below this number of pixels, a picture without loss takes hardly longer and is as small.
_LOSSLESS_PIXELS = 128 * 128
_QUALITY = 90


def bytes_of_frames(frames: Tensor) -> np.ndarray:
    """Turn frames `[..., 3, H, W]` in [0, 1] to bytes with the channels last, uint8 `[..., H, W, 3]`."""
    return bytes_of_unit_range(frames).movedim(-3, -1).contiguous().cpu().numpy()


def strip(frames: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
    """Put frames `[t, H, W, 3]` below each other, and the truth to the right of them: `[t H, W or 2 W, 3]`."""
    beside = frames if truth is None else np.concatenate([frames, truth], axis=2)
    joined: np.ndarray = beside.reshape(-1, *beside.shape[2:])
    return joined


def choose_format(height: int, width: int) -> Format:
    """Choose WebP without loss for small frames, and JPEG for large ones."""
    return "webp" if height * width <= _LOSSLESS_PIXELS else "jpeg"


def encode(picture: np.ndarray, image_format: Format) -> bytes:
    """Encode a picture, uint8 `[H, W, 3]`."""
    from PIL import Image

    out = BytesIO()
    image = Image.fromarray(np.ascontiguousarray(picture))
    if image_format == "webp":
        image.save(out, format="WEBP", lossless=True, quality=0, method=0)
    else:
        image.save(out, format="JPEG", quality=_QUALITY, subsampling=0)
    return out.getvalue()

"""Film strips of videos, as pictures and as data URIs."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from io import BytesIO

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SIDE = 128
"""Longer side of a frame in a strip, in pixels; larger ones are shrunk."""

_GAP = 2
_CAPTION_HEIGHT, _CAPTION_SIZE = 18, 13
_LOSSLESS_BYTES = 24_000


def by_sample(videos: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Take videos `[n, ...]` by name apart into those of each sample that all of them have."""
    count = min(map(len, videos.values()), default=0)
    return [{name: video[index] for name, video in videos.items()} for index in range(count)]


def spread(num_frames: int, count: int = 8) -> list[int]:
    """Choose frames from the first to the last, evenly, at most `count`."""
    count = min(count, num_frames)
    return [round(index * (num_frames - 1) / max(1, count - 1)) for index in range(count)]


def film_strip(video: Tensor, frames: list[int]) -> Tensor:
    """Put frames of a video side by side, with a gap that one sees through.

    Args:
        video: Video, uint8 `[T, 3, H, W]`.
        frames: Numbers of the frames.

    Returns:
        Picture with an alpha channel, uint8 `[4, H, width]`.
    """
    chosen = shrink(video[frames])
    opaque = F.pad(chosen, (0, 0, 0, 0, 0, 1), value=255)
    columns = [F.pad(frame, (0, _GAP)) for frame in opaque]
    return torch.cat(columns, dim=-1)[..., :-_GAP]


def shrink(video: Tensor, max_side: int = MAX_SIDE) -> Tensor:
    """Average squares of pixels of `[T, 3, H, W]` until the longer side has at most `max_side` of them; uint8."""
    factor = -(-max(video.shape[-2:]) // max_side)
    if factor == 1:
        return video
    return F.avg_pool2d(video.float(), factor, ceil_mode=True, count_include_pad=False).round().to(torch.uint8)


def difference(video: Tensor, other: Tensor) -> tuple[Tensor, int]:
    """Show where two uint8 videos differ: |video - other|, brightened by a whole factor, and that factor."""
    change = (video.int() - other.int()).abs()
    factor = max(1, min(8, 255 // max(1, int(change.max()))))
    return (change * factor).clamp_max(255).to(torch.uint8), factor


def data_uri(picture: Tensor) -> str:
    """Encode a picture, uint8 `[3 or 4, H, W]`, as WebP: without loss, unless that takes more than 24 kB."""
    from PIL import Image

    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())

    def encoded(lossless: bool) -> bytes:
        buffer = BytesIO()
        image.save(buffer, "WEBP", lossless=lossless, quality=80, method=2)
        return buffer.getvalue()

    content = encoded(lossless=True)
    if len(content) > _LOSSLESS_BYTES:
        content = encoded(lossless=False)
    return f"data:image/webp;base64,{b64encode(content).decode()}"


def captioned(videos: Mapping[str, Tensor]) -> Tensor:
    """Stack film strips of videos, each under its name: one picture for loggers, uint8 `[3, H, W]`.

    Args:
        videos: Videos by name, uint8 `[T, 3, H, W]`, all of one size.
    """
    rows = []
    for name, video in videos.items():
        strip = film_strip(video, spread(len(video)))[:3]
        scale = max(1, MAX_SIDE // min(video.shape[-2:]))
        strip = strip.repeat_interleave(scale, dim=-1).repeat_interleave(scale, dim=-2)
        rows += [_caption(name, strip.shape[-1]), strip]
    return torch.cat(rows, dim=-2)


def _caption(text: str, width: int) -> Tensor:
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, _CAPTION_HEIGHT), "black")
    ImageDraw.Draw(image).text((4, 2), text, fill="white", font=ImageFont.load_default(_CAPTION_SIZE))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)

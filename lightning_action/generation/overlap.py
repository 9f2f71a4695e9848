"""Decoding a block while the next one is denoised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lightning_action.frozen.interfaces import StreamingDecoder


def decode_behind(blocks: Iterable[Tensor], decode: StreamingDecoder) -> Iterator[Tensor]:
    """Pixels of each block, one block late: its decoding runs on a CUDA stream of its own beside the next denoising.

    The work is queued from one thread, so what is computed is the same as without; on other devices so is when.

    Args:
        blocks: clean latents of each block, `[B, block, C, h, w]`; asking for one queues its denoising.
        decode: takes the video's next latents.

    Yields:
        Pixels of each block, `[B, t, 3, H, W]`.
    """
    side: torch.cuda.Stream | None = None
    pending: Tensor | None = None
    for latents in blocks:
        if latents.is_cuda and side is None:
            side = torch.cuda.Stream(latents.device)
        if pending is not None:
            yield _when_done(pending, side)
        pending = decode(latents) if side is None else _decode_on(side, latents, decode)
    if pending is not None:
        yield _when_done(pending, side)


def _decode_on(side: torch.cuda.Stream, latents: Tensor, decode: StreamingDecoder) -> Tensor:
    side.wait_stream(torch.cuda.current_stream(latents.device))
    latents.record_stream(side)
    with torch.cuda.stream(side):
        return decode(latents)


def _when_done(pixels: Tensor, side: torch.cuda.Stream | None) -> Tensor:
    if side is not None:
        current = torch.cuda.current_stream(pixels.device)
        current.wait_stream(side)
        pixels.record_stream(current)
    return pixels

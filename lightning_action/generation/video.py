"""From the blocks of a rollout to a video: whole or as a stream, decoded beside the next denoising or after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_action.frozen.holder import to_unit_range
from lightning_action.frozen.interfaces import StreamingDecoder, VideoCodec
from lightning_action.generation.clock import BlockClock

_NOT_FINITE = "generated latents hold NaN or infinity: check the checkpoint and the actions, or generate in float32"


@dataclass(frozen=True)
class Generated:
    """A generated video.

    Args:
        latents: Clean latents, `[B, F, C, h, w]`.
        video: Pixels `[B, T, 3, H, W]` in [0, 1], on the CPU.
        seconds: Time of the blocks, as `BlockClock.seconds` gives it.
    """

    latents: Tensor
    video: Tensor
    seconds: dict[str, Any]


def whole_video(blocks: Iterable[Tensor], vae: VideoCodec, device: torch.device, overlaps: bool = False) -> Generated:
    """Decode each block as soon as it exists, and keep all of them.

    Args:
        blocks: Clean latents of each block, `[B, block, C, h, w]`; asking for one generates it.
        vae: Decoder.
        device: Device that the blocks are computed on.
        overlaps: Whether a block is decoded while the next one is denoised; on CUDA.

    Raises:
        RuntimeError: The model gave values that are not finite.
    """
    clock, kept = BlockClock(device), []
    decode = vae.streaming_decoder()

    def generated() -> Iterator[Tensor]:
        for latents in clock.blocks(blocks):
            kept.append(latents)
            yield latents

    if overlaps:
        decoded = decode_behind(generated(), decode)
    else:
        decoded = (clock.decoding(decode, latents) for latents in generated())
    video = torch.cat([to_unit_range(pixels).cpu() for pixels in decoded], dim=1)
    return Generated(joined(kept), video, clock.seconds())


def streamed_video(blocks: Iterable[Tensor], vae: VideoCodec, overlaps: bool = False) -> Iterator[Tensor]:
    """Yield the pixels of each block, `[B, t, 3, H, W]` in [0, 1] on the CPU, and keep none.

    Arguments and errors as in `whole_video`.
    """
    decode = vae.streaming_decoder()
    for pixels in decode_behind(blocks, decode) if overlaps else map(decode, blocks):
        if not bool(torch.isfinite(pixels).all()):
            raise RuntimeError(_NOT_FINITE)
        yield to_unit_range(pixels).cpu()


def joined(blocks: list[Tensor]) -> Tensor:
    """Join the latents of a video's blocks, `[B, F, C, h, w]`.

    Raises:
        RuntimeError: They hold values that are not finite.
    """
    latents = torch.cat(blocks, dim=1)
    if not bool(torch.isfinite(latents).all()):
        raise RuntimeError(_NOT_FINITE)
    return latents


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

"""From noise to blocks of latents, and on to a video: whole or streamed, decoded beside the next denoising or after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_action.action.conditioning import BlockModulation
from lightning_action.batch import to_unit_range
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import frame_noise, starting_from
from lightning_action.frozen.interfaces import StreamingDecoder
from lightning_action.generation.captured_pass import CapturedPass
from lightning_action.generation.rollout import CausalRollout, rollout
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.attention import Kernel, attend_dense
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.image import NO_IMAGE, ImageCondition
from lightning_action.generator.model import CausalWanModel


@dataclass(frozen=True)
class VideoGenerator:
    """A generator with the settings by which it turns noise into videos.

    Args:
        generator: Network that predicts velocities.
        causality: Block size, window and sink.
        sampling: Sampler, action guidance and random seed.
        schedule: Noise levels.
        captures: Whether the pass behind a full window is captured, see `CapturedPass`.
        kernel: Function that computes self-attention.
    """

    generator: CausalWanModel
    causality: BlockCausality
    sampling: Sampling
    schedule: FlowMatchSchedule
    captures: bool = False
    kernel: Kernel = attend_dense

    def stream_latents(
        self,
        text: Tensor,
        sample_id: Sequence[int],
        shape: tuple[int, int, int, int],
        modulation: Tensor | BlockModulation | None = None,
        initial: Tensor | None = None,
        first_noise: Tensor | None = None,
        image: ImageCondition = NO_IMAGE,
    ) -> Iterator[Tensor]:
        """Generate a batch of videos block by block; asking for a block generates it.

        Args:
            text: Encoded prompts, `[B, L, text_dim]`, on the device and of the dtype to compute in.
            sample_id: Number of each of B videos, to which its noise belongs.
            shape: Shape of the latents of a video, (F, C, h, w).
            modulation: Modulation of the video, or what gives it block by block, see `rollout`.
            initial: Latents that the video starts with, `[B, F0, C, h, w]`.
            first_noise: Noise of the first denoising step, `[B, F, C, h, w]`, in place of that of `sample_id`.
            image: Condition that an image-to-video model sees besides.

        Yields:
            Clean latents of a block, `[B, block, C, h, w]`, the initial ones first.

        Raises:
            ValueError: The frames are not a whole number of blocks, or initial latents or modulation do not fit.
        """
        num_frames, *latent_shape = shape
        noise = frame_noise(self.sampling.seed, sample_id, latent_shape, text.device, text.dtype)
        session = CausalRollout(
            self.generator,
            text,
            self.causality,
            self.sampling.sampler(self.schedule),
            noise if first_noise is None else starting_from(first_noise, noise),
            (shape[1], shape[2], shape[3]),
            num_frames,
            self.sampling.action_guidance_scale,
            image,
            self.sampling.context,
            self.sampling.first_sampler(self.schedule),
            CapturedPass if self.captures else None,
            self.kernel,
        )
        return rollout(session, num_frames, modulation, initial)


def stream_pixels(blocks: Iterable[Tensor], decode: StreamingDecoder, overlaps: bool = False) -> Iterator[Tensor]:
    """Decode blocks as they come.

    Args:
        blocks: Clean latents of each block, `[B, block, C, h, w]`.
        decode: Decoder of the video's next latents.
        overlaps: Whether a block is decoded while the next one is denoised; on CUDA.

    Yields:
        Pixels of a block, `[B, t, 3, H, W]` in [0, 1].

    Raises:
        RuntimeError: The model gave values that are not finite.
    """
    for pixels in decode_behind(blocks, decode) if overlaps else map(decode, blocks):
        yield to_unit_range(_finite(pixels)).float()


def whole_video(
    blocks: Iterable[Tensor], decode: StreamingDecoder, device: torch.device | str, overlaps: bool = False
) -> tuple[Tensor, Tensor]:
    """Decode each block as soon as it exists, and keep all of them.

    Args:
        blocks: Clean latents of each block, `[B, block, C, h, w]`.
        decode: Decoder of the video's next latents.
        device: Device where the pixels are collected.
        overlaps: Whether a block is decoded while the next one is denoised; on CUDA.

    Returns:
        Pixels `[B, T, 3, H, W]` in [0, 1], and latents `[B, F, C, h, w]`.

    Raises:
        RuntimeError: The model gave values that are not finite.
    """
    kept: list[Tensor] = []

    def remembered() -> Iterator[Tensor]:
        for latents in blocks:
            kept.append(latents)
            yield latents

    decoded = decode_behind(remembered(), decode) if overlaps else map(decode, remembered())
    pixels = torch.cat([to_unit_range(block).float().to(device) for block in decoded], dim=1)
    # Once, at the end: looking at each block would wait for the device before the next one is queued.
    return pixels, _finite(torch.cat(kept, dim=1))


def _finite(values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise RuntimeError(
            "generated latents hold NaN or infinity: check the checkpoint and the actions, or generate in float32"
        )
    return values


def decode_behind(blocks: Iterable[Tensor], decode: StreamingDecoder) -> Iterator[Tensor]:
    """Yield pixels one block late: a block is decoded on a CUDA stream of its own beside the next denoising.

    The work is queued from one thread, so what is computed is the same as without; on other devices so is when.

    Args:
        blocks: Clean latents of each block, `[B, block, C, h, w]`; asking for one queues its denoising.
        decode: Decoder of the video's next latents.

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

"""Generation from noise to blocks of latents to a video: whole or streamed, decoded beside the next denoising or after.

Nobody waits for a block before the next one is queued, but in `stream_pixels`, where its pixels are asked for at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import tee
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from lightning_action.action.conditioning import BlockModulation
from lightning_action.batch import to_bytes, to_unit_range
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import NoiseSource, frame_noise, starting_from
from lightning_action.diffusion.samplers import Sampler
from lightning_action.frozen.interfaces import StreamingDecoder
from lightning_action.generation.captured_pass import CapturedPass
from lightning_action.generation.rollout import CausalRollout, rollout
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.attention import Kernel, attend_dense
from lightning_action.generator.attention_kernels import hold_attention_kernels
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.image import NO_IMAGE, ImageCondition
from lightning_action.generator.model import CausalWanModel

T = TypeVar("T")


@dataclass(frozen=True)
class VideoGenerator:
    """A generator with the settings by which it turns noise into videos.

    Args:
        generator: Network that predicts velocities.
        causality: Block size, window and sink.
        sampling: Sampler, action guidance and random seed.
        schedule: Noise levels.
        captures: True if the pass behind a full window is captured, see `CapturedPass`.
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
        negative_text: Tensor | None = None,
        switches: Mapping[int, Tensor] = MappingProxyType({}),
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
            negative_text: Encoded negative prompts, `[B, L, text_dim]`; only guidance by prompts needs them.
            switches: Encoded prompts by the latent frame from which on they hold, see `rollout`.

        Yields:
            Clean latents of a block, `[B, block, C, h, w]`, the initial ones first.

        Raises:
            ValueError: The frames are not a whole number of blocks, or initial latents, modulation or switches do not
                fit.
        """
        num_frames, *latent_shape = shape
        noise = frame_noise(self.sampling.seed, sample_id, latent_shape, text.device, text.dtype)
        if first_noise is not None:
            noise = starting_from(first_noise, noise)
        session = self.begin(text, noise, shape, image, negative_text)
        return rollout(session, num_frames, modulation, initial, switches)

    def begin(
        self,
        text: Tensor,
        noise: NoiseSource,
        shape: tuple[int, int, int, int],
        image: ImageCondition = NO_IMAGE,
        negative_text: Tensor | None = None,
        sampler: Sampler | None = None,
    ) -> CausalRollout:
        """Make the rollout of a batch of videos, before their first frame.

        Args:
            text: Encoded prompts, `[B, L, text_dim]`, on the device and of the dtype to compute in.
            noise: Source of noise of the videos.
            shape: Shape of the latents of a video, (F, C, h, w); F only matters where the window is unlimited.
            image: Condition that an image-to-video model sees besides.
            negative_text: Encoded negative prompts, `[B, L, text_dim]`; only guidance by prompts needs them.
            sampler: Way from noise to all blocks; None takes those of `sampling`.
        """
        hold_attention_kernels(text.device)
        num_frames, *latent_shape = shape
        return CausalRollout(
            self.generator,
            text,
            self.causality,
            sampler or self.sampling.sampler(self.schedule),
            noise,
            (latent_shape[0], latent_shape[1], latent_shape[2]),
            num_frames,
            guidance=self.sampling.guidance,
            negative_text=negative_text,
            image=image,
            context=self.sampling.context,
            first_sampler=sampler or self.sampling.first_sampler(self.schedule),
            capture=CapturedPass if self.captures else None,
            kernel=self.kernel,
            relative_positions=self.sampling.relative_positions,
        )


def stream_pixels(blocks: Iterable[Tensor], decode: StreamingDecoder) -> Iterator[Tensor]:
    """Decode blocks as they come.

    Args:
        blocks: Clean latents of each block, `[B, block, C, h, w]`.
        decode: Decoder of the video's next latents.

    Yields:
        Pixels of a block, `[B, t, 3, H, W]` in [0, 1], on the decoder's device.

    Raises:
        RuntimeError: The model gave values that are not finite.
    """
    return map(partial(block_pixels, decode=decode), blocks)


def block_pixels(latents: Tensor, decode: StreamingDecoder) -> Tensor:
    """Decode one block of `stream_pixels`."""
    decoded = decode(latents)
    pixels, finite = to_unit_range(decoded).float(), _is_finite(latents, decoded)
    # This waits for the device, as whoever takes the pixels does.
    _require_finite([finite])
    return pixels


def whole_video(
    blocks: Iterable[Tensor], decode: StreamingDecoder, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Decode each block as soon as it exists, and keep all of them.

    Args:
        blocks: Clean latents of each block, `[B, block, C, h, w]`.
        decode: Decoder of the video's next latents.
        device: Device where the pixels are collected.

    Returns:
        Pixels `[B, T, 3, H, W]` in [0, 1], and latents `[B, F, C, h, w]`.

    Raises:
        RuntimeError: The model gave values that are not finite.
    """
    kept, pixels, finite = [], [], []
    for latents in blocks:
        decoded = decode(latents)
        kept.append(latents)
        pixels.append(to_unit_range(decoded).float().to(device))
        finite.append(_is_finite(latents, decoded))
    _require_finite(finite)
    return torch.cat(pixels, dim=1), torch.cat(kept, dim=1)


def video_on_host(blocks: Iterable[Tensor], decode: StreamingDecoder, overlaps: bool = False) -> tuple[Tensor, Tensor]:
    """Do as `whole_video`, but collect the pixels on the host, see `to_host`: each is a multiple of 1/255."""
    blocks, kept = tee(blocks)
    pixels, finite = [], []
    for as_bytes, is_finite in to_host(blocks, decode, overlaps):
        pixels.append(as_bytes.float() / 255)
        finite.append(is_finite)
    _require_finite(finite)
    return torch.cat(pixels, dim=1), torch.cat(list(kept), dim=1)


def to_host(
    blocks: Iterable[Tensor], decode: StreamingDecoder, overlaps: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Decode blocks, and bring their pixels to the host as bytes, one block late, see `one_block_late`.

    On CUDA the bytes are copied to pinned memory on a stream of their own.

    Args:
        blocks: Clean latents of each block, `[B, block, C, h, w]`; asking for one queues its denoising.
        decode: Decoder of the video's next latents.
        overlaps: True if a block is decoded while the next one is denoised; on CUDA.

    Yields:
        Bytes of a block, uint8 `[B, t, 3, H, W]`, and whether its latents and pixels are finite, a bool of shape `[]`;
        both on the host. Where they are not, the bytes mean nothing.
    """

    def deliver(latents: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        decoded = decode(latents)
        return _begin_copies(to_bytes(decoded), _is_finite(latents, decoded))

    for arrived in one_block_late(blocks, on_own_stream(deliver) if overlaps else deliver):
        yield arrived()


def one_block_late(blocks: Iterable[Tensor], work: Callable[[Tensor], T]) -> Iterator[T]:
    """Yield what is made of each block when the next one was asked for: who waits for it keeps no device waiting.

    Args:
        blocks: Clean latents of each block, `[B, block, C, h, w]`; asking for one queues its denoising.
        work: Function of a block's latents, called before the next block is asked for.
    """
    pending: list[T] = []
    for latents in blocks:
        yield from pending
        pending = [work(latents)]
    yield from pending


def on_own_stream(work: Callable[[Tensor], T]) -> Callable[[Tensor], T]:
    """Return a function that does the same, on CUDA on a stream of its own, behind what is queued so far.

    It is queued from the same thread, so what is computed is the same. The result must be waited for.
    """

    def on_side(latents: Tensor) -> T:
        side = _stream(latents.device, "decoding")
        if side is None:
            return work(latents)
        side.wait_stream(torch.cuda.current_stream(latents.device))
        latents.record_stream(side)
        with torch.cuda.stream(side):
            return work(latents)

    return on_side


def _begin_copies(pixels: Tensor, finite: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """Begin to copy to the host; the function that comes back waits for that alone, and gives the copies."""
    stream = _stream(finite.device, "copying")
    if stream is None:
        return lambda: (_host_copy(pixels), _host_copy(finite))
    stream.wait_stream(torch.cuda.current_stream(finite.device))
    with torch.cuda.stream(stream):
        copies = _host_copy(pixels), _host_copy(finite)
        event = stream.record_event()
    for value in (pixels, finite):
        # Else its memory may serve the current stream anew while it is being copied.
        value.record_stream(stream)

    def arrived() -> tuple[Tensor, Tensor]:
        event.synchronize()
        return copies

    return arrived


def _host_copy(value: Tensor) -> Tensor:
    place = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=value.is_cuda)
    return place.copy_(value, non_blocking=True)


@cache
def _stream(device: torch.device, work: str) -> torch.cuda.Stream | None:
    """One stream for each kind of work, on each CUDA device."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def _is_finite(latents: Tensor, pixels: Tensor) -> Tensor:
    """Tell if both are finite, as a bool of shape `[]` that nobody has waited for: decoders may bound what is not."""
    return torch.isfinite(latents).all() & torch.isfinite(pixels).all()


def _require_finite(found: Sequence[Tensor]) -> None:
    """Wait for the blocks of which `found` tells whether they are finite: once, when all of them are queued."""
    if not bool(torch.stack(list(found)).all()):
        raise RuntimeError(
            "generated latents or their pixels hold NaN or infinity: check the checkpoint and the actions, or generate "
            "in float32"
        )

"""Encoding of clips by the frozen parts, once, with no more than a part of a video in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_action.action.schema import ActionSchema
from lightning_action.batch import num_latent_frames, num_pixel_frames
from lightning_action.data.latent_store import WindowStarts
from lightning_action.data.split_data import Locator, Split
from lightning_action.frozen.holder import FrozenParts
from lightning_action.recordings.clips import Clip

# Latent frames that are read and encoded at a time.
_PART_LATENTS = 16


@runtime_checkable
class ClipData(Protocol):
    """A DataModule that offers whole clips, so that they can be encoded once."""

    @property
    def action_schema(self) -> ActionSchema | None:
        """Meaning of the action rows; None where there are none."""
        ...

    def clips(self, split: Split) -> Sequence[Clip]:
        """Return the clips of a split; their order is the same in every run."""
        ...


@dataclass(frozen=True)
class ClipPiece:
    """A part of a clip, which is a `Clip` itself, named with the frame that it begins with."""

    clip: Clip
    start: int
    num_frames: int

    @property
    def name(self) -> str:
        return f"{self.clip.name} from frame {self.start}"

    @property
    def fps(self) -> float:
        return self.clip.fps

    @property
    def prompt(self) -> str:
        return self.clip.prompt

    @property
    def has_actions(self) -> bool:
        return self.clip.has_actions

    def video(self, start: int, num_frames: int) -> Tensor:
        return self.clip.video(self.start + start, num_frames)

    def action(self, start: int, num_frames: int) -> Tensor:
        return self.clip.action(self.start + start, num_frames)


def cut_clip(clip: Clip, max_latents: int, temporal_compression_ratio: int) -> list[Clip]:
    """Cut a clip into pieces of so many latent frames, of which the last one may be shorter; none has a past."""
    length = num_pixel_frames(max_latents, temporal_compression_ratio)
    starts = range(0, clip.num_frames, length)
    return [ClipPiece(clip, start, min(length, clip.num_frames - start)) for start in starts]


def encode_clip(
    frozen: FrozenParts,
    clip: Clip,
    frame_size: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    locator: Locator | None = None,
    window_starts: WindowStarts = "anywhere",
    progress: Callable[[int], object] = lambda num_frames: None,
) -> dict[str, Tensor]:
    """Encode a clip as a store holds it.

    Args:
        frozen: Frozen parts, of which the VAE encodes.
        clip: Clip of any length; what fills no latent frame at its end is left out.
        frame_size: Height and width that its frames must have.
        dtype: Dtype of the latents.
        device: Device that the VAE runs on.
        locator: Function that finds an object in the frames; None keeps no positions.
        window_starts: Latent frames that windows may begin at; for `clip_start` there is no `first`.
        progress: Function that is told how many frames were encoded since the last time.

    Returns:
        `latents` and `first`, `[F, C, h, w]` both, `action` `[rows, columns]` if the clip has actions, and `position`
        `[T, 2]` in pixels if there is a locator.

    Raises:
        ValueError: Frames have another size, or something is not finite.
    """
    ratio = frozen.vae.temporal_compression_ratio
    num_latents = num_latent_frames(clip.num_frames, ratio)
    first: list[Tensor] = []
    positions: list[Tensor] = []

    def parts() -> Iterator[Tensor]:
        position = 0
        for start in range(0, num_latents, _PART_LATENTS):
            stop = num_pixel_frames(min(start + _PART_LATENTS, num_latents), ratio)
            part = _read_frames(clip, range(position, stop), frame_size)
            if window_starts == "anywhere":
                alone = part[(-position) % ratio :: ratio]
                first.append(frozen.encode_video(alone[:, None], device)[:, 0].to("cpu", dtype))
            if locator is not None:
                positions.append(locator(part[None])[0][0].float())
            yield part[None]
            progress(stop - position)
            position = stop

    latents = torch.cat([part[0].to("cpu", dtype) for part in frozen.encode_parts(parts(), device)])
    tensors = {"latents": latents}
    if window_starts == "anywhere":
        tensors["first"] = torch.cat(first)
    if locator is not None:
        tensors["position"] = torch.cat(positions)
    if clip.has_actions:
        tensors["action"] = clip.action(0, num_pixel_frames(num_latents, ratio)).float()
    return tensors


def _read_frames(clip: Clip, frames: range, frame_size: tuple[int, int]) -> Tensor:
    """Read frames `[T, 3, H, W]`; errors name the clip and the frames."""
    told = f"frames {frames.start} to {frames.stop - 1}"
    try:
        video = clip.video(frames.start, len(frames))
    except ValueError as error:
        raise ValueError(f"{clip.name}, {told}: {error}") from error
    if tuple(video.shape) != (len(frames), 3, *frame_size):
        raise ValueError(
            f"{clip.name}: expected {told} of {frame_size[0]} x {frame_size[1]}, got {list(video.shape)}: a store "
            "holds videos of one size"
        )
    return video


def encode_prompt(frozen: FrozenParts, prompt: str, device: torch.device | str = "cpu") -> Tensor:
    """Encode a prompt as `[L, text_dim]`, as long as it is, and at least one row; in the dtype that it comes in."""
    encoded = frozen.encode_text([prompt], device, dtype=None)[0].cpu()
    filled = encoded.any(dim=1).nonzero()
    return encoded[: int(filled.max()) + 1 if len(filled) else 1].clone()

"""Samples that are made when they are asked for, and how they are had as clips."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from lightning_action.data.split_data import SPLITS, SampleDataset, Split


class MadeSamples(SampleDataset):
    """Samples of one split, each of `num_frames` pixel frames, that follow from (seed, split, index)."""

    def __init__(self, split: Split, seed: int, size: int, num_frames: int) -> None:
        self.split, self.seed, self.size, self.num_frames = split, seed, size, num_frames
        self._stream = (seed, SPLITS.index(split))

    def __len__(self) -> int:
        return self.size

    @abstractmethod
    def prompt(self, index: int) -> str:
        """Return the prompt of a sample, whose video and actions are not made for it."""

    @abstractmethod
    def video(self, index: int) -> Tensor:
        """Return the video `[T, 3, H, W]` of a sample, in [-1, 1]."""

    @abstractmethod
    def action(self, index: int) -> Tensor:
        """Return the action rows `[T - 1, columns]` that its video shows."""

    def clips(self, fps: float) -> list[SampleClip]:
        """Return each sample as a clip."""
        return [SampleClip(self, index, fps) for index in range(len(self))]


@dataclass(frozen=True)
class SampleClip:
    """A sample as a `Clip`."""

    samples: MadeSamples
    index: int
    fps: float
    has_actions = True

    @property
    def name(self) -> str:
        return f"{self.samples.split}-{self.index}-seed-{self.samples.seed}"

    @property
    def num_frames(self) -> int:
        return self.samples.num_frames

    @property
    def prompt(self) -> str:
        return self.samples.prompt(self.index)

    def video(self, start: int, num_frames: int) -> Tensor:
        self._require_frames(start, num_frames)
        return self.samples.video(self.index)[start : start + num_frames]

    def action(self, start: int, num_frames: int) -> Tensor:
        self._require_frames(start, num_frames)
        return self.samples.action(self.index)[start : max(start, start + num_frames - 1)]

    def _require_frames(self, start: int, num_frames: int) -> None:
        if not 0 <= start <= start + num_frames <= self.num_frames:
            raise ValueError(f"{self.name} has {self.num_frames} frames, not {num_frames} from {start} on")

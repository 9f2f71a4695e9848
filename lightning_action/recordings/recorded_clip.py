"""A recorded episode as a clip at the frame rate of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_action.action.schema import Alignment
from lightning_action.recordings.frame_fit import FrameFit
from lightning_action.recordings.recording import Episode

# Part by which two rates may differ and be the same: 30000/1001 is written 29.97, and called 30.
_SAME = 1.1e-3


@dataclass(frozen=True)
class Timing:
    """The frame rate of a recording, and that of the model.

    The model's frame k is the recorded frame that was the last one at its time, or that very one if one is a multiple
    of the other. Action row m of `rows_per_frame` s is the recorded row in force at the time `m / s` of the model's
    frames: each recorded row once, if the rates divide. Rates that divide to a thousandth do, such as 30000/1001 and
    29.97 or 30.

    Args:
        recorded_fps: Number of recorded frames of a second.
        fps: Number of the model's frames of a second, at most as many, to a thousandth.

    Raises:
        ValueError: The model's rate is not positive, or higher than the recorded one.
    """

    recorded_fps: float
    fps: float

    def __post_init__(self) -> None:
        if not 0 < self.fps <= self.recorded_fps * (1 + _SAME):
            raise ValueError(
                f"expected 0 < fps <= {self.recorded_fps:g}, the rate of the recording, got {self.fps:g}: frames that "
                "were not recorded cannot be shown"
            )

    @property
    def rows_per_frame(self) -> int:
        """Number of action rows of each of the model's frames."""
        return max(1, round(self.recorded_fps / self.fps))

    @property
    def divides(self) -> bool:
        """True if each recorded row is in force exactly once."""
        return math.isclose(self.recorded_fps, self.fps * self.rows_per_frame, rel_tol=_SAME)

    def num_frames(self, num_recorded: int) -> int:
        """Number of the model's frames in so many recorded ones."""
        return 1 + math.floor((num_recorded - 1) / self._step + 1e-6)

    def frames(self, start: int, num_frames: int) -> list[int]:
        """Recorded frames of the model's frames from `start` on."""
        return [self._in_force(frame) for frame in range(start, start + num_frames)]

    def rows(self, start: int, num_frames: int, alignment: Alignment) -> list[int]:
        """Recorded rows of the model's frames from `start` on; `state` has one row more, that of the first frame."""
        per_frame = self.rows_per_frame
        count = per_frame * (num_frames - 1) + (alignment == "state")
        return [self._in_force((start * per_frame + row) / per_frame) for row in range(count)]

    def _in_force(self, frame: float) -> int:
        return math.floor(frame * self._step + 1e-6)

    @property
    def _step(self) -> float:
        """Number of recorded frames of one of the model's."""
        return self.rows_per_frame if self.divides else self.recorded_fps / self.fps


@dataclass(frozen=True)
class RecordedClip:
    """A `Clip` of an episode, whose cameras stand side by side.

    Args:
        episode: Recorded frames and action rows.
        timing: Frame rates of the recording and of the model.
        alignment: Rule of which rows belong to which frame, `transition` or `state`.
        fit: Rule by which the frames of each camera get their size.
    """

    episode: Episode
    timing: Timing
    alignment: Alignment
    fit: FrameFit

    @property
    def name(self) -> str:
        return self.episode.name

    @property
    def prompt(self) -> str:
        return self.episode.prompt

    @property
    def num_frames(self) -> int:
        return self.timing.num_frames(self.episode.num_frames)

    @property
    def fps(self) -> float:
        return self.timing.fps

    @property
    def has_actions(self) -> bool:
        return self.episode.rows is not None

    def video(self, start: int, num_frames: int) -> Tensor:
        indices = self.timing.frames(start, num_frames)
        return torch.cat([self.fit(read(indices)) for read in self.episode.cameras], dim=-1)

    def action(self, start: int, num_frames: int) -> Tensor:
        if self.episode.rows is None:
            raise ValueError(f"{self.name} was recorded without actions")
        return torch.from_numpy(self.episode.rows[self.timing.rows(start, num_frames, self.alignment)])

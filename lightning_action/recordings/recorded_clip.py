"""A recorded episode as a clip at the frame rate of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_action.action.schema import Alignment
from lightning_action.recordings.frame_fit import FrameFit
from lightning_action.recordings.recording import Frames

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
        """Whether each recorded row is in force exactly once."""
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
    """A `Clip` of recorded frames and action rows.

    Args:
        name: Name in messages and in an index.
        prompt: Description of what the video shows.
        cameras: Recorded frames of each camera; several are shown side by side.
        num_recorded: Number of recorded frames.
        rows: Action rows `[num_recorded, columns]`, row k recorded with frame k; None for none.
        timing: Frame rates of the recording and of the model.
        alignment: Rule of which rows belong to which frame, `transition` or `state`.
        fit: Rule by which the frames of each camera get their size.
    """

    name: str
    prompt: str
    cameras: tuple[Frames, ...]
    num_recorded: int
    rows: np.ndarray | None
    timing: Timing
    alignment: Alignment
    fit: FrameFit

    @property
    def num_frames(self) -> int:
        """Number of pixel frames at the model's rate."""
        return self.timing.num_frames(self.num_recorded)

    @property
    def fps(self) -> float:
        """Number of the model's frames of a second."""
        return self.timing.fps

    @property
    def has_actions(self) -> bool:
        """Whether it was recorded with actions."""
        return self.rows is not None

    def video(self, start: int, num_frames: int) -> Tensor:
        """Read frames `[num_frames, 3, H, W]` in [-1, 1], the first of which is frame `start`."""
        indices = self.timing.frames(start, num_frames)
        return torch.cat([self.fit(read(indices)) for read in self.cameras], dim=-1)

    def action(self, start: int, num_frames: int) -> Tensor:
        """Take the action rows `[rows, columns]` of these frames.

        Raises:
            ValueError: The clip has no actions.
        """
        if self.rows is None:
            raise ValueError(f"{self.name} was recorded without actions")
        return torch.from_numpy(self.rows[self.timing.rows(start, num_frames, self.alignment)])

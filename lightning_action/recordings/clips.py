"""A recorded video at the frame rate of the model: what every format and simulator offers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Clip(Protocol):
    """A video, of which frames and action rows are read when they are asked for."""

    @property
    def name(self) -> str:
        """Name in messages and in an index, the same in every run."""
        ...

    @property
    def num_frames(self) -> int:
        """Number of pixel frames, at `fps`."""
        ...

    @property
    def fps(self) -> float:
        """Number of frames of a second."""
        ...

    @property
    def prompt(self) -> str:
        """Description of what the video shows; empty for none."""
        ...

    @property
    def has_actions(self) -> bool:
        """True if it was recorded with actions."""
        ...

    def video(self, start: int, num_frames: int) -> Tensor:
        """Read some frames `[num_frames, 3, H, W]` in [-1, 1], the first of which is frame `start`."""
        ...

    def action(self, start: int, num_frames: int) -> Tensor:
        """Read the action rows `[rows, columns]` of these frames, as many as the schema wants for them.

        Raises:
            ValueError: The clip has no actions.
        """
        ...

"""A recorded video at the frame rate of the model: what every format and simulator offers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Clip(Protocol):
    """A video, of which frames and action rows are read when they are asked for.

    Args:
        name: Name in messages and in an index, the same in every run.
        num_frames: Number of pixel frames, at `fps`.
        fps: Number of frames of a second.
        prompt: Description of what the video shows; empty for none.
        has_actions: Whether it was recorded with actions.
    """

    name: str
    num_frames: int
    fps: float
    prompt: str
    has_actions: bool

    def video(self, start: int, num_frames: int) -> Tensor:
        """Read some frames `[num_frames, 3, H, W]` in [-1, 1], the first of which is frame `start`."""
        ...

    def action(self, start: int, num_frames: int) -> Tensor:
        """Read the action rows `[rows, columns]` of these frames, as many as the schema wants for them.

        Raises:
            ValueError: The clip has no actions.
        """
        ...

"""A recording: what every reader of a format gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_action.recordings.recorded_clip import Frames


@dataclass(frozen=True)
class Episode:
    """An episode, or the part of one in which the task is the same.

    Args:
        index: Number of the episode, by which it is chosen and put into a split.
        name: Name in messages.
        prompt: Description of what the video shows.
        cameras: Recorded frames of each camera.
        num_frames: Number of recorded frames.
        frame_size: Height and width of the frames of the first camera.
        rows: Action rows `[num_frames, columns]`, float32, row k recorded with frame k; None for none.
    """

    index: int
    name: str
    prompt: str
    cameras: tuple[Frames, ...]
    num_frames: int
    frame_size: tuple[int, int]
    rows: np.ndarray | None


@dataclass(frozen=True)
class Recording:
    """Episodes of one data set.

    Args:
        fps: Number of recorded frames of a second.
        columns: Names of the columns of the action rows; empty where there are none.
        classes: Whether the columns are stored as whole numbers, each of which is a class.
        episodes: Episodes, in the order of their numbers.
        passed_over: Line that says which episodes were passed over, and why; empty for none.
    """

    fps: float
    columns: list[str]
    classes: bool
    episodes: list[Episode]
    passed_over: str = ""


def require_finite(rows: np.ndarray) -> None:
    """Refuse action rows that hold NaN or infinity.

    Raises:
        ValueError: They do; the message has row and column.
    """
    broken = np.argwhere(~np.isfinite(rows))
    if len(broken):
        row, column = broken[0].tolist()
        raise ValueError(f"its actions hold {rows[row, column]} at frame {row}, column {column}")

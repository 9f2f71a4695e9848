"""A recording: what every reader of a format gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Frames = Callable[[list[int]], np.ndarray]
"""Reads recorded frames by their numbers, `[n, H, W, 3]`, uint8 RGB; processes that load data get it by pickle."""


@dataclass(frozen=True)
class Episode:
    """An episode, or the part of one in which the task is the same.

    Args:
        index: Number of the episode, by which it is chosen and put into a split.
        name: Name in messages.
        prompt: Description of what the video shows.
        cameras: Recorded frames of each camera.
        num_frames: Number of recorded frames.
        frame_sizes: Height and width of the frames of each camera.
        rows: Action rows `[num_frames, columns]`, float32, row k recorded with frame k; None for none.
        file: File that messages name beside the name; empty where the name says it.
    """

    index: int
    name: str
    prompt: str
    cameras: tuple[Frames, ...]
    num_frames: int
    frame_sizes: tuple[tuple[int, int], ...]
    rows: np.ndarray | None
    file: str = ""


@dataclass(frozen=True)
class Recording:
    """Episodes of one data set.

    Args:
        fps: Number of recorded frames of a second.
        columns: Names of the columns of the action rows; empty where there are none.
        classes: True if the columns are stored as whole numbers, each of which is a class.
        episodes: Episodes, in the order of their numbers.
        passed_over: Line that says which episodes were passed over, and why; empty for none.
    """

    fps: float
    columns: list[str]
    classes: bool
    episodes: list[Episode]
    passed_over: str = ""

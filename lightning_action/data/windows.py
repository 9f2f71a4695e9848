"""Windows of a fixed length, cut out of clips of any length, as samples."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lightning_action.batch import Batch
from lightning_action.data.split_data import Locator, SampleDataset
from lightning_action.recordings.clips import Clip


class WindowPlaces:
    """Places of windows in clips, `step` frames from one to the next; none crosses into another clip.

    A clip that is shorter than a window has none.
    """

    def __init__(self, lengths: Iterable[int], num_frames: int, step: int) -> None:
        self.step = step
        self.counts = [max(0, 1 + (length - num_frames) // step) for length in lengths]
        self._ends = list(accumulate(self.counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Return which clip a window is cut from, and the frame of it that the window begins at."""
        if not 0 <= index < len(self):
            raise IndexError(f"there are windows 0 to {len(self) - 1}, not {index}")
        number = bisect_right(self._ends, index)
        first = self._ends[number - 1] if number else 0
        return number, (index - first) * self.step


class WindowDataset(SampleDataset):
    """Dataset of all windows of `num_frames` pixel frames in some clips, `step` frames from one to the next.

    A sample is a dict: `video` `[T, 3, H, W]` in [-1, 1], `action` `[rows, columns]` (None without actions), `prompt`,
    `sample_id`, and the name `clip` and first frame `start` of the window.
    """

    def __init__(self, clips: Sequence[Clip], num_frames: int, step: int) -> None:
        self.clips, self.num_frames = clips, num_frames
        self._places = WindowPlaces((clip.num_frames for clip in clips), num_frames, step)

    def __len__(self) -> int:
        return len(self._places)

    def place(self, index: int) -> tuple[Clip, int]:
        """Return the clip of a window, and the window's first frame in it."""
        number, start = self._places[index]
        return self.clips[number], start

    def command(self, index: int) -> Batch:
        clip, start = self.place(index)
        action = clip.action(start, self.num_frames) if clip.has_actions else None
        return {"sample_id": index, "action": action, "prompt": clip.prompt, "clip": clip.name, "start": start}

    def __getitem__(self, index: int) -> Batch:
        clip, start = self.place(index)
        try:
            return {**self.command(index), "video": clip.video(start, self.num_frames)}
        except ValueError as error:
            raise ValueError(f"{clip.name}, window from frame {start}: {error}") from error


def collate_windows(samples: list[Batch], some_action: Tensor | None, locator: Locator | None) -> Batch:
    """Make a batch of samples, of which some may have no action.

    Args:
        samples: Samples of a `WindowDataset`.
        some_action: Action rows that stand in the place of those that were not recorded, and that nobody reads; None
            where no clip has actions.
        locator: Function that finds an object in videos; what it finds is the batch's `position` `[B, T, 2]`.
    """
    batch: dict[str, Any] = {
        "video": torch.stack([sample["video"] for sample in samples]),
        "prompt": [sample["prompt"] for sample in samples],
        "sample_id": torch.tensor([sample["sample_id"] for sample in samples]),
        "action": None,
    }
    if some_action is not None:
        actions = [sample["action"] for sample in samples]
        batch["action"] = torch.stack([some_action if action is None else action for action in actions])
        if any(action is None for action in actions):
            batch["has_action"] = torch.tensor([action is not None for action in actions])
    if locator is not None:
        batch["position"] = locator(batch["video"])[0]
    return batch

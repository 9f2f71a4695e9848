from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lightning_action.data.windows import WindowDataset, WindowPlaces, collate_windows


@dataclass
class CountingClip:
    """Frames that show their number, in hundredths, and action rows that say it."""

    name: str
    num_frames: int
    has_actions: bool = True
    prompt: str = "a disc"
    fps: float = 10.0

    def video(self, start: int, num_frames: int) -> Tensor:
        if self.name == "broken":
            raise ValueError("no frame 3")
        return torch.arange(start, start + num_frames)[:, None, None, None].expand(-1, 3, 2, 5) / 100

    def action(self, start: int, num_frames: int) -> Tensor:
        return torch.arange(start, start + num_frames - 1.0)[:, None]


def test_places_by_hand() -> None:
    """Windows of 5 frames, 3 apart, of clips of 11, 4, 5 and 8 frames: the second has none."""
    places = WindowPlaces([11, 4, 5, 8], 5, 3)
    assert places.counts == [3, 0, 1, 2] and len(places) == 6
    assert [places[index] for index in range(6)] == [(0, 0), (0, 3), (0, 6), (2, 0), (3, 0), (3, 3)]
    for index in (-1, 6):
        with pytest.raises(IndexError, match=f"there are windows 0 to 5, not {index}"):
            places[index]
    assert len(WindowPlaces([], 5, 3)) == 0


def test_a_sample_is_a_window_of_one_clip() -> None:
    first, second = CountingClip("a", 4), CountingClip("b", 7, prompt="two discs")
    windows = WindowDataset([first, second], num_frames=3, step=2)
    assert len(windows) == 4 and windows.place(3) == (second, 4)
    sample = windows[3]
    assert (sample["video"][:, 0, 0, 0] * 100).round().tolist() == [4, 5, 6]
    assert sample["action"].tolist() == [[4], [5]]
    assert (sample["sample_id"], sample["prompt"], sample["clip"], sample["start"]) == (3, "two discs", "b", 4)
    command = windows.command(3)
    assert command.keys() == sample.keys() - {"video"} and torch.equal(command["action"], sample["action"])


def test_a_clip_that_cannot_be_read_is_named() -> None:
    windows = WindowDataset([CountingClip("broken", 7)], num_frames=3, step=2)
    assert windows.command(1)["clip"] == "broken"
    with pytest.raises(ValueError, match="^broken, window from frame 2: no frame 3$"):
        windows[1]


def test_samples_without_actions_stand_beside_others() -> None:
    windows = WindowDataset([CountingClip("a", 3), CountingClip("b", 3, has_actions=False)], 3, 1)
    batch = collate_windows([windows[1], windows[0]], torch.full((2, 1), 9.0), None)
    assert batch["action"].tolist() == [[[9], [9]], [[0], [1]]] and batch["has_action"].tolist() == [False, True]
    assert batch["video"].shape == (2, 3, 3, 2, 5) and batch["sample_id"].tolist() == [1, 0]
    assert batch["prompt"] == ["a disc", "a disc"] and "position" not in batch
    assert "has_action" not in collate_windows([windows[0]], torch.full((2, 1), 9.0), None)
    without = collate_windows([windows[1]], None, None)
    assert without["action"] is None and "has_action" not in without


def test_positions_are_those_that_the_locator_finds() -> None:
    windows = WindowDataset([CountingClip("a", 3)], 3, 1)
    batch = collate_windows([windows[0]], None, lambda video: (video[:, :, 0, 0, :2], torch.ones(1, 3).bool()))
    assert torch.equal(batch["position"], batch["video"][:, :, 0, 0, :2])

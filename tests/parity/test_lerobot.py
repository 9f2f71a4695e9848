"""Agreement with what the lerobot library decodes from data sets that it wrote itself.

Each folder NAME of `LIGHTNING_ACTION_LEROBOT_DIR` is compared with `truth_NAME.npz` beside it: for some indices `idx`
of frames, counted through all episodes, the `frames`, `action` and `task` in a window from two frames before to five
after, which repeats the first and the last frame of the episode at its edges.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lightning_action.recordings.lerobot import read_lerobot
from lightning_action.recordings.local_folder import LocalFolder

HERE = Path(__file__).resolve().parents[1] / "data" / "lerobot"
ROOT = Path(os.environ.get("LIGHTNING_ACTION_LEROBOT_DIR", HERE))
BEFORE, AFTER = 2, 5


def names() -> list[str]:
    return sorted(path.stem.removeprefix("truth_") for path in ROOT.glob("truth_*.npz"))


def test_there_is_something_to_compare() -> None:
    assert names()


@pytest.mark.parametrize("name", names())
def test_frames_actions_and_tasks_are_those_of_the_library(name: str) -> None:
    recording = read_lerobot(LocalFolder(str(ROOT / name)))
    truth = np.load(ROOT / f"truth_{name}.npz")
    # Parts of an episode in which the task is the same follow each other; frames are counted through all of them.
    places = [(episode, frame) for episode in recording.episodes for frame in range(episode.num_frames)]
    whole = np.array([episode.index for episode, _ in places])
    for sample, index in enumerate(truth["idx"].tolist()):
        own = np.flatnonzero(whole == whole[index])
        window = [places[i] for i in np.clip(np.arange(index - BEFORE, index + AFTER + 1), own[0], own[-1])]
        frames = np.stack([episode.cameras[0]([frame])[0] for episode, frame in window])
        expected = np.round(truth["frames"][sample] * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(frames, expected)
        if "action" in truth.files:
            # The library gives a feature of one column without that axis, in the type that it is stored as.
            expected = truth["action"][sample].astype(np.float32)
            rows = np.stack([np.asarray(episode.rows)[frame] for episode, frame in window])
            np.testing.assert_array_equal(rows.reshape(expected.shape), expected)
        assert places[index][0].prompt == str(truth["task"][sample])

from __future__ import annotations

from typing import Any

import pytest

from lightning_action.data.lerobot import LeRobotDataModule
from lightning_action.recordings.local_folder import LocalFolder
from lightning_action.recordings.recording import Recording
from tests.support.written_videos import LEROBOT

CAMERA = "observation.images.top"


def read(**changes: Any) -> Recording:
    data = LeRobotDataModule(str(LEROBOT / "v3"), **{"num_latents": 3, **changes})
    return data.read_recording(LocalFolder(str(LEROBOT / "v3")))


def test_all_is_read_unless_something_is_chosen() -> None:
    recording = read()
    assert (recording.fps, recording.columns) == (10, ["dx", "dy"])
    assert [(each.index, each.num_frames, len(each.cameras)) for each in recording.episodes] == [
        (0, 40, 1),
        (1, 40, 1),
        (2, 40, 1),
    ]


def test_episodes_cameras_and_actions_are_chosen() -> None:
    assert [each.index for each in read(episodes=[2, 0], exclude=[0]).episodes] == [2]
    assert len(read(cameras=[CAMERA, CAMERA]).episodes[0].cameras) == 2
    assert read(action_keys=[]).columns == []
    assert read(action_keys=["observation.state"]).columns == ["x", "y"]
    with pytest.raises(ValueError, match="expected cameras out of observation.images.top"):
        read(cameras=["front"])

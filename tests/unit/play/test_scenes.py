"""Where worlds begin, and the simulator beside them."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from lightning_action.batch import to_unit_range
from lightning_action.play.scenes import SimulatedTruth, frames_per_second, scenes_of
from tests.support.simulated_session import WORLD, data
from tests.support.written_videos import lerobot_copy


def test_a_seed_is_a_sample_of_the_data() -> None:
    start, fps = scenes_of(data(), "test", 1, 4), frames_per_second(data(), "test")
    batch = data().dataset("test").batch([2])
    for seed in (2, 9):
        begun = start(seed)
        assert begun.first_frames is not None
        assert torch.equal(begun.first_frames[0], to_unit_range(batch["video"][0, :1]))
        assert (begun.prompt, begun.frame_size, fps) == (batch["prompt"][0], (20, 28), 16.0)
    assert not torch.equal(start(3).first_frames, start(2).first_frames)  # type: ignore[arg-type]


def test_the_truth_plays_the_rows_for_ever_as_the_simulator_does() -> None:
    batch = data().dataset("test").batch([2])
    truth = scenes_of(data(), "test", 1, 4)(2).truth
    assert isinstance(truth, SimulatedTruth)
    frames = torch.cat([truth.go_on(batch["action"][0, :3]), truth.go_on(batch["action"][0, 3:])])
    assert torch.equal(frames, to_unit_range(batch["video"][0, 1:]))
    assert truth._path.shape[1] == 2
    distance = truth.distance(frames)
    assert distance is not None and distance < 0.2
    moved = torch.roll(frames, 2, dims=-1)
    assert truth.distance(moved) == pytest.approx(2, abs=0.3)
    places = [truth.locate(each) for each in (frames, moved)]
    assert places[0] is not None and places[1] == pytest.approx((places[0][0] + 2, places[0][1]), abs=0.3)
    assert truth.distance(torch.zeros(2, 3, 20, 28)) is truth.locate(torch.zeros(2, 3, 20, 28)) is None


def test_worlds_that_begin_from_nothing_or_from_more_have_no_truth() -> None:
    begun = scenes_of(data(), "test", 0, 4)(1)
    assert begun.first_frames is None and begun.truth is None and begun.frame_size == (20, 28)
    begun = scenes_of(data(), "test", 2, 4)(1)
    assert begun.first_frames is not None and begun.first_frames.shape == (1, 5, 3, 20, 28) and begun.truth is None


def test_recordings_begin_worlds_too(tmp_path: pytest.TempPathFactory) -> None:
    from lightning_action import LeRobotDataModule

    root = lerobot_copy("v3", tmp_path)  # type: ignore[arg-type]
    source = LeRobotDataModule(root=str(root), num_latents=2, batch_size=1, test_size=2, num_workers=0)
    source.prepare_data()
    source.setup("test")
    start, fps = scenes_of(source, "test", 1, 4), frames_per_second(source, "test")
    begun = start(1)
    assert begun.first_frames is not None and begun.truth is None and fps == source.clips("test")[0].fps
    assert begun.first_frames.shape[:3] == (1, 1, 3) and 0 <= begun.first_frames.min() <= begun.first_frames.max() <= 1


def test_data_without_videos_is_refused() -> None:
    with pytest.raises(ValueError, match="LightningDataModule has no clips that a world could begin at"):
        scenes_of(L.LightningDataModule(), "test", 1, 4)


def test_the_world_of_the_tests_is_that_of_the_data() -> None:
    assert data().world is WORLD

"""Where worlds begin, and the simulator beside them."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_action import EnvironmentDataModule
from lightning_action.batch import to_unit_range
from lightning_action.play.scenes import EnvironmentTruth, SimulatedTruth, frames_per_second, scenes_of
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


def dots(end_after: int) -> EnvironmentDataModule:
    env, env_kwargs = "tests.support.dot_world:DotWorld", {"end_after": end_after}
    return EnvironmentDataModule(env, env_kwargs, num_latents=3, test_size=3, locator=brightest)


def brightest(video: Tensor) -> tuple[Tensor, Tensor]:
    """Mean place of what is bright, and whether there is anything."""
    bright = (video.mean(dim=2) > 0).float()
    sums = bright.sum(dim=(-2, -1)).clamp(min=1)
    x = (bright.sum(dim=-2) * torch.arange(video.shape[-1])).sum(dim=-1) / sums
    y = (bright.sum(dim=-1) * torch.arange(video.shape[-2])).sum(dim=-1) / sums
    return torch.stack([x, y], dim=-1), bright.amax(dim=(-2, -1)) > 0


def test_an_environment_goes_along_until_its_episode_ends() -> None:
    source = dots(end_after=10)
    sample, again = source.dataset("test")[1], scenes_of(source, "test", 1, 4)(4)
    truth, other = again.truth, scenes_of(source, "test", 1, 4)(1).truth
    assert isinstance(truth, EnvironmentTruth) and isinstance(other, EnvironmentTruth)
    assert again.first_frames is not None and torch.equal(again.first_frames[0], to_unit_range(sample["video"][:1]))
    rows, video = sample["action"], to_unit_range(sample["video"])
    frames = torch.cat([truth.go_on(rows[:4]), truth.go_on(rows[4:8])])
    torch.testing.assert_close(frames, video[1:])
    assert (video[4] - video[8]).abs().max() > 0.5
    # Another world of the same sample has an environment of its own.
    torch.testing.assert_close(other.go_on(rows[:4]), video[1:5])
    assert other.distance(video[4:5]) == 0
    assert other.distance(torch.roll(video[4:5], 2, dims=-1)) == pytest.approx(2)
    assert other.distance(torch.zeros(1, 3, 32, 48)) is None
    assert truth.distance(frames) == 0
    last = truth.go_on(torch.zeros(3, 2))[-1]
    assert truth.distance(last[None]) is None, "there is no truth behind the end"
    assert torch.equal(truth.go_on(torch.ones(3, 2)), last.expand(3, -1, -1, -1))


@pytest.mark.filterwarnings("ignore:.*does not show the same again")
def test_an_environment_that_is_not_the_same_again_has_no_truth() -> None:
    source = EnvironmentDataModule("tests.support.dot_world:RestlessDotWorld", num_latents=2, test_size=3)
    assert scenes_of(source, "test", 1, 4)(1).truth is None


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

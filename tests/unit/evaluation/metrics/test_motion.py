"""How much videos move, and where."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_action.evaluation.metrics.motion import MotionFloor, frame_change, latent_motion, moving_region
from tests.support.moving_dot import assert_ranks_are_one, dot_paths, dot_video

IDS = torch.tensor([7, 5, 1000000007])


def test_a_perfect_video_moves_as_the_true_one() -> None:
    metric = MotionFloor()
    metric.update(dot_video(dot_paths()), dot_video(dot_paths()), IDS)
    assert metric.compute() == {"motion_ratio": 1.0, "static_rate": 0.0}
    assert metric.static_samples() == []


def test_static_videos_are_named() -> None:
    truth = dot_video(dot_paths())
    video = truth.clone()
    video[1:] = video[1:, :1]
    metric = MotionFloor()
    metric.update(video, truth, IDS)
    changes = frame_change(truth).mean(dim=1)
    assert metric.compute()["motion_ratio"] == pytest.approx((changes[0] / changes.sum()).item())
    assert metric.compute()["static_rate"] == pytest.approx(2 / 3)
    assert metric.static_samples() == [5, 1000000007]
    assert metric.per_episode()["static_rate"].tolist() == [0, 1, 1]


def test_where_nothing_should_move_nothing_is_static() -> None:
    still = dot_video(dot_paths()[:, :1].expand(-1, 6, -1))
    metric = MotionFloor()
    metric.update(still, still, IDS)
    assert all(math.isnan(value) for value in metric.compute().values())
    assert metric.static_samples() == []


def test_half_the_change() -> None:
    truth = dot_video(dot_paths())
    metric = MotionFloor(floor=0.6)
    metric.update(truth[:, :1] + 0.5 * (truth - truth[:, :1]), truth, IDS)
    assert metric.compute() == pytest.approx({"motion_ratio": 0.5, "static_rate": 1.0})


def test_ranks() -> None:
    videos = [dot_video(dot_paths(seed)) for seed in range(4)]
    assert_ranks_are_one(MotionFloor, [*videos[:2], IDS], [*videos[2:], IDS + 1])


def test_the_moving_region_is_where_a_pixel_changes() -> None:
    video = torch.full((2, 4, 3, 5, 6), 0.5)
    video[0, 2:, 1, 3, 4] += 11 / 255  # one channel, from frame 2 on
    video[1, 1, :, 2, 2] += 9 / 255  # too little
    region = moving_region(video)
    expected = torch.zeros(2, 4, 5, 6, dtype=torch.bool)
    expected[0, 2, 3, 4] = True
    assert torch.equal(region, expected)
    bytes_apart = torch.arange(246)[None, :, None, None, None] / 255
    for apart, moves in ((10, False), (11, True)):
        pair = torch.stack([bytes_apart, bytes_apart + apart / 255], dim=1)[..., 0].expand(-1, -1, -1, 3, -1)
        assert moving_region(pair.movedim(2, -1)).eq(moves).all()
    assert moving_region(video, threshold=8 / 255)[1, :, 2, 2].tolist() == [True, True, True, False]


def test_one_frame_does_not_move() -> None:
    with pytest.raises(ValueError, match="2 frames or more, which may move, got 1"):
        moving_region(torch.zeros(2, 1, 3, 4, 5))


def test_a_cell_of_a_latent_frame_moves_where_a_pixel_does() -> None:
    region = torch.zeros(2, 7, 4, 6, dtype=torch.bool)  # 3 latent frames at ratio 3, cells of 2 x 2
    region[0, 0, 1, 1] = region[0, 6, 3, 5] = region[1, 3, 2, 0] = True
    cells = latent_motion(region, 3, (2, 3))
    assert cells.shape == (2, 3, 2, 3)
    with pytest.raises(ValueError, match=r"expected 1 \+ 3 n frames, got 6"):
        latent_motion(region[:, :6], 3, (2, 3))
    assert cells.nonzero().tolist() == [[0, 0, 0, 0], [0, 2, 1, 2], [1, 1, 1, 0]]

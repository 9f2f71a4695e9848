"""There and back, of videos that come back and of those that do not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_action.evaluation.metrics.round_trip import RoundTrip
from tests.support.moving_dot import assert_ranks_are_one, dot_paths, dot_video

THERE = dot_paths(num_frames=7, speed=2.0)


def figures(video: Tensor) -> dict[str, float]:
    metric = RoundTrip()
    metric.update(video)
    result: dict[str, float] = metric.compute()
    return result


def there_and_back(paths: Tensor) -> Tensor:
    return dot_video(torch.cat([paths, paths.flip(1)[:, 1:]], dim=1))


def test_a_perfect_simulator_comes_back() -> None:
    video = there_and_back(THERE)
    result = figures(video)
    assert result["round_trip"] == result["mirror"] == result["recovery"] == 1
    assert result["excursion"] == pytest.approx((video[:, 0] - video[:, 6]).abs().mean().item())


def test_a_video_that_never_moves_has_gone_nowhere() -> None:
    result = figures(dot_video(THERE[:, :1].expand(-1, 13, -1)))
    assert result["round_trip"] == result["mirror"] == 1
    assert result["excursion"] == 0 and math.isnan(result["recovery"])


def test_a_video_that_stays_where_it_went_has_not_recovered() -> None:
    stays = dot_video(torch.cat([THERE, THERE[:, -1:].expand(-1, 6, -1)], dim=1))
    result = figures(stays)
    assert result["recovery"] == pytest.approx(0, abs=1e-6)
    assert result["round_trip"] == pytest.approx(1 - result["excursion"])


def test_a_video_that_comes_back_another_way_is_no_mirror() -> None:
    video = there_and_back(THERE).clone()
    video[:, 8:12] = video[:, :1]
    result = figures(video)
    assert result["recovery"] == 1
    expected = sum((video[:, frame] - video[:, 0]).abs().mean().item() for frame in range(1, 5)) / 6
    assert result["mirror"] == pytest.approx(1 - expected)


def test_a_drift_in_brightness() -> None:
    result = figures(torch.linspace(0, 0.6, 13)[None, :, None, None, None].expand(2, 13, 3, 4, 6))
    assert result["round_trip"] == pytest.approx(0.4)
    assert result["excursion"] == pytest.approx(0.3)
    assert result["recovery"] == pytest.approx(-1)


def test_ranks() -> None:
    assert_ranks_are_one(RoundTrip, [dot_video(dot_paths(0))], [dot_video(dot_paths(1))])


@pytest.mark.parametrize("frames", [1, 12])
def test_videos_without_a_middle_are_refused(frames: int) -> None:
    with pytest.raises(ValueError, match=f"videos of 2T \\+ 1 frames, .* got {frames} frames"):
        RoundTrip().update(torch.zeros(2, frames, 3, 4, 5))

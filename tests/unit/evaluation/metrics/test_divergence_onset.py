"""When errors that begin at a known frame are seen."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_action.evaluation.metrics.divergence_onset import DivergenceOnset
from tests.support.moving_dot import assert_ranks_are_one


def onsets(error: torch.Tensor) -> tuple[dict[str, float], list[float]]:
    metric = DivergenceOnset()
    metric.update(error)
    return metric.compute(), metric.per_episode()["divergence_onset_frames"].tolist()


def test_a_perfect_rollout_never_diverges() -> None:
    figures, onset = onsets(torch.zeros(2, 20))
    assert figures == {"divergence_onset_frames": 20, "diverged_rate": 0}
    assert onset == [20, 20]


def test_a_jump_is_seen_when_it_fills_enough_of_the_window() -> None:
    error = torch.zeros(3, 20)
    error[0, 10:] = 100  # one frame in five is enough: 20 > 1, in the window of frames 6 to 10
    error[1, 10:] = 2.4  # three frames in five are: 1.44 > 1, two are not
    error[2, 10] = 4  # a single frame, 0.8, is not
    figures, onset = onsets(error)
    assert onset == [6, 8, 20]
    assert figures == pytest.approx({"divergence_onset_frames": 34 / 3, "diverged_rate": 2 / 3})


def test_the_bar_is_twice_the_median_of_the_first_five_and_at_least_a_pixel() -> None:
    slope = 0.1 * torch.arange(60.0)[None]
    # The median of 0 ... 0.4 is 0.2, so the bar is 1: the mean of t ... t + 4 is 0.1 (t + 2) > 1 from t = 9 on.
    assert onsets(slope)[1] == [9]
    # From 2 on the median is 2.2 and the bar 4.4: 2 + 0.1 (t + 2) > 4.4 from t = 23 on.
    assert onsets(slope + 2)[1] == [23]


def test_a_rollout_that_is_bad_from_the_start_never_diverges_from_that() -> None:
    assert onsets(torch.full((1, 20), 50.0))[0]["diverged_rate"] == 0


def test_errors_at_once() -> None:
    error = torch.zeros(1, 20)
    error[:, 3:] = 10
    assert onsets(error)[1] == [0]


def test_ranks() -> None:
    errors = [3 * torch.rand(3, 20, generator=torch.Generator().manual_seed(seed)).cumsum(1) for seed in range(2)]
    assert_ranks_are_one(DivergenceOnset, [errors[0]], [errors[1]])


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
def test_without_episodes() -> None:
    assert all(math.isnan(value) for value in DivergenceOnset().compute().values())


@pytest.mark.parametrize("shape", [(2, 4), (20,)])
def test_too_few_frames_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"errors \[B, T\] of 5 frames or more, got"):
        DivergenceOnset().update(torch.zeros(shape))

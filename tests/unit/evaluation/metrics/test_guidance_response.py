"""Gain against the scale of guidance, of motions whose gain is known."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_action.evaluation.metrics.guidance_response import GuidanceResponse
from tests.support.moving_dot import assert_ranks_are_one, dot_paths

TARGET = dot_paths(batch_size=4)


def at_gains(*gains: float, target: Tensor = TARGET) -> Tensor:
    """Positions `[B, scales, T, 2]` that move by so many times what they should."""
    start = target[:, None, :1]
    return start + torch.tensor(gains, dtype=torch.float64)[:, None, None] * (target[:, None] - start)


def figures(*gains: float) -> dict[str, float]:
    metric = GuidanceResponse()
    metric.update(at_gains(*gains), TARGET)
    result: dict[str, float] = metric.compute()
    return result


def test_gain_rises_and_saturates() -> None:
    result = figures(0, 0.8, 1.1, 1.3, 1.31)
    names = ("gain_at_scale_0", "gain_at_scale_1", "gain_at_scale_1_5", "gain_at_scale_2", "gain_at_scale_3")
    assert [result[name] for name in names] == pytest.approx([0, 0.8, 1.1, 1.3, 1.31])
    assert (result["gain_rises"], result["saturates_at_scale"]) == (1, 2)


def test_a_blind_model_does_not_respond() -> None:
    result = figures(0, 0, 0, 0, 0)
    assert result["gain_at_scale_3"] == 0
    assert result["gain_rises"] == 0 and math.isnan(result["saturates_at_scale"])


def test_gain_that_still_rises_has_not_saturated() -> None:
    result = figures(0, 0.5, 1, 1.5, 2)
    assert result["gain_rises"] == 1 and math.isnan(result["saturates_at_scale"])


@pytest.mark.parametrize("gains", [(0, 0.9, 1.2, 0.6, 0.4), (0, -1, -1.5, -2, -3), (1, 1, 1, 1, 1)])
def test_gain_that_falls_or_stays(gains: tuple[float, ...]) -> None:
    assert figures(*gains)["gain_rises"] == 0


def test_where_nothing_should_move_nothing_is_said() -> None:
    metric = GuidanceResponse((0, 1))
    metric.update(at_gains(0, 1), TARGET[:, :1].expand_as(TARGET))
    assert all(math.isnan(value) for value in metric.compute().values())


def test_each_episode_has_its_gains() -> None:
    metric = GuidanceResponse((0, 1))
    metric.update(at_gains(0, 0.5), TARGET)
    per_episode = metric.per_episode()
    assert per_episode["gain_at_scale_0"].tolist() == pytest.approx([0] * 4, abs=1e-6)
    assert per_episode["gain_at_scale_1"].tolist() == pytest.approx([0.5] * 4)


def test_ranks() -> None:
    first, second = ([dot_paths(seed, 6).unflatten(0, (2, 3)), dot_paths(seed + 1, 2)] for seed in (0, 5))
    assert_ranks_are_one(partial(GuidanceResponse, (0, 1, 2)), first, second)


@pytest.mark.parametrize("scales", [(1,), (1, 1), (2, 1)])
def test_scales_that_do_not_rise_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="two guidance scales or more, in rising order"):
        GuidanceResponse(scales)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected positions \[B, 2, T, 2\] .* got \[4, 3, 13, 2\]"):
        GuidanceResponse((0, 1)).update(at_gains(0, 1, 2), TARGET)

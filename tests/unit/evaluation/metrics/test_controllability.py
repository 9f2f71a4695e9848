"""Variance between actions over variance between noises, of features in which both are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_action.evaluation.metrics.controllability import Controllability
from tests.support.moving_dot import assert_ranks_are_one

ACTIONS = torch.tensor([-3.0, -1.0, 1.0, 3.0])[None, :, None, None]  # unbiased variance 20 / 3
NOISES = torch.tensor([-1.0, 0.0, 0.0, 0.0, 1.0])[None, None, :, None]  # unbiased variance 1 / 2


def features(action: float, noise: float, starts: int = 3) -> Tensor:
    return (action * ACTIONS + noise * NOISES + torch.arange(starts)[:, None, None, None]).expand(-1, -1, -1, 2)


def figures(values: Tensor) -> dict[str, float]:
    metric = Controllability()
    metric.update(values)
    result: dict[str, float] = metric.compute()
    return result


def test_variances_are_unbiased_and_those_of_each_axis_add_up() -> None:
    result = figures(features(1, 1))
    assert result["action_variance"] == pytest.approx(2 * 20 / 3)
    assert result["noise_variance"] == pytest.approx(2 * 1 / 2)
    assert result["controllability_ratio"] == pytest.approx(40 / 3)
    assert result["action_share"] == pytest.approx(40 / 43)


def test_a_blind_model_has_none() -> None:
    result = figures(features(0, 1))
    assert result["controllability_ratio"] == result["action_share"] == 0


def test_what_actions_alone_decide_has_no_ratio() -> None:
    result = figures(features(1, 0))
    assert math.isnan(result["controllability_ratio"])
    assert result["action_share"] == 1


def test_inverted_actions_score_the_same() -> None:
    assert figures(features(-1, 1)) == pytest.approx(figures(features(1, 1)))


def test_where_nothing_varies_nothing_is_said() -> None:
    result = figures(features(0, 0))
    assert math.isnan(result["controllability_ratio"]) and math.isnan(result["action_share"])


def test_noise_that_is_not_matched_looks_like_control() -> None:
    """Which is why every noise is used under all actions."""
    noise = torch.randn(300, 4, 4, 1, generator=torch.Generator().manual_seed(0))
    assert figures(noise)["controllability_ratio"] == pytest.approx(1, abs=0.1)


def test_a_start_with_an_undefined_feature_is_left_out() -> None:
    values = features(1, 1).clone()
    values[1, 2, 3, 0] = math.nan
    assert figures(values) == pytest.approx(figures(features(1, 1)))


def test_ranks() -> None:
    parts = [torch.randn(3, 4, 5, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    assert_ranks_are_one(Controllability, [parts[0]], [parts[1]])


@pytest.mark.parametrize("shape", [(3, 1, 4, 2), (3, 4, 1, 2), (3, 4, 4)])
def test_too_few_actions_or_noises_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 2 actions and 2 noises, got"):
        Controllability().update(torch.zeros(shape))

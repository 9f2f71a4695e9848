"""Held actions, of motions whose gain and drift are known."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_action.evaluation.metrics.held_actions import HeldActions
from tests.support.moving_dot import assert_ranks_are_one

# Of 3 episodes: four directions at each of two sizes.
DIRECTIONS = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
SHOULD_MOVE = torch.stack([2 * DIRECTIONS, 5 * DIRECTIONS]).expand(3, -1, -1, -1)
STILL = torch.zeros(3, 2)


def figures(moved: Tensor, drift: Tensor = STILL) -> dict[str, float]:
    metric = HeldActions((0.1, 0.25))
    metric.update(moved, SHOULD_MOVE, drift)
    result: dict[str, float] = metric.compute()
    return result


def test_a_perfect_simulator_and_a_blind_model() -> None:
    assert figures(SHOULD_MOVE) == {"held_gain_0.1": 1, "held_gain_0.25": 1, "held_drift_px": 0}
    assert figures(0 * SHOULD_MOVE) == {"held_gain_0.1": 0, "held_gain_0.25": 0, "held_drift_px": 0}


def test_gains_by_size() -> None:
    assert figures(SHOULD_MOVE * torch.tensor([0.5, 1.5])[:, None, None]) == pytest.approx(
        {"held_gain_0.1": 0.5, "held_gain_0.25": 1.5, "held_drift_px": 0}
    )


def test_a_drift_is_no_gain() -> None:
    """It is the same in all directions, which cancels."""
    drift = torch.tensor([3.0, 4.0])
    result = figures(SHOULD_MOVE + drift, STILL + drift)
    assert result == pytest.approx({"held_gain_0.1": 1, "held_gain_0.25": 1, "held_drift_px": 5})


def test_each_episode_has_its_gains() -> None:
    metric = HeldActions((0.1, 0.25))
    gains = torch.tensor([0.5, 1.0, 2.0])
    metric.update(SHOULD_MOVE * gains[:, None, None, None], SHOULD_MOVE, torch.eye(3)[:, :2])
    found = metric.per_episode()
    assert found["held_gain_0.25"].tolist() == [0.5, 1, 2] and found["held_drift_px"].tolist() == [1, 1, 0]


def test_ranks_are_one() -> None:
    random = torch.Generator().manual_seed(0)
    values = [
        [torch.randn(count, *shape, generator=random) for shape in ((2, 4, 2), (2, 4, 2), (2,))] for count in (3, 2)
    ]
    assert_ranks_are_one(partial(HeldActions, (0.1, 0.25)), *values)


def test_where_nothing_should_move_there_is_no_gain() -> None:
    metric = HeldActions((0.1, 0.25))
    metric.update(SHOULD_MOVE, 0 * SHOULD_MOVE, STILL)
    assert math.isnan(metric.compute()["held_gain_0.1"])


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected displacements \[B, 3, directions, 2\]"):
        HeldActions().update(SHOULD_MOVE, SHOULD_MOVE, STILL)

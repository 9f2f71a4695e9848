"""Loss gaps, of losses whose gaps are known."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_action.evaluation.metrics.episode_metric import mean_where
from lightning_action.evaluation.metrics.loss_gap import LossGap, wins
from tests.support.moving_dot import assert_ranks_are_one

LEVELS = torch.tensor([[100.0, 900.0, 1000.0, 300.0], [0.0, 850.0, 150.0, 199.0]])


def losses(seed: int = 0) -> Tensor:
    return 0.5 + torch.rand(LEVELS.shape, generator=torch.Generator().manual_seed(seed))


def figures(*arguments: Tensor) -> dict[str, float]:
    metric = LossGap("swapped")
    metric.update(*arguments)
    result: dict[str, float] = metric.compute()
    return result


def test_a_model_that_uses_actions() -> None:
    result = figures(losses(), 1.25 * losses(), LEVELS)
    assert result["swapped_gap"] == pytest.approx(0.25 * losses().mean().item())
    assert result["swapped_relative_gap"] == pytest.approx(0.25)
    assert result["swapped_win_rate"] == 1


def test_a_blind_model_is_at_chance() -> None:
    result = figures(losses(), losses(), LEVELS)
    for suffix in ("", "_0_200", "_800_1000"):
        assert result[f"swapped_gap{suffix}"] == result[f"swapped_relative_gap{suffix}"] == 0
        assert result[f"swapped_win_rate{suffix}"] == 0.5


def test_a_model_that_does_the_opposite_loses() -> None:
    result = figures(1.5 * losses(), losses(), LEVELS)
    assert result["swapped_win_rate"] == 0
    assert result["swapped_relative_gap"] == pytest.approx(-1 / 3)


def test_actions_matter_at_high_noise() -> None:
    true = torch.ones(2, 4)
    result = figures(true, true + 0.5 * (LEVELS >= 800), LEVELS)
    assert (result["swapped_gap_800_1000"], result["swapped_win_rate_800_1000"]) == (0.5, 1)
    assert (result["swapped_gap_0_200"], result["swapped_win_rate_0_200"]) == (0, 0.5)
    assert (result["swapped_gap_200_400"], result["swapped_win_rate_200_400"]) == (0, 0.5)
    assert math.isnan(result["swapped_gap_400_600"]) and math.isnan(result["swapped_win_rate_600_800"])
    assert result["swapped_gap"] == pytest.approx((0.5 * 2 + 0.5) / 8)
    metric = LossGap("swapped", (0, 500, 1000))
    metric.update(true, true + 0.5 * (LEVELS >= 800), LEVELS)
    assert metric.by_noise_level() == [[0, 500, 0, 0.5], [500, 1000, 0.5, 1]]


def test_the_moving_region_shows_what_the_frame_hides() -> None:
    """One cell of 25 moves, and only there do actions make a difference; nothing moves in frame 0."""
    region = torch.zeros(2, 4, 5, 5, dtype=torch.bool)
    region[:, 1:, 2, 3] = True
    true = torch.ones(2, 4, 5, 5)
    other = true + 0.5 * region
    whole = [error.mean(dim=(2, 3)) for error in (true, other)]
    moving = [mean_where(error, region, dim=(2, 3)) for error in (true, other)]
    result = figures(*whole, LEVELS, *moving)
    assert result["swapped_gap"] == pytest.approx(0.5 * 3 / 4 / 25)
    assert result["swapped_gap_moving"] == pytest.approx(0.5)
    assert result["swapped_win_rate_moving"] == 1
    without = figures(*whole, LEVELS)
    assert math.isnan(without["swapped_gap_moving"]) and math.isnan(without["swapped_win_rate_moving"])


def test_figures_are_means_over_samples() -> None:
    true, other = torch.tensor([[1.0, 3.0], [4.0, 4.0], [2.0, 2.0]]), torch.tensor([[3.0, 3.0], [2.0, 4.0], [2.0, 2.0]])
    result = figures(true, other, torch.full((3, 2), 500.0))
    assert result["swapped_gap"] == pytest.approx((1 - 1 + 0) / 3)
    assert result["swapped_relative_gap"] == pytest.approx((1 / 2 - 1 / 4 + 0) / 3)
    assert result["swapped_win_rate"] == pytest.approx((1 + 0 + 0.5) / 3)


def test_ranks() -> None:
    parts = [[losses(seed), losses(seed + 1), LEVELS] for seed in (0, 5)]
    assert_ranks_are_one(partial(LossGap, "null"), *parts)


def test_names_say_which_actions_and_levels() -> None:
    metric = LossGap("shuffled", levels=(0, 500, 1000))
    metric.update(losses(), losses(), LEVELS)
    suffixes = ("", "_0_500", "_500_1000", "_moving")
    assert list(metric.compute()) == [
        f"shuffled_{figure}{suffix}" for suffix in suffixes for figure in ("gap", "relative_gap", "win_rate")
    ]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"losses and timesteps \[B, F\] of one shape, got \[\[2, 4\], \[2, 3\]"):
        LossGap("null").update(losses(), losses()[:, :3], LEVELS)


def test_a_tie_counts_half() -> None:
    assert wins(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 2.0])).tolist() == [1, 0.5, 0]

"""Actions that are read off videos, rightly and wrongly."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_action.evaluation.metrics.inverse_dynamics_accuracy import InverseDynamicsAccuracy, binomial_tail
from tests.support.moving_dot import assert_ranks_are_one

CLASSES = 5


def actions(seed: int = 0, batch_size: int = 6, rows: int = 20) -> Tensor:
    return torch.randint(CLASSES, (batch_size, rows), generator=torch.Generator().manual_seed(seed))


def figures(read_generated: Tensor, read_real: Tensor, action: Tensor) -> dict[str, float]:
    metric = InverseDynamicsAccuracy(CLASSES)
    metric.update(read_generated, read_real, action)
    result: dict[str, float] = metric.compute()
    return result


def partly_right(action: Tensor, share: float) -> Tensor:
    wrong = torch.arange(action.shape[1]) >= share * action.shape[1]
    return torch.where(wrong, (action + 1) % CLASSES, action)


def test_generated_videos_as_good_as_real_ones() -> None:
    action = actions()
    result = figures(partly_right(action, 0.8), partly_right(action, 0.8), action)
    assert (result["idm_accuracy"], result["idm_accuracy_real"]) == (0.8, 0.8)
    assert (result["idm_normalised"], result["idm_is_informative"]) == (1, 1)


def test_a_blind_video_is_at_chance() -> None:
    """Nothing moves, and what is read is the most frequent action."""
    action = actions()
    counts = action.flatten().bincount()
    result = figures(torch.full_like(action, int(counts.argmax())), action, action)
    assert result["idm_accuracy"] == result["idm_chance"] == counts.max().item() / 120
    assert (result["idm_normalised"], result["idm_is_informative"]) == (0, 1)


def test_half_of_what_is_there_to_be_read() -> None:
    action = torch.arange(CLASSES).repeat(6, 4)
    result = figures(partly_right(action, 0.5), partly_right(action, 0.8), action)
    assert result["idm_chance"] == 0.2
    assert result["idm_normalised"] == pytest.approx((0.5 - 0.2) / (0.8 - 0.2))


def test_wrong_actions_are_worse_than_chance() -> None:
    action = actions()
    assert figures((action + 1) % CLASSES, action, action)["idm_normalised"] < 0


def test_a_model_that_fails_on_real_videos_says_nothing() -> None:
    action = torch.arange(CLASSES).repeat(6, 4)
    result = figures(partly_right(action, 0.2), partly_right(action, 0.25), action)
    assert result["idm_p_value"] > 0.05
    assert result["idm_is_informative"] == 0
    assert math.isnan(result["idm_normalised"])


def test_held_actions_are_few_trials() -> None:
    """Two thirds of thirty independent actions cannot be right by chance; of three that are held, they can."""
    own = torch.arange(30).remainder(CLASSES)[None]
    held = torch.arange(3).repeat_interleave(10)[None]
    for action, informative in ((own, 1), (held, 0)):
        result = figures(action, partly_right(action, 0.67), action)
        assert result["idm_accuracy_real"] == pytest.approx(2 / 3, abs=0.04)
        assert result["idm_is_informative"] == informative


def test_one_kind_of_action_cannot_be_read() -> None:
    action = torch.ones(2, 7, dtype=torch.long)
    result = figures(action, action, action)
    # The logarithms of factorials are rounded.
    assert (result["idm_chance"], result["idm_is_informative"]) == (1, 0)
    assert result["idm_p_value"] == pytest.approx(1, abs=1e-12)


def test_each_episode_has_its_accuracy() -> None:
    action = actions()
    generated = torch.cat([action[:3], (action[3:] + 1) % CLASSES])
    metric = InverseDynamicsAccuracy(CLASSES)
    metric.update(generated, action, action)
    assert metric.per_episode()["idm_accuracy"].tolist() == [1, 1, 1, 0, 0, 0]
    assert metric.per_episode()["idm_accuracy_real"].tolist() == [1] * 6


def test_ranks() -> None:
    first, second = ([actions(seed), actions(seed + 1), actions(seed)] for seed in (0, 5))
    assert_ranks_are_one(partial(InverseDynamicsAccuracy, CLASSES), first, second)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"actions \[B, rows\] of one shape"):
        figures(actions(), actions()[:, :4], actions())


@pytest.mark.parametrize(("successes", "trials", "chance"), [(7, 10, 0.5), (0, 4, 0.3), (4, 4, 0.3), (30, 100, 0.2)])
def test_the_tail_is_that_of_a_binomial(successes: int, trials: int, chance: float) -> None:
    terms = [math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(successes, trials + 1)]
    assert binomial_tail(successes, trials, chance) == pytest.approx(sum(terms), rel=1e-10)


def test_many_trials_and_none() -> None:
    assert binomial_tail(100_000, 200_000, 0.4) == 0
    assert binomial_tail(80_000, 200_000, 0.4) == pytest.approx(0.5, abs=0.01)
    assert np.isnan(binomial_tail(0, 0, 0.5))

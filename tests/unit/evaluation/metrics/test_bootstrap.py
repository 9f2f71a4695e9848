from __future__ import annotations

from statistics import NormalDist

import pytest
import torch

from lightning_action.evaluation.metrics.bootstrap import expanded_tail, intervals
from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric


class Gaps(EpisodeMetric):
    def __init__(self) -> None:
        super().__init__(["gap", "won"])

    def update(self, gap: torch.Tensor) -> None:
        self._add(gap=gap, won=(gap > 0).float())


def metric_of(gaps: torch.Tensor) -> Gaps:
    metric = Gaps()
    metric.update(gaps)
    return metric


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    torch.manual_seed(0)
    gaps = torch.randn(400).double()
    low, high = intervals(metric_of(gaps), num_draws=1000)["gap"]
    mean, error = float(gaps.mean()), 1.96 * float(gaps.std()) / 20
    assert low == pytest.approx(mean - error, abs=0.02) and high == pytest.approx(mean + error, abs=0.02)
    wider = intervals(metric_of(gaps[:25]))["gap"]
    assert wider[1] - wider[0] > 2 * (high - low)


def test_it_is_the_same_again_and_a_point_where_nothing_varies() -> None:
    metric = metric_of(torch.linspace(-1, 3, 30))
    assert intervals(metric) == intervals(metric) != intervals(metric, seed=1)
    assert intervals(metric_of(torch.full((9,), 0.5))) == {"gap": (0.5, 0.5), "won": (1.0, 1.0)}
    assert intervals(Gaps()) == {}


def test_few_episodes_get_the_width_of_students_t() -> None:
    """Quantiles of tables, for 8, 20 and 128 episodes."""
    for count, quantile in ((8, 2.3646), (20, 2.0930), (128, 1.9788)):
        expected = NormalDist().cdf(-quantile * (count / (count - 1)) ** 0.5)
        assert expanded_tail(count, 0.95) == pytest.approx(expected, rel=0.01)
    assert expanded_tail(10**6, 0.9) == pytest.approx(0.05, rel=1e-4) and expanded_tail(1, 0.9) == 0


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of means of eight normal numbers, of which plain percentiles would hold 87 %."""
    random = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(200):
        low, high = intervals(metric_of(torch.randn(8, generator=random, dtype=torch.float64)))["gap"]
        held += low <= 0 <= high
    assert 0.91 <= held / 200 <= 0.98

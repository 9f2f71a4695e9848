from __future__ import annotations

import pytest
import torch

from lightning_action.evaluation.bootstrap import intervals
from lightning_action.evaluation.episode_metric import EpisodeMetric


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

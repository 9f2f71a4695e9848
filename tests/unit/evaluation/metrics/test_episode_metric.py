"""What all metrics over episodes share: means, gathering, and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric, check_videos, mean, mean_where, ratio


class Sizes(EpisodeMetric):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(["height", "width"], **arguments)

    def update(self, height: Tensor, width: Tensor) -> None:
        self._add(height=height, width=width)


def test_figures_are_means_of_what_is_defined() -> None:
    metric = Sizes()
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([math.nan, 5.0]))
    metric.update(torch.tensor([6.0]), torch.tensor([math.nan]))
    assert metric.compute() == {"height": 3.0, "width": 5.0}
    assert metric.per_episode()["height"].tolist() == [1, 2, 6]
    drawn = torch.tensor([2, 2, 0])
    resampled = metric.figures({name: values[drawn] for name, values in metric.episodes().items()})
    assert resampled == pytest.approx({"height": 13 / 3, "width": math.nan}, nan_ok=True)
    metric.reset()
    metric.update(torch.tensor([4.0]), torch.tensor([8.0]))
    assert metric.compute() == {"height": 4.0, "width": 8.0}


def test_episodes_of_all_ranks_are_gathered_and_given_back() -> None:
    def gather(values: Tensor, group: object) -> list[Tensor]:
        return [values, values + 10]

    metric = Sizes(dist_sync_fn=gather, distributed_available_fn=lambda: True)
    for height in (1.0, 2.0):
        metric.update(torch.tensor([height]), torch.tensor([3.0]))
    assert metric.episodes()["height"].tolist() == [1, 2, 11, 12]
    assert metric.compute() == {"height": 6.5, "width": 8.0}
    assert len(metric.height) == 2  # its own rank's, again


def test_some_of_the_episodes_are_put_beside_all() -> None:
    def gather(values: Tensor, group: object) -> list[Tensor]:
        return [values, values + 10]

    metric = Sizes(dist_sync_fn=gather, distributed_available_fn=lambda: True)
    metric.update_named(torch.tensor([4, 2]), torch.tensor([1.0, 2.0]), width=torch.tensor([3.0, 4.0]))
    heights = metric.per_episode_of([2, 3, 4, 12, 14])["height"]
    assert heights == pytest.approx([2, math.nan, 1, 12, 11], nan_ok=True)
    whole = Sizes()
    whole.update(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    assert whole.per_episode_of([7, 5]) == {"height": [1, 2], "width": [3, 4]}


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
def test_without_episodes_nothing_is_defined() -> None:
    assert all(math.isnan(value) for value in Sizes().compute().values())
    assert Sizes().per_episode()["width"].shape == (0,)


def test_means_and_ratios() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    mask = torch.tensor([[True, False, True], [False, False, False]])
    torch.testing.assert_close(mean_where(values, mask, dim=1), torch.tensor([2.0, math.nan]), equal_nan=True)
    assert mean(torch.tensor([1.0, math.nan, 2.0])) == 1.5
    assert ratio(3, 2) == 1.5 and math.isnan(ratio(3, 0))


@pytest.mark.parametrize("shape", [(2, 3, 3, 4, 6), (2, 5, 3, 4), (1, 5, 3, 4, 6)])
def test_videos_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected videos \[B, T, 3, H, W\] of one shape, got \[2, 5, 3, 4, 6\] and"):
        check_videos(torch.zeros(2, 5, 3, 4, 6), torch.zeros(shape))

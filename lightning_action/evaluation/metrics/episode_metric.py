"""The base of metrics that keep the values of each episode, over which intervals and paired tests are taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class EpisodeMetric(Metric):
    """Figures of values that each episode has alone, in whatever order and on whatever rank it came.

    By default a figure is the mean over the episodes in which it is defined, or a ratio of such means, see `_derived`;
    what is undefined is NaN. A bootstrap draws episodes and asks for the figures of those: with
    `episodes = metric.episodes()`, it is `metric.figures({name: each[drawn] for name, each in episodes.items()})`.

    A metric that sees only some of the episodes is told their names, by `update_named`.

    Args:
        names: Names of the values of an episode.
    """

    full_state_update = False
    named: list[Tensor]

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        for name in self.names:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state("named", default=[], dist_reduce_fx="cat")

    def compute(self) -> dict[str, float]:
        """Compute the figures of all episodes."""
        return self.figures(self._kept())

    def figures(self, episodes: dict[str, Tensor]) -> dict[str, float]:
        """Compute the figures of some episodes, given as `episodes` gives them."""
        means = {name: values.double().nanmean() for name, values in episodes.items()}
        return {name: figure.item() for name, figure in self._derived(means).items()}

    def episodes(self) -> dict[str, Tensor]:
        """Give what is kept of the episodes of all ranks, `[episodes, ...]` by name; every rank must call it."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._kept()

    def per_episode(self) -> dict[str, Tensor]:
        """Give figures of each episode of all ranks, `[episodes]` by name; every rank must call it."""
        return self._derived(self.episodes())

    def update_named(self, sample_id: Tensor, *values: Any, **named_values: Any) -> None:
        """Add some of the episodes, as `update` does, with their names, whole numbers `[B]`."""
        self.update(*values, **named_values)
        self.named.append(sample_id)

    def per_episode_of(self, sample_ids: Sequence[int]) -> dict[str, list[float]]:
        """Give the figures of each of these episodes, NaN where it was not seen; every rank must call it.

        Without `update_named` the metric has seen all of them, in their order.
        """
        found = {name: values.tolist() for name, values in self.per_episode().items()}
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            names = dim_zero_cat(self.named).tolist() if len(self.named) else None
        if names is None:
            return found
        places = {name: place for place, name in enumerate(names)}
        seen = [places.get(each) for each in sample_ids]
        return {
            name: [math.nan if place is None else values[place] for place in seen] for name, values in found.items()
        }

    def _figures_of_each(self, figures: Callable[[dict[str, Tensor]], dict[str, float]]) -> dict[str, Tensor]:
        """Compute figures of each episode alone, `[episodes]` by name; every rank must call it."""
        episodes = self.episodes()
        count = len(episodes[self.names[0]])
        each = [figures({name: values[i : i + 1] for name, values in episodes.items()}) for i in range(count)]
        return {name: torch.tensor([values[name] for values in each]) for name in (each[0] if each else ())}

    def _derived(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make figures of values by name, those of each episode or their means; by default the values are figures."""
        return values

    def _add(self, **values: Tensor) -> None:
        """Keep the values of further episodes, `[B, ...]` by name."""
        for name in self.names:
            getattr(self, name).append(values[name].detach())

    def _kept(self) -> dict[str, Tensor]:
        states = {name: getattr(self, name) for name in self.names}
        return {name: dim_zero_cat(state) if len(state) else torch.zeros(0) for name, state in states.items()}


def mean(values: Tensor) -> float:
    """Average what is defined; NaN where nothing is."""
    return values.double().nanmean().item()


def mean_where(values: Tensor, mask: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Average over some axes what a mask of the same shape lets through; NaN where that is nothing."""
    return torch.where(mask, values, math.nan).nanmean(dim=dim)


def ratio(numerator: float, denominator: float) -> float:
    """Divide; NaN by zero."""
    return numerator / denominator if denominator else math.nan


def ratios(numerators: Tensor, denominators: Tensor) -> Tensor:
    """Divide number by number; NaN by zero."""
    return numerators / torch.where(denominators == 0, math.nan, denominators)


def check_videos(*videos: Tensor) -> None:
    """Refuse videos that cannot be compared pixel by pixel.

    Raises:
        ValueError: A video is not `[B, T, 3, H, W]`, or their shapes differ.
    """
    shapes = [list(video.shape) for video in videos]
    if any(len(shape) != 5 or shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"expected videos [B, T, 3, H, W] of one shape, got {' and '.join(map(str, shapes))}: cut them to the same "
            "frames and sizes"
        )

"""Range that chance alone gives a figure: intervals over the episodes that were measured."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric


def intervals(
    metric: EpisodeMetric, num_draws: int = 200, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Compute the percentile bootstrap interval of each figure (Efron & Tibshirani 1993, chapter 13).

    As many episodes as there are get drawn again and again, with replacement; the interval holds the middle of what the
    figures of the draws are. Of few episodes such intervals are too narrow, so they are expanded (Hesterberg 2015,
    doi:10.1080/00031305.2015.1089789, section 4.2): a mean gets the width that Student's t gives it. Draws in which a
    figure is undefined are left out. Every rank must call it.

    Args:
        metric: Metric that keeps its episodes.
        num_draws: Number of draws.
        level: Share of other sets of episodes whose figure lies in the interval.
        seed: Random seed of the draws.
    """
    episodes = {name: values.cpu() for name, values in metric.episodes().items()}
    count = min(map(len, episodes.values()), default=0)
    if not count:
        return {}
    random = torch.Generator().manual_seed(seed)
    draws = [torch.randint(count, (count,), generator=random) for _ in range(num_draws)]
    figures = [metric.figures({name: values[drawn] for name, values in episodes.items()}) for drawn in draws]
    tail = expanded_tail(count, level)
    tails = torch.tensor([tail, 1 - tail], dtype=torch.float64)

    def middle(name: str) -> tuple[float, float]:
        values: Tensor = torch.tensor([each[name] for each in figures], dtype=torch.float64)
        low, high = values.nanquantile(tails).tolist()
        return low, high

    return {name: middle(name) for name in figures[0]}


def expanded_tail(count: int, level: float) -> float:
    """Find the share of draws to leave out on each side, so that the interval of a mean is not too narrow.

    Of n episodes it is `Phi(-sqrt(n / (n - 1)) t)`, t the quantile of Student's distribution of n - 1 degrees of
    freedom (Hesterberg 2015), by its expansion (Abramowitz and Stegun 1964, 26.7.5); 0 of a single one.
    """
    if count < 2:
        return 0.0
    normal, degrees = NormalDist(), count - 1
    z = normal.inv_cdf((1 + level) / 2)
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    return normal.cdf(-math.sqrt(count / degrees) * t)

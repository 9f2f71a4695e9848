"""How far chance alone moves a figure: intervals over the episodes that were measured."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_action.evaluation.episode_metric import EpisodeMetric


def intervals(
    metric: EpisodeMetric, num_draws: int = 200, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Compute the percentile bootstrap interval of each figure (Efron & Tibshirani 1993, chapter 13).

    As many episodes as there are get drawn again and again, with replacement; the interval holds the middle of what the
    figures of the draws are. Draws in which a figure is undefined are left out. Every rank must call it.

    Args:
        metric: Metric that keeps its episodes.
        num_draws: Number of draws.
        level: Share of the draws that lies in the interval.
        seed: Random seed of the draws.
    """
    episodes = {name: values.cpu() for name, values in metric.episodes().items()}
    count = min(map(len, episodes.values()), default=0)
    if not count:
        return {}
    random = torch.Generator().manual_seed(seed)
    draws = [torch.randint(count, (count,), generator=random) for _ in range(num_draws)]
    figures = [metric.figures({name: values[drawn] for name, values in episodes.items()}) for drawn in draws]
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)

    def middle(name: str) -> tuple[float, float]:
        values: Tensor = torch.tensor([each[name] for each in figures], dtype=torch.float64)
        low, high = values.nanquantile(tails).tolist()
        return low, high

    return {name: middle(name) for name in figures[0]}

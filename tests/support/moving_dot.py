"""Analytic videos of a dot, its paths, and what every metric must do with the episodes of several ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric

HEIGHT, WIDTH = 20, 24


def dot_paths(seed: int = 0, batch_size: int = 3, num_frames: int = 13, speed: float = 1.0) -> Tensor:
    """Paths `[B, T, 2]` of a random walk in pixels, from the middle of the frame."""
    random = torch.Generator().manual_seed(seed)
    steps = speed * (2 * torch.rand(batch_size, num_frames, 2, generator=random, dtype=torch.float64) - 1)
    steps[:, 0] = torch.tensor([WIDTH / 2, HEIGHT / 2])
    return steps.cumsum(dim=1)


def dot_video(positions: Tensor) -> Tensor:
    """Videos `[B, T, 3, H, W]` in [0, 1] of a soft reddish dot on dark grey."""
    columns, rows = torch.arange(WIDTH) + 0.5, torch.arange(HEIGHT) + 0.5
    across, down = columns - positions[..., :1], rows - positions[..., 1:]
    cover = torch.exp(-(across[..., None, :].square() + down[..., :, None].square()) / 8)
    return (0.2 + cover[..., None, :, :] * torch.tensor([0.7, 0.3, 0.1])[:, None, None]).float()


def assert_ranks_are_one(new: Callable[[], EpisodeMetric], first: list[Tensor], second: list[Tensor]) -> None:
    """Two ranks, merged, are one pass over the episodes of both; so are the values that are kept of each."""
    ranks = new(), new()
    for rank, arguments in zip(ranks, (first, second), strict=True):
        rank.update(*arguments)
    ranks[1].merge_state(ranks[0])
    whole = new()
    whole.update(*(torch.cat(pair) for pair in zip(first, second, strict=True)))
    # Means of the same numbers in another order.
    assert ranks[1].compute() == pytest.approx(whole.compute(), rel=1e-6, nan_ok=True)
    size = len(first[0]) + len(second[0])
    assert {name: len(values) for name, values in whole.per_episode().items()} == dict.fromkeys(
        whole.per_episode(), size
    )
    assert whole.figures(whole.episodes()) == pytest.approx(whole.compute(), nan_ok=True)

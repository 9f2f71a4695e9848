"""Episodes of training, validation and test: whole ones, the same in every run."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np


def split_episodes(episodes: Collection[int], shares: Mapping[str, float], seed: int) -> dict[str, set[int]]:
    """Put episodes into splits at random.

    Args:
        episodes: Numbers of the episodes.
        shares: Share of each split but `train`, from 0 on, less than 1 together; more than 0 is at least one episode.
        seed: Random seed that the split follows from.

    Returns:
        Numbers of the episodes of each split and of `train`, which gets the rest.

    Raises:
        ValueError: The shares are no such numbers, or leave nothing to train on.
    """
    if min(shares.values()) < 0 or sum(shares.values()) >= 1:
        raise ValueError(f"expected shares from 0 on, less than 1 together, got {dict(shares)}")
    order = np.random.default_rng(seed).permutation(sorted(episodes)).tolist()
    found = {}
    for name, share in shares.items():
        count = max(1, round(share * len(episodes))) if share else 0
        found[name], order = set(order[:count]), order[count:]
    if not order:
        raise ValueError(
            f"{len(episodes)} episodes leave none to train on beside {', '.join(shares)}: give more, or shares of 0"
        )
    return {"train": set(order), **found}

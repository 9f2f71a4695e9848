"""Tests of whether a difference is more than noise, paired and unpaired, over episodes, corrected for their number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_NUM_FLIPS, _NUM_DRAWS, _SEED = 10_000, 2_000, 0
# 2^13 choices of signs are fewer than the random ones.
_MOST_EXACT = 13


@dataclass(frozen=True)
class MeanDifference:
    """The outcome of a test.

    Args:
        difference: Mean difference.
        interval: Bootstrap interval of 95 % of it.
        p_value: Probability of a mean difference that far from 0, in either direction, if there is none.
        episodes: Number of episodes, or of the smaller set of them.
        is_paired: True if each episode was compared with itself.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    episodes: int
    is_paired: bool


def paired_test(first: Sequence[float], second: Sequence[float]) -> MeanDifference | None:
    """Test whether the figures of the same episodes differ, `second - first`; None where no episode has both.

    Args:
        first: Figure of each episode, NaN where it is undefined.
        second: The same of another model, in the same order.
    """
    difference = _defined(torch.tensor(second, dtype=torch.float64) - torch.tensor(first, dtype=torch.float64))
    if not len(difference):
        return None
    means = _resampled_means(difference, seed=_SEED)
    p_value = sign_flip_p_value(difference)
    return MeanDifference(difference.mean().item(), _middle(means), p_value, len(difference), is_paired=True)


def unpaired_test(first: Sequence[float], second: Sequence[float]) -> MeanDifference | None:
    """Test whether the figures of different episodes differ, `second - first`; None where a side has none.

    The p-value is that of a permutation of who belongs to whom (Pitman 1937, doi:10.2307/2984124).
    """
    one, other = (_defined(torch.tensor(values, dtype=torch.float64)) for values in (first, second))
    if not len(one) or not len(other):
        return None
    difference = (other.mean() - one.mean()).item()
    means = _resampled_means(other, seed=_SEED) - _resampled_means(one, seed=_SEED + 1)
    pooled, random = torch.cat([one, other]), torch.Generator().manual_seed(_SEED)
    order = torch.rand(_NUM_FLIPS, len(pooled), generator=random).argsort(dim=1)
    drawn = pooled[order]
    permuted = drawn[:, len(one) :].mean(dim=1) - drawn[:, : len(one)].mean(dim=1)
    p_value = (1 + _as_far(permuted, difference, pooled.abs().mean().item())) / (1 + _NUM_FLIPS)
    return MeanDifference(difference, _middle(means), p_value, min(len(one), len(other)), is_paired=False)


def sign_flip_p_value(differences: Tensor) -> float:
    """Compute the two-sided p-value of the sign-flip permutation test that the mean difference is 0.

    If neither model is better, each difference d_i could as well be -d_i. So

        p = share of signs s in {-1, 1}^n with |sum s_i d_i| >= |sum d_i|

    (Fisher 1935, The Design of Experiments, section 21). Up to 13 episodes all 2^n choices are counted. Beyond, it is
    `(1 + b) / (1 + m)` with b of m = 10,000 random ones at a fixed seed (Phipson and Smyth 2010,
    doi:10.2202/1544-6115.1585), which is never 0.

    Args:
        differences: Difference of each episode, all defined, `[n]` float64.
    """
    count, scale, total = len(differences), differences.abs().sum().item(), differences.sum().item()
    if count <= _MOST_EXACT:
        bits = torch.arange(2**count)[:, None] >> torch.arange(count) & 1
        return _as_far((1.0 - 2.0 * bits.double()) @ differences, total, scale) / 2**count
    random = torch.Generator().manual_seed(_SEED)
    signs = 1.0 - 2.0 * torch.randint(2, (_NUM_FLIPS, count), generator=random).double()
    return (1 + _as_far(signs @ differences, total, scale)) / (1 + _NUM_FLIPS)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number, so that the chance of any false alarm stays what one test's was (Holm 1979).

    The smallest of m is multiplied by m, the next one by m - 1, and so on; none falls below one before it, and 1 is the
    most. NaN stays, and does not count.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, least = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(order):
        least = max(least, min(1.0, p * (len(order) - rank)))
        corrected[place] = least
    return corrected


def _as_far(sums: Tensor, observed: float, scale: float) -> int:
    """Count what is as far from 0 as what was observed, up to rounding."""
    return int((sums.abs() >= abs(observed) - 1e-9 * scale).sum())


def _resampled_means(values: Tensor, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return values[torch.randint(len(values), (_NUM_DRAWS, len(values)), generator=random)].mean(dim=1)


def _middle(means: Tensor) -> tuple[float, float]:
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _defined(values: Tensor) -> Tensor:
    return values[values.isfinite()]

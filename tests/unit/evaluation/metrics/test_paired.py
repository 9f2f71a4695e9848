"""Tests over episodes, against what can be counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_action.evaluation.metrics.paired import holm, paired_test, sign_flip_p_value, unpaired_test


def flipped(differences: list[float]) -> float:
    return sign_flip_p_value(torch.tensor(differences, dtype=torch.float64))


@pytest.mark.parametrize(
    ("differences", "p_value"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2 / 32),  # all one way: itself and its mirror image
        ([-1.0, -2.0, -3.0, -4.0, -5.0], 2 / 32),
        ([0.3] * 10, 2 / 1024),
        ([1.0, 2.0, -3.0], 1.0),  # the sum is 0
        ([4.0, -1.0], 1.0),  # |±4 ± 1|: 3 or 5, and 3 was seen
        ([3.0, 2.0, -1.0], 4 / 8),  # |sums|: 6, 4, 2, 0 each twice, of which 4 or more
        ([0.0, 0.0, 0.0], 1.0),
        ([5.0], 1.0),  # one episode says nothing
    ],
)
def test_few_episodes_are_counted_exactly(differences: list[float], p_value: float) -> None:
    assert flipped(differences) == pytest.approx(p_value, abs=1e-12)


def test_without_episodes_nothing_is_known() -> None:
    assert paired_test([], []) is None
    assert paired_test([math.nan], [1.0]) is None
    assert unpaired_test([], [1.0]) is None


def test_episodes_without_a_difference_do_not_count() -> None:
    tested = paired_test([0.0, 0.0], [5.0, math.nan])
    assert tested is not None and (tested.difference, tested.p_value, tested.episodes) == (5.0, 1.0, 1)


def test_many_episodes_are_drawn_from() -> None:
    # All of 20 positive: 2 / 2^20, below what 10,000 draws can see.
    assert flipped([1.0] * 20) == pytest.approx(1 / 10_001)
    # 10 against 10 of the same size: the sum is 0, and nothing is nearer to it.
    assert flipped([1.0, -1.0] * 10) == 1.0
    # 15 against 5, whose sum is 10: P[|S| >= 10] of 20 fair signs is 2 sum_{k >= 15} C(20, k) / 2^20 = 0.0414.
    exact = 2 * sum(math.comb(20, count) for count in range(15, 21)) / 2**20
    assert flipped([1.0] * 15 + [-1.0] * 5) == pytest.approx(exact, abs=4 * math.sqrt(exact / 10_000))


def test_false_alarms_are_as_rare_as_they_should_be() -> None:
    random = torch.Generator().manual_seed(0)
    alarms = [flipped(torch.randn(8, generator=random).tolist()) < 0.05 for _ in range(400)]
    assert 0.02 < sum(alarms) / 400 < 0.08


def test_pairs_cancel_what_episodes_have_in_common() -> None:
    hard = [float(10 * episode) for episode in range(10)]
    easier = [value + 1 + 0.1 * (-1) ** episode for episode, value in enumerate(hard)]
    paired, unpaired = paired_test(hard, easier), unpaired_test(hard, easier)
    assert paired is not None and unpaired is not None
    assert paired.difference == pytest.approx(1) and unpaired.difference == pytest.approx(1)
    assert 0.9 < paired.interval[0] <= 1 <= paired.interval[1] < 1.1
    assert unpaired.interval[0] < -5 and unpaired.interval[1] > 5
    assert paired.p_value == pytest.approx(2 / 1024)
    assert unpaired.p_value > 0.5
    assert paired.episodes == unpaired.episodes == 10


def test_groups_that_are_apart_are_told_apart() -> None:
    apart = unpaired_test([0.0, 0.1, 0.2, 0.3, 0.4], [1.0, 1.1, 1.2])
    assert apart is not None
    assert apart.difference == pytest.approx(0.9)
    # Of C(8, 3) = 56 splits two are as far apart as that or nearly: the one seen, and none mirrors it.
    assert apart.p_value == pytest.approx(1 / 56, abs=0.006)
    assert apart.episodes == 3


def test_a_test_says_the_same_again() -> None:
    values = torch.randn(30, generator=torch.Generator().manual_seed(1)).tolist()
    assert paired_test([0.0] * 30, values) == paired_test([0.0] * 30, values)


def test_many_tests_are_corrected() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    corrected = holm([0.02, math.nan, 0.01])
    assert corrected[0] == pytest.approx(0.02) and math.isnan(corrected[1]) and corrected[2] == pytest.approx(0.02)
    assert holm([]) == []

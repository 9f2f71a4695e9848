from __future__ import annotations

import pytest

from lightning_action.recordings.splits import split_episodes

EPISODES = [3, 5, 7, 11, 13, 17, 19, 23, 29, 31]
SHARES = {"validation": 0.3, "test": 0.01}


def test_every_episode_is_in_one_split() -> None:
    found = split_episodes(EPISODES, SHARES, seed=0)
    assert {name: len(numbers) for name, numbers in found.items()} == {"train": 6, "validation": 3, "test": 1}
    assert sorted(number for numbers in found.values() for number in numbers) == EPISODES


def test_the_seed_alone_says_which() -> None:
    found = split_episodes(EPISODES, SHARES, seed=0)
    assert split_episodes(EPISODES[::-1], SHARES, seed=0) == found
    assert split_episodes(EPISODES, SHARES, seed=1) != found


def test_a_share_of_zero_is_none() -> None:
    assert split_episodes([1, 2], {"validation": 0, "test": 0}, seed=0) == {
        "train": {1, 2},
        "validation": set(),
        "test": set(),
    }


@pytest.mark.parametrize("shares", [{"validation": -0.1, "test": 0.5}, {"validation": 0.5, "test": 0.5}])
def test_shares_that_leave_nothing_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected shares from 0 on, less than 1 together, got"):
        split_episodes(EPISODES, shares, seed=0)


def test_too_few_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="^2 episodes leave none to train on beside validation, test: give more, or"):
        split_episodes([1, 2], {"validation": 0.1, "test": 0.1}, seed=0)

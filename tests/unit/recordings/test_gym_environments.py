"""An environment gets what the rows of a recording say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from lightning_action.recordings.gym_environments import action_from_row, action_row, draw_action, play, replay
from tests.support.dot_world import Alternating, DotWorld, anywhere

SPACES: list[spaces.Space[Any]] = [
    spaces.Box(-2.0, 2.0, (2, 3)),
    spaces.Box(0, 255, (2,), np.uint8),
    spaces.Discrete(5, start=-1),
    spaces.MultiDiscrete(np.array([[3, 2], [4, 5]]), start=np.array([[0, 1], [2, 3]])),
    spaces.MultiBinary((2, 2)),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_an_action_comes_back_from_its_row(space: spaces.Space[Any]) -> None:
    random = np.random.default_rng(0)
    for _ in range(10):
        action = draw_action(space, random)
        again = action_from_row(space, action_row(space, action))
        assert space.contains(again) and type(again) is type(action)
        np.testing.assert_array_equal(again, action, strict=True)


def test_bounds_of_more_digits_than_a_row_are_kept() -> None:
    space = spaces.Box(np.array([-0.1, -np.inf]), np.array([0.1, 0.1]), dtype=np.float64)
    for action in (np.array([0.1, 0.1]), np.array([-0.1, -9.0])):
        np.testing.assert_array_equal(action_from_row(space, action_row(space, action)), action)
    inside = action_from_row(space, action_row(space, np.array([1 / 30, 0.0])))
    assert space.contains(inside) and inside == pytest.approx([1 / 30, 0])


@pytest.mark.parametrize("policy", [Alternating(), anywhere])
def test_an_episode_is_played_again_to_its_end(policy: Any) -> None:
    env = DotWorld(end_after=6)

    def place(env: Any, observation: Any, info: Any) -> list[float]:
        found: list[float] = env.place.tolist()
        return found

    # Seeds of more than 32 bits are shortened alike.
    places, rows, _, ended = zip(*play(env, policy, 2**40 + 5, place), strict=True)
    again = replay(env, [*rows, *rows], 2**40 + 5, place)
    assert again[:-1] == list(places) and len(again) == 7 and ended == (False,) * 5 + (True,)
    assert replay(env, rows[:3], 2**40 + 5, place) == again[:4]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"an action of Box.* has shape \[2, 3\], got numbers \[0.0, 0.0\]"):
        action_from_row(SPACES[0], np.zeros(2, np.float32))

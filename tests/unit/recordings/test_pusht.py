"""Push-T with relative actions: the wrapper around a small environment of the same kind, and who acts in it."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

from lightning_action.recordings.pusht import PushTWanderer, Wanderer, make, make_pusht, with_relative_actions


class Pulled(gymnasium.Env[Any, Any]):
    """An agent that is at once where it is pulled to."""

    render_mode = "rgb_array"
    action_space = gymnasium.spaces.Box(0, 512, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(100, 400, 2)
        return self._look(), self._info()

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = np.array(action)
        return self._look(), 0.0, False, False, self._info()

    def _look(self) -> dict[str, np.ndarray]:
        pixels = np.zeros((512, 512, 3), np.uint8)
        pixels[int(self.place[1]), int(self.place[0])] = 255
        return {"pixels": pixels, "agent_pos": self.place}

    def _info(self) -> dict[str, Any]:
        return {"pos_agent": self.place, "block_pose": np.array([200.0, 300.0, 0.0])}


def test_an_action_leads_from_where_the_agent_is() -> None:
    env = with_relative_actions(Pulled())
    start, _ = env.reset(seed=1)
    for action in ([1.0, 0.0], [0.0, -0.5], [7.0, 0.0]):
        before = env.unwrapped.place  # type: ignore[attr-defined]
        after, *_ = env.step(np.array(action))
        np.testing.assert_allclose(after - before, 30 * np.clip(action, -1, 1))
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    assert start.shape == (2,)


def test_the_agent_stays_inside() -> None:
    env = with_relative_actions(Pulled())
    env.reset(seed=1)
    for _ in range(20):
        place, *_ = env.step(np.array([1.0, -1.0]))
    assert place.tolist() == [490, 22]


def test_it_renders_what_it_observes() -> None:
    env = with_relative_actions(Pulled())
    env.reset(seed=1)
    place, *_ = env.step(np.array([0.3, 0.2]))
    frame: Any = env.render()
    assert np.argwhere(frame[..., 0]).tolist() == [[int(place[1]), int(place[0])]]


def test_the_wanderer_holds_random_actions_or_goes_for_the_block() -> None:
    info = {"pos_agent": np.array([100.0, 100.0]), "block_pose": np.array([400.0, 400.0, 0.0])}
    policy, random = PushTWanderer(), np.random.default_rng(3)
    rows = np.array([policy(None, info, random) for _ in range(3000)])
    assert np.abs(rows).max() <= 1
    assert rows.std(0).min() > 0.4
    assert 0.5 < (rows[1:] == rows[:-1]).all(1).mean() < 0.95
    # 0.4 of the time there, and half of the rest.
    assert (rows.sum(1) > 0).mean() == pytest.approx(0.7, abs=0.1)


def test_an_episode_follows_from_its_random_generator_alone() -> None:
    info = {"pos_agent": np.array([100.0, 200.0]), "block_pose": np.array([200.0, 300.0, 0.0])}
    runs = []
    for _ in range(2):
        policy, random = PushTWanderer(), np.random.default_rng(5)
        runs.append([policy(None, info, random) for _ in range(40)])
    np.testing.assert_array_equal(*runs)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    with pytest.raises(ImportError, match=r"lightning_action\[pusht\]"):
        make_pusht()


def test_commands_that_were_typed_earlier_find_both() -> None:
    assert (make, Wanderer) == (make_pusht, PushTWanderer)

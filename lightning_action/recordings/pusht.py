"""The Push-T environment (Chi et al. 2023, arXiv:2303.04137) with relative actions, and somebody who pushes about.

In gym-pusht an action is the place that the agent is pulled to; here it is the way from the agent to that place, so
that the same action does the same wherever the agent is. All else is gym-pusht's: physics, walls, and how it is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gymnasium import Env

# Sides of the arena and its walls, in the units of gym-pusht: the agent, a disc of radius 15, has no walls itself.
_SIDE, _MARGIN = 512, 22
# How far away the agent is pulled by an action of 1, which moves it by 0.4 of that in a step.
_REACH = 30.0
# Shortest and longest time that an action is held, in steps, and how often it goes for the block.
_HELD_STEPS, _SHARE_OF_PUSHES = (3, 12), 0.4


def make_pusht() -> Env[Any, Any]:
    """Make Push-T with relative actions, rendered at 512 x 512.

    Raises:
        ImportError: The package gym-pusht is not installed.
    """
    try:
        import gym_pusht  # noqa: F401
        import gymnasium
    except ImportError as error:
        raise ImportError("Push-T needs gym-pusht: pip install 'lightning_action[pusht]'") from error
    size = {"observation_width": _SIDE, "observation_height": _SIDE}
    return with_relative_actions(gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos", **size))


def with_relative_actions(env: Env[Any, Any]) -> Env[Any, Any]:
    """Wrap Push-T so that actions (x to the right, y down) in [-1, 1] pull the agent from where it is.

    It renders what it observes: gym-pusht renders a mark as well, where the agent is pulled to.

    Args:
        env: Environment that observes `pixels` and `agent_pos`, and takes the place that the agent is pulled to.
    """
    import gymnasium

    class RelativePushT(gymnasium.Wrapper[Any, Any, Any, Any]):
        def __init__(self) -> None:
            super().__init__(env)
            self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
            self._seen: dict[str, np.ndarray] = {}

        def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
            self._seen, info = self.env.reset(**options)
            return self._seen["agent_pos"], info

        def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
            target = self._seen["agent_pos"] + _REACH * np.clip(action, -1, 1)
            self._seen, *rest = self.env.step(np.clip(target, _MARGIN, _SIDE - _MARGIN))
            return self._seen["agent_pos"], *rest

        def render(self) -> np.ndarray:
            return self._seen["pixels"]

    return RelativePushT()


class PushTWanderer:
    """Policy that holds each action for some steps: any of the square, or towards a place at the block."""

    def __init__(self) -> None:
        self._steps_left, self._pushes = 0, False
        self._action = self._offset = np.zeros(2)

    def __call__(self, observation: Any, info: Mapping[str, Any], random: np.random.Generator) -> np.ndarray:
        """Return the action of the next step."""
        if not self._steps_left:
            self._steps_left = int(random.integers(*_HELD_STEPS, endpoint=True))
            self._pushes = random.random() < _SHARE_OF_PUSHES
            self._action = random.uniform(-1, 1, 2)
            self._offset = random.normal(0, 40, 2)
        self._steps_left -= 1
        if self._pushes:
            way = info["block_pose"][:2] + self._offset - info["pos_agent"]
            speed = np.abs(self._action).max()
            return np.clip(speed * way / max(np.abs(way).max(), _REACH), -1, 1).astype(np.float32)
        return self._action.astype(np.float32)


# As commands name them that were typed before `lightning_action` exported both.
make, Wanderer = make_pusht, PushTWanderer

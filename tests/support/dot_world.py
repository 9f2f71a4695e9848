"""A gymnasium environment of one dot that draws its own frames, so that no rendering library is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from torch import Tensor

MOVES = np.array([[0, 0], [2, 0], [-2, 0], [0, 2], [0, -2]])
RADIUS = 3
SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-2.0, 2.0, (2,)),
    "discrete": spaces.Discrete(5, start=1),
    "multi_binary": spaces.MultiBinary(4),
    "multi_discrete": spaces.MultiDiscrete([3, 3]),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,)),
    "dict": spaces.Dict({"move": spaces.Discrete(2)}),
}


class DotWorld(gymnasium.Env[Any, Any]):
    """A bright dot on black; its place, (x, y) in pixels, is the observation.

    Args:
        actions: Kind of the actions.
        size: Height and width of a frame.
        end_after: Number of steps after which the episode ends.
        end_right_of: Place to the right of which the episode ends.
        pixels: Whether the observation is the frame, and the place in `info` alone.
        render_mode: Way to render.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        actions: str = "box",
        size: tuple[int, int] = (32, 48),
        end_after: int | None = None,
        end_right_of: float = np.inf,
        pixels: bool = False,
        render_mode: Literal["rgb_array", "ansi"] | None = "rgb_array",
    ) -> None:
        self.action_space, self.size, self.pixels = SPACES[actions], size, pixels
        self.end_after, self.end_right_of = end_after, end_right_of
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,))
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.np_random.uniform([RADIUS, RADIUS], self._room)
        self.num_steps = 0
        return self._seen(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.place = np.clip(self.place + self._move(action), RADIUS, self._room)
        self.num_steps += 1
        ended = self.num_steps == self.end_after or self.place[0] > self.end_right_of
        return self._seen(), float(self.place[0]), bool(ended), False, self._info()

    def render(self) -> Any:
        rows, columns = np.indices(self.size) + 0.5
        distance = np.hypot(columns - self.place[0], rows - self.place[1])
        cover = np.clip(RADIUS + 0.5 - distance, 0, 1)[:, :, None]
        return np.round(cover * [200, 220, 240]).astype(np.uint8)

    @property
    def _room(self) -> np.ndarray:
        height, width = self.size
        return np.array([width - RADIUS, height - RADIUS], float)

    def _move(self, action: Any) -> np.ndarray:
        if isinstance(self.action_space, spaces.Discrete):
            return MOVES[action - 1]
        if isinstance(self.action_space, spaces.MultiBinary):
            return np.array([action[0] - action[1], action[2] - action[3]])
        return np.asarray(action) - (1 if isinstance(self.action_space, spaces.MultiDiscrete) else 0)

    def _seen(self) -> Any:
        return self.render() if self.pixels else self.place.astype(np.float32)

    def _info(self) -> dict[str, Any]:
        return {"place": self.place.copy(), "num_steps": self.num_steps, "note": "a dot"}


class RestlessDotWorld(DotWorld):
    """The dot is also pushed by chance that no seed governs."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = self.place + np.random.default_rng().uniform(-1, 1, 2)
        return super().step(action)


class RememberingDotWorld(DotWorld):
    """A first frame is of the episode before, as where a renderer is not told of a reset."""

    last_frame: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.is_fresh = False
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.is_fresh = True
        return super().step(action)

    def render(self) -> Any:
        if self.is_fresh or self.last_frame is None:
            self.last_frame = super().render()
        return self.last_frame


def anywhere(observation: Any, info: Mapping[str, Any], random: np.random.Generator) -> Any:
    """A policy of more digits than the environment's actions have."""
    return random.uniform(-2, 2, 2)


def to_the_right(observation: Any, info: Mapping[str, Any], random: np.random.Generator) -> Any:
    """A policy: to the right, and somewhere up or down."""
    return np.array([1.0, random.uniform(-1, 1)], np.float32)


class Alternating:
    """A policy with a memory: right, left, right and so on, beginning anew with each episode."""

    def __init__(self) -> None:
        self.sign = 1

    def __call__(self, observation: Any, info: Mapping[str, Any], random: np.random.Generator) -> Any:
        self.sign = -self.sign
        return np.array([-self.sign, 0], np.float32)


def place_of(env: DotWorld, info: Mapping[str, Any]) -> Any:
    """Where the dot is in the rendered frame, in pixels."""
    return info["place"]


def locate(video: Tensor) -> tuple[Tensor, Tensor]:
    """Read the dot's place off videos `[B, T, 3, H, W]` in [-1, 1]: the centroid of what is bright."""
    import torch

    weight = (video.mean(2) + 1) / 2
    height, width = weight.shape[-2:]
    mass = weight.sum((2, 3))
    x = (weight.sum(2) * (torch.arange(width) + 0.5)).sum(2) / mass.clamp_min(1e-6)
    y = (weight.sum(3) * (torch.arange(height) + 0.5)).sum(2) / mass.clamp_min(1e-6)
    return torch.stack([x, y], -1), mass > 1


def make_nothing() -> object:
    return object()

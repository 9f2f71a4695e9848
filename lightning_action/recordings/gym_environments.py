"""Gymnasium environments as sources of videos with actions: what they are made from, who acts, and what is seen.

Positions in pixels are those of the rendered frame, x to the right and y down, with pixel i between i and i + 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lightning_action.action.schema import ActionPart
from lightning_action.configuration.class_paths import import_named, require_importable

if TYPE_CHECKING:
    from gymnasium import Env, Space

Policy = Callable[[Any, Mapping[str, Any], np.random.Generator], Any]
"""Policy that acts: a function of an observation, an info, and a random generator to an action of the environment."""

T = TypeVar("T")

# Shortest and longest time that a random action is held, in steps: long enough to see what it does.
_HELD_STEPS = (2, 8)


def make_environment(name: str, arguments: Mapping[str, Any]) -> Env[Any, Any]:
    """Make an environment that renders `rgb_array`.

    Args:
        name: Name in gymnasium, such as `Pendulum-v1`, or `my_module:my/Robot-v0` to import a module first; or
            `my_module:make`, a function or class that returns an environment.
        arguments: Arguments by name.

    Raises:
        ImportError: The module or gymnasium is missing, or may not be imported.
        ValueError: The environment does not exist, refuses the arguments, or does not render `rgb_array`.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError("environments need gymnasium: pip install 'lightning_action[env]'") from error
    module, separator, rest = name.partition(":")
    if separator and all(part.isidentifier() for part in rest.split(".")):
        make = import_named(name)
        try:
            inspect.signature(make).bind(**arguments)
        except TypeError as error:
            raise ValueError(f"{name} does not take these arguments ({', '.join(arguments)}): {error}") from error
        env = make(**arguments)
        if not isinstance(env, gymnasium.Env):
            raise ValueError(f"{name} must return a gymnasium.Env, got {type(env).__name__}")
    else:
        if separator:
            require_importable(module)
        try:
            made = {"render_mode": "rgb_array", "disable_env_checker": True, **arguments}
            env = gymnasium.make(name, **made)
        except (gymnasium.error.Error, TypeError, AssertionError) as error:
            raise ValueError(f"cannot make the environment {name!r}: {error}") from error
    if env.render_mode != "rgb_array":
        raise ValueError(f"{name} must have render_mode 'rgb_array', which gives frames, got {env.render_mode!r}")
    return env


def make_policy(name: str, space: Space[Any]) -> Callable[[], Policy]:
    """Return what makes the policy of an episode.

    Args:
        name: `random`; `hold`, random actions that are held for some steps; or `module:name`, a function of
            (observation, info, random), or a class of such, of which each episode gets a new one.
        space: Actions of the environment.

    Raises:
        ImportError: The module is missing, or may not be imported.
        ValueError: The policy does not exist, or a random one cannot draw from the space.
    """
    if name in ("random", "hold"):
        action_parts(space)
        return lambda: RandomPolicy(space, _HELD_STEPS if name == "hold" else (1, 1))
    if ":" not in name:
        raise ValueError(f"the policy is random, hold, or module:name, got {name!r}")
    found = import_named(name)
    if isinstance(found, type):
        return found
    return lambda: found


class RandomPolicy:
    """Random actions, each of which is held for a random number of steps.

    Single random actions cancel and leave little to see; held ones go somewhere. Sticky actions (Machado et al. 2018,
    arXiv:1709.06009) repeat the last action with a fixed chance instead; the two bounds here are this project's own.

    Args:
        space: Space to draw from.
        num_steps: Smallest and largest number of steps.
    """

    def __init__(self, space: Space[Any], num_steps: tuple[int, int]) -> None:
        self._space, self._num_steps = space, num_steps
        self._left, self._action = 0, None

    def __call__(self, observation: Any, info: Mapping[str, Any], random: np.random.Generator) -> Any:
        """Return the action of the next step."""
        if not self._left:
            self._left = int(random.integers(*self._num_steps, endpoint=True))
            self._action = draw_action(self._space, random)
        self._left -= 1
        return self._action


def action_parts(space: Space[Any]) -> list[ActionPart]:
    """Describe an action space by parts of an `ActionSchema`.

    Raises:
        ValueError: The space has no bounds, or is of a kind that no part describes.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return [ActionPart("action", "discrete", int(space.n))]
    if isinstance(space, spaces.MultiDiscrete):
        return [ActionPart(f"action_{i}", "discrete", int(n)) for i, n in enumerate(space.nvec.ravel())]
    if isinstance(space, spaces.MultiBinary):
        return [ActionPart("action", "multi_hot", int(np.prod(space.shape)))]
    if not isinstance(space, spaces.Box):
        raise ValueError(_no_row(space))
    low, high = (bound.astype(float).ravel().tolist() for bound in (space.low, space.high))
    if not np.isfinite([low, high]).all():
        raise ValueError(
            f"the action space {space} has no bounds: wrap the environment in gymnasium.wrappers.RescaleAction or "
            "ClipAction with finite ones, or let a policy of your own act (module:name) and give the schema yourself"
        )
    return [ActionPart("action", "continuous", len(low), low, high)]


def draw_action(space: Space[Any], random: np.random.Generator) -> Any:
    """Draw an action, each as likely as any other, of a space that `action_parts` describes."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return int(space.start + random.integers(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return (space.start + random.integers(space.nvec)).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return random.integers(2, size=space.shape, dtype=np.int8)
    assert isinstance(space, spaces.Box)
    if np.issubdtype(space.dtype, np.integer):
        return random.integers(space.low, space.high, endpoint=True, dtype=space.dtype)
    return random.uniform(space.low, space.high).astype(space.dtype)


def action_row(space: Space[Any], action: Any) -> np.ndarray:
    """Return an action as a row of numbers: float32 of a Box, int64 of others, whose classes begin with 0.

    Raises:
        ValueError: The space is of a kind whose actions are no rows.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        return np.asarray(action, np.float32).ravel()
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise ValueError(_no_row(space))
    first = 0 if isinstance(space, spaces.MultiBinary) else space.start
    return np.asarray(action - first, np.int64).ravel()


def action_from_row(space: Space[Any], row: np.ndarray) -> Any:
    """Return the action that `action_row` makes this row of, in the space's own type and shape.

    Raises:
        ValueError: The row has more or fewer numbers than an action.
    """
    from gymnasium import spaces

    if row.size != np.prod(space.shape or ()):
        raise ValueError(f"an action of {space} has shape {list(space.shape or ())}, got numbers {row.tolist()}")
    if isinstance(space, spaces.Discrete):
        return int(space.start + row.item())
    first = space.start if isinstance(space, spaces.MultiDiscrete) else 0
    action = (row.reshape(space.shape) + first).astype(space.dtype)
    if isinstance(space, spaces.Box):
        # A row has fewer digits than some spaces, and may have been rounded to beyond a bound.
        for bound in (space.low, space.high):
            action = np.where(action.astype(np.float32) == bound.astype(np.float32), bound, action)
    return action


def play(
    env: Env[Any, Any],
    policy: Policy,
    seed: int,
    look: Callable[[Env[Any, Any], Any, Mapping[str, Any]], T],
) -> Iterator[tuple[T, np.ndarray, float, bool]]:
    """Play an episode, all of which follows from its seed if the environment and the policy allow it.

    The environment gets what the rows say, so that `replay` plays it again from them.

    Args:
        env: Environment, which is reset.
        policy: Policy of this episode.
        seed: Random seed, at least 0.
        look: Function of environment, observation and info that is called before each action.

    Yields:
        Results of `look`, each with the row of the action that was taken then, its reward, and whether the episode
        ended.
    """
    random = np.random.default_rng(seed)
    observation, info = _reset(env, seed)
    ended = False
    while not ended:
        seen = look(env, observation, info)
        row = action_row(env.action_space, policy(observation, info, random))
        observation, reward, terminated, truncated, info = env.step(action_from_row(env.action_space, row))
        ended = bool(terminated or truncated)
        yield seen, row, float(reward), ended


def replay(
    env: Env[Any, Any],
    rows: Iterable[np.ndarray],
    seed: int,
    look: Callable[[Env[Any, Any], Any, Mapping[str, Any]], T],
) -> list[T]:
    """Play the episode of a seed again under any actions.

    Args:
        env: Environment, which is reset.
        rows: Rows of the actions.
        seed: Random seed that the episode was played from.
        look: Function of environment, observation and info that is called at the start and after each action.

    Returns:
        Results of `look`: one more than there are rows, or less often where the episode ends before.
    """
    playing = steer(env, seed, look)
    seen = [next(playing)]
    with suppress(StopIteration):
        for row in rows:
            seen.append(playing.send(row))
    return seen


def steer(
    env: Env[Any, Any], seed: int, look: Callable[[Env[Any, Any], Any, Mapping[str, Any]], T]
) -> Generator[T, np.ndarray, None]:
    """Play the episode of a seed under rows of actions that are sent one by one; see `replay`."""
    row = yield look(env, *_reset(env, seed))
    while True:
        observation, _, terminated, truncated, info = env.step(action_from_row(env.action_space, row))
        row = yield look(env, observation, info)
        if terminated or truncated:
            return


def _reset(env: Env[Any, Any], seed: int) -> tuple[Any, Mapping[str, Any]]:
    # Some environments take 32 bits at most, or 31.
    return env.reset(seed=seed % 2**31)


def render(env: Env[Any, Any]) -> np.ndarray:
    """Render a frame `[H, W, 3]` of uint8.

    Raises:
        ValueError: The environment does not render a picture `[H, W, 3]` of uint8.
    """
    frame: Any = env.render()
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        found = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"expected render() to give [height, width, 3] of uint8, got {found}")
    return frame


def resized(frame: np.ndarray, frame_size: tuple[int, int] | None) -> np.ndarray:
    """Resize a frame to some height and width, if they are given, without cutting anything off."""
    if frame_size is None or frame.shape[:2] == tuple(frame_size):
        return frame
    from PIL import Image

    height, width = frame_size
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))


def read_state(observation: Any, info: Mapping[str, Any], keys: Sequence[str] | None) -> dict[str, float]:
    """Find numbers that say what state the environment is in, by name.

    Args:
        observation: Observation: a vector is the state, and of a mapping the vectors in it.
        info: Values that came with it.
        keys: Names of values of the observation or of `info`, which are the state instead.

    Raises:
        ValueError: A key names nothing, or no numbers.
    """
    inside = observation if isinstance(observation, Mapping) else {"state": observation}
    if keys is None:
        found = {name: value for name, value in inside.items() if np.ndim(value) == 1}
    else:
        known = {**info, **inside}
        if missing := [key for key in keys if key not in known]:
            raise ValueError(f"there is no {missing[0]!r} in observation and info, which have {', '.join(known)}")
        found = {key: known[key] for key in keys}
    state: dict[str, float] = {}
    for name, value in found.items():
        numbers = np.asarray(value)
        if numbers.dtype.kind not in "fiub":
            raise ValueError(f"{name!r} is no numbers: got {numbers.dtype}")
        single = numbers.ndim == 0
        state |= {name if single else f"{name}_{i}": float(number) for i, number in enumerate(numbers.ravel())}
    return state


def frames_per_second(env: Env[Any, Any]) -> float | None:
    """Return the number of frames of a second that the environment says; None if it says nothing."""
    rate = env.metadata.get("render_fps")
    return None if rate is None else float(rate)


def _no_row(space: Space[Any]) -> str:
    return (
        f"the action space {space} is none of Box, Discrete, MultiDiscrete and MultiBinary: wrap the environment "
        "(gymnasium.ActionWrapper) so that an action is one row of numbers"
    )

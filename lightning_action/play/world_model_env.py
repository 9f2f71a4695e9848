"""A world model as an environment of gymnasium, alone and as a vector.

Importing this needs the extra `env`.

A world model generates blocks of frames, and what a block shows is known when all of its action rows are: in a model
of one latent frame a block, four rows, which lead to four pixel frames. So a step of the environment is a block. Its
action is one row, held for the block (what is called frame skip, or action repeat), or all rows of the block; its
observation is the last frame, and `info["frames"]` has all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from typing_extensions import Self

from lightning_action.data.split_data import Split
from lightning_action.generation.sampling import Sampling
from lightning_action.generation.world_session import WorldSession
from lightning_action.generator.causality import BlockCausality
from lightning_action.module.generative_module import GenerativeModule
from lightning_action.play.image_encoding import bytes_of_frames
from lightning_action.play.spaces import action_space
from lightning_action.play.starts import Starts, model_and_starts
from lightning_action.play.world_batches import (
    OpenSession,
    Reward,
    Rules,
    Terminated,
    WorldBatch,
    WorldBatches,
    draw_start,
)
from lightning_action.ranges import require_numbers

try:
    from gymnasium import Env, spaces
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise ImportError("environments need gymnasium: pip install 'lightning_action[env]'") from error


class WorldModelEnv(Env[np.ndarray, Any]):
    """A generated world to act in; the observation is its last frame, uint8 `[H, W, 3]`.

    A step is a block of frames: `info["frames"]` holds all of it, uint8 `[t, H, W, 3]`, and `info["step"]` how many
    steps there were. `info["start"]` is the number that was drawn for the start, below 2^31: of N first frames, or
    clips of a run, that number modulo N is taken. `reset(options={"start": i})` begins at start i. First frames come
    without actions, see `Starts`. What is worth something, and when a world ends, only you know.

    The action is a `Box` from low to high where the schema has continuous parts alone, `Discrete`, `MultiDiscrete` or
    `MultiBinary` where it has such, and a `Dict` by the names of its parts where it mixes them.

    Args:
        model: Module that generates; or a function of a number of worlds that opens a session of so many. A module
            without a window needs `max_steps`, which bounds its memory.
        starts: First frames of worlds, `[N, T, 3, H, W]` in [0, 1], one of which is drawn at each reset; or a function
            of a number from 0 on to first frames `[T, 3, H, W]` and a prompt.
        reward: Function of a step's frames, action rows `[rows, columns]` and info to its reward; None for 0.
        terminated: Function of a step's frames and info that says whether the world has ended; None for never.
        max_steps: Number of steps after which a world is truncated; None for no limit.
        holds_action: True makes an action one row that is held for the block, False all rows of the block.
        fps: Pixel frames a second, for `render_fps`.
        causality: Block size and window in place of the module's own; a world without end needs a window.
        sampling: Settings of generation in place of the module's own.
        render_mode: `rgb_array`, or None.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(
        self,
        model: GenerativeModule | OpenSession,
        starts: Tensor | Starts,
        reward: Reward | None = None,
        terminated: Terminated | None = None,
        max_steps: int | None = None,
        *,
        holds_action: bool = True,
        fps: float = 16.0,
        causality: BlockCausality | None = None,
        sampling: Sampling | None = None,
        render_mode: str | None = "rgb_array",
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is rgb_array or None, got {render_mode!r}")
        self.render_mode = render_mode
        self.model, self.starts = model, starts
        rules = Rules(reward, terminated, max_steps, holds_action, fps)
        self._worlds = WorldBatches(model, starts, rules, causality=causality, sampling=sampling)
        self.action_space = action_space(self._worlds.schema, self._worlds.num_rows)
        self.observation_space = spaces.Box(0, 255, self._worlds.frame_shape, np.uint8)
        self.metadata = {**self.metadata, "render_fps": self._worlds.steps_per_second}
        self._group: WorldBatch | None = None
        self._num_steps = self._start = 0

    @classmethod
    def from_run(
        cls,
        config: str | Path | Sequence[str | Path],
        ckpt_path: str | Path,
        *,
        split: Split = "test",
        allow: Sequence[str] = (),
        **settings: Any,
    ) -> Self:
        """Make an environment of a trained run, whose worlds begin at the samples of its data.

        Args:
            config: Configuration of the run, or several that stack.
            ckpt_path: Checkpoint of the run.
            split: Samples that worlds begin at.
            allow: Modules whose classes the configuration may name, see `load_run`.
            **settings: Further arguments of the constructor, such as `reward`, `max_steps` and `causality`.

        Raises:
            FileNotFoundError: The configuration or the checkpoint is not there.
            ValueError: The configuration or the checkpoint is none, or the data has no clips.
        """
        return cls(*model_and_starts(config, ckpt_path, split, allow, settings.get("sampling")), **settings)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a world: the start, and the noise of what follows, are drawn from the seed."""
        super().reset(seed=seed)
        self._close_session()
        self._start, sample = draw_start(self.np_random, options)
        self._group, self._num_steps = self._worlds.begin([self._start], [sample]), 0
        return self._group.frames[0, -1].copy(), {"start": self._start, "step": 0}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Generate the next block under an action.

        Raises:
            RuntimeError: There was no `reset`.
        """
        group = self._begun()
        rows = self._worlds.rows_of([action], group.session)
        group.frames = bytes_of_frames(group.session.step_block(rows))
        self._num_steps += 1
        return self._worlds.judge(group.frames[0], rows[0], self._num_steps, self._start)

    def render(self) -> np.ndarray | None:
        """Return the last frame, uint8 `[H, W, 3]`."""
        return None if self.render_mode is None else self._begun().frames[0, -1].copy()

    def close(self) -> None:
        """Free the memory of the world."""
        self._close_session()

    @property
    def session(self) -> WorldSession:
        """The session under the world, to fork futures of it."""
        return self._begun().session

    def _begun(self) -> WorldBatch:
        if self._group is None:
            raise RuntimeError("there is no world yet: call reset first")
        return self._group

    def _close_session(self) -> None:
        if self._group is not None:
            self._group.session.close()
            self._group = None


class WorldModelVectorEnv(VectorEnv[np.ndarray, Any, np.ndarray]):
    """Several generated worlds, stepped together where they stand at the same frame.

    Worlds that began together are one batch; a cache has one position, so one that begins anew while others go on has a
    batch of its own, with those that begin at the same step. So worlds that are only ever truncated, after `max_steps`,
    stay one batch for ever; where they end one by one there are up to `num_envs` batches. A world that has ended begins
    anew at the next step, which ignores its action (`AutoresetMode.NEXT_STEP`).

    Args:
        model: Model, as in `WorldModelEnv`.
        starts: Beginnings as in `WorldModelEnv`; all first frames have the same shape.
        num_envs: Number of worlds.
        reward: Reward as in `WorldModelEnv`, as all that follow.
        terminated: True if a world has ended.
        max_steps: Number of steps after which a world is truncated.
        holds_action: True if an action is one row.
        fps: Pixel frames a second.
        causality: Block size and window.
        sampling: Settings of generation.
        render_mode: `rgb_array`, or None.
    """

    def __init__(
        self,
        model: GenerativeModule | OpenSession,
        starts: Tensor | Starts,
        num_envs: int,
        reward: Reward | None = None,
        terminated: Terminated | None = None,
        max_steps: int | None = None,
        *,
        holds_action: bool = True,
        fps: float = 16.0,
        causality: BlockCausality | None = None,
        sampling: Sampling | None = None,
        render_mode: str | None = "rgb_array",
    ) -> None:
        require_numbers({"num_envs": num_envs}, 1, whole=True)
        self.num_envs, self.render_mode = num_envs, render_mode
        rules = Rules(reward, terminated, max_steps, holds_action, fps)
        self._worlds = WorldBatches(model, starts, rules, causality=causality, sampling=sampling)
        self.single_action_space = action_space(self._worlds.schema, self._worlds.num_rows)
        self.single_observation_space = spaces.Box(0, 255, self._worlds.frame_shape, np.uint8)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": self._worlds.steps_per_second,
            "autoreset_mode": AutoresetMode.NEXT_STEP,
        }
        self._groups: list[WorldBatch] = []
        self._randoms = [np.random.default_rng() for _ in range(num_envs)]
        self._num_steps, self._start_of = [0] * num_envs, [0] * num_envs
        self._has_ended = [False] * num_envs

    @classmethod
    def from_run(
        cls,
        config: str | Path | Sequence[str | Path],
        ckpt_path: str | Path,
        num_envs: int,
        *,
        split: Split = "test",
        allow: Sequence[str] = (),
        **settings: Any,
    ) -> Self:
        """Make a vector of a trained run; arguments and errors are those of `WorldModelEnv.from_run`."""
        parts = model_and_starts(config, ckpt_path, split, allow, settings.get("sampling"))
        return cls(*parts, num_envs, **settings)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin all worlds anew; an int seeds world i with `seed + i`.

        Raises:
            ValueError: There is another number of seeds than of worlds, or one is negative; nothing has changed.
        """
        self._randoms = self._seeded(seed)
        self.close_extras()
        infos = self._begin(list(range(self.num_envs)), options, {})
        return self._observations(), infos

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Generate the next block of every world; those that had ended begin anew.

        `infos["frames"]` holds the frames of each world's block, uint8 `[t, H, W, 3]`, and None of one that began anew.

        Raises:
            ValueError: An action does not fit; no world has moved.
            RuntimeError: There was no `reset`, or the model gave values that are not finite. Worlds that cannot be
                generated (or find no memory) end all of them, since others may have moved: `reset` begins anew.
        """
        self._require_worlds()
        each = _each_action(actions, self.num_envs)
        going = [(group, self._places_going_on(group)) for group in self._groups]
        # Looked at before any world has moved.
        rows = [
            self._worlds.rows_of([each[group.worlds[place]] for place in places], group.session)
            for group, places in going
            if places
        ]
        anew = [world for world in range(self.num_envs) if self._has_ended[world]]
        infos: dict[str, Any] = {"frames": np.empty(self.num_envs, dtype=object)}
        try:
            self._drop_ended(going)
            stepped = list(zip(self._groups, rows, strict=True))
            for group, own in stepped:
                group.frames = bytes_of_frames(group.session.step_block(own))
            if anew:
                infos = self._begin(anew, None, infos)
        except BaseException:
            self.close_extras()
            raise
        return self._judged(stepped, infos)

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the last frame of each world, uint8 `[H, W, 3]`. Raises RuntimeError where there are no worlds."""
        self._require_worlds()
        return None if self.render_mode is None else tuple(self._observations())

    def close_extras(self, **kwargs: Any) -> None:
        """Free the memory of the worlds."""
        for group in self._groups:
            group.session.close()
        self._groups = []

    @property
    def num_batches(self) -> int:
        """Number of batches that the worlds are stepped in."""
        return len(self._groups)

    def _require_worlds(self) -> None:
        if not self._groups:
            raise RuntimeError("there are no worlds yet: call reset first")

    def _seeded(self, seed: int | Sequence[int | None] | None) -> list[np.random.Generator]:
        """Return the random generator of each world: a new one where there is a seed, else the one that it has."""
        if seed is None or isinstance(seed, int | np.integer):
            seeds = [None if seed is None else seed + world for world in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"expected a seed, or one for each of the {self.num_envs} worlds, got {len(seeds)}")
        return [
            random if own is None else np.random.default_rng(own)
            for own, random in zip(seeds, self._randoms, strict=True)
        ]

    def _begin(self, worlds: list[int], options: dict[str, Any] | None, infos: dict[str, Any]) -> dict[str, Any]:
        """Begin some worlds anew, as a batch of their own; return `infos` with what is known of them."""
        drawn = [draw_start(self._randoms[world], options) for world in worlds]
        group = self._worlds.begin([start for start, _ in drawn], [sample for _, sample in drawn])
        group.worlds = worlds
        self._groups.append(group)
        for world, (start, _) in zip(worlds, drawn, strict=True):
            self._num_steps[world], self._start_of[world], self._has_ended[world] = 0, start, False
            infos = self._add_info(infos, {"start": start, "step": 0}, world)
        return infos

    def _places_going_on(self, group: WorldBatch) -> list[int]:
        return [place for place, world in enumerate(group.worlds) if not self._has_ended[world]]

    def _drop_ended(self, going: list[tuple[WorldBatch, list[int]]]) -> None:
        """Keep the places of each batch; batches without any are freed before others are copied."""
        for group, places in going:
            if not places:
                group.session.close()
        self._groups = [group.keep(places) for group, places in going if places]

    def _judged(
        self, stepped: list[tuple[WorldBatch, np.ndarray]], infos: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Give what `step` hands over, of the batches that were stepped under some rows."""
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)
        for group, _ in stepped:
            for world in group.worlds:
                self._num_steps[world] += 1
        for group, rows in stepped:
            for place, world in enumerate(group.worlds):
                _, rewards[world], terminated[world], truncated[world], info = self._worlds.judge(
                    group.frames[place], rows[place], self._num_steps[world], self._start_of[world]
                )
                infos["frames"][world] = info.pop("frames")
                infos = self._add_info(infos, info, world)
        self._has_ended = (terminated | truncated).tolist()
        return self._observations(), rewards, terminated, truncated, infos

    def _observations(self) -> np.ndarray:
        seen = np.empty(self.observation_space.shape or (), np.uint8)
        for group in self._groups:
            seen[group.worlds] = group.frames[:, -1]
        return seen


def _each_action(actions: Any, count: int) -> Sequence[Any]:
    for part in actions.values() if isinstance(actions, dict) else [actions]:
        if np.shape(part)[:1] != (count,):
            raise ValueError(f"expected an action for each of the {count} worlds, got the shape {list(np.shape(part))}")
    if isinstance(actions, dict):
        return [{name: value[place] for name, value in actions.items()} for place in range(count)]
    return [actions[place] for place in range(count)]

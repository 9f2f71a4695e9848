"""Base of an environment of a world model and of a vector of such: batches of worlds that are stepped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_action.action.schema import ActionSchema
from lightning_action.batch import num_latent_frames
from lightning_action.generation.world_session import WorldSession
from lightning_action.module.generative_module import GenerativeModule
from lightning_action.play.image_encoding import bytes_of_frames
from lightning_action.play.spaces import action_rows
from lightning_action.play.starts import Starts, starts_of_frames
from lightning_action.ranges import require_numbers

OpenSession = Callable[[int], WorldSession]
"""Opens a session of so many worlds."""
Reward = Callable[[np.ndarray, np.ndarray, dict[str, Any]], float]
"""Reward of a step, from its frames, uint8 `[t, H, W, 3]`, its action rows `[rows, columns]`, and its info."""
Terminated = Callable[[np.ndarray, dict[str, Any]], bool]
"""Test of whether a world has ended, from the frames of its last step, uint8 `[t, H, W, 3]`, and its info."""

_NUM_STARTS = 2**31


@dataclass(frozen=True)
class Rules:
    """Rules that a world model leaves open: what is worth something, and when it ends; see `WorldModelEnv`."""

    reward: Reward | None = None
    terminated: Terminated | None = None
    max_steps: int | None = None
    holds_action: bool = True
    fps: float = 16.0

    def __post_init__(self) -> None:
        if self.max_steps is not None:
            require_numbers({"max_steps": self.max_steps}, 1, whole=True)
        require_numbers({"fps": self.fps}, 0, without_low=True)


class WorldBatches:
    """Base of the environment and its vector: sessions that are opened, begun and stepped, and the spaces.

    Args:
        model: Module, or what opens sessions.
        starts: Beginnings of worlds.
        rules: Reward, end, and form of an action.
        **settings: Arguments of a module's `open_session`, of which None stand for the module's own.

    Raises:
        ValueError: The function that opens sessions takes no settings, or blocks are not alike where an action has all
            their rows.
    """

    def __init__(
        self, model: GenerativeModule | OpenSession, starts: Tensor | Starts, rules: Rules, **settings: Any
    ) -> None:
        self._model, self.rules = model, rules
        self._settings = {name: value for name, value in settings.items() if value is not None}
        if self._settings and not isinstance(model, GenerativeModule):
            raise ValueError(f"{', '.join(self._settings)} are for a module: give them to what opens sessions")
        self._starts = starts_of_frames(starts) if isinstance(starts, Tensor) else starts
        with self.begin([0], [0]).session as session:
            self.schema: ActionSchema = session.schema
            rows, height, width = session.rows_wanted, *session.frame_size
            frames_of_block = session.causality.num_frame_per_block * self.schema.temporal_compression_ratio
            if not rules.holds_action:
                session.step_block(torch.zeros(1, rows, self.schema.num_columns))
                if session.rows_wanted != rows:
                    raise ValueError(
                        f"the first block takes {rows} action rows and later ones {session.rows_wanted}: hold one "
                        "action for each block (holds_action), or begin with whole blocks"
                    )
        self.num_rows = None if rules.holds_action else rows
        self.frame_shape = (height, width, 3)
        self.steps_per_second = max(1, round(rules.fps / frames_of_block))

    def begin(self, starts: Sequence[int], samples: Sequence[int]) -> WorldBatch:
        """Begin worlds at some starts, with some numbers for their noise."""
        frames, prompts = zip(*(self._starts(number) for number in starts), strict=True)
        first = torch.stack(frames)
        session = self._open(len(starts), first.shape[1])
        seen = session.reset(first, list(prompts), sample_id=list(samples))
        return WorldBatch(session, bytes_of_frames(seen)[:, -1:])

    def rows_of(self, actions: Sequence[Any], session: WorldSession) -> np.ndarray:
        """Turn actions of worlds of a session into the rows of its next block, `[B, rows, columns]`.

        Raises:
            ValueError: An action has another size, or values that the schema does not take.
        """
        rows = np.stack([action_rows(self.schema, action, self.num_rows) for action in actions])
        self.schema.encode_rows(torch.from_numpy(rows))
        return np.repeat(rows, session.rows_wanted, axis=1) if self.rules.holds_action else rows

    def judge(
        self, frames: np.ndarray, rows: np.ndarray, num_steps: int, start: int
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Say what a step of one world is worth, and whether it is the last one: what `step` of gymnasium returns."""
        # Whoever has them may write into them.
        frames, last = frames.copy(), frames[-1].copy()
        info = {"frames": frames, "start": start, "step": num_steps}
        reward = 0.0 if self.rules.reward is None else float(self.rules.reward(frames, rows, info))
        ends = self.rules.terminated is not None and bool(self.rules.terminated(frames, info))
        is_long = self.rules.max_steps is not None and num_steps >= self.rules.max_steps
        return last, reward, ends, is_long, info

    def _open(self, num_worlds: int, num_frames: int) -> WorldSession:
        if not isinstance(self._model, GenerativeModule):
            return self._model(num_worlds)
        causality = self._settings.get("causality", self._model.causality)
        if causality.local_attn_size is not None or self.rules.max_steps is None:
            return self._model.open_session(num_worlds, **self._settings)
        first = num_latent_frames(num_frames, self._model.schema.temporal_compression_ratio)
        longest = first + self.rules.max_steps * causality.num_frame_per_block
        return self._model.open_session(num_worlds, max_latents=longest, **self._settings)


@dataclass
class WorldBatch:
    """Worlds that stand at the same frame, in one session.

    Args:
        session: Session of the worlds.
        frames: Frames of the last step of each, uint8 `[B, t, H, W, 3]`.
        worlds: Number of each in the vector.
    """

    session: WorldSession
    frames: np.ndarray
    worlds: list[int] = field(default_factory=lambda: [0])

    def keep(self, places: list[int]) -> WorldBatch:
        """Return the worlds at some places, in order; if these are not all, this batch is closed."""
        if len(places) == len(self.worlds):
            return self
        rest = WorldBatch(self.session.select(places), self.frames[places], [self.worlds[place] for place in places])
        self.session.close()
        return rest


def draw_start(random: np.random.Generator, options: dict[str, Any] | None) -> tuple[int, int]:
    """Draw the number of a start, unless `options` say it, and the number that the noise belongs to."""
    start, sample = random.integers(_NUM_STARTS, size=2).tolist()
    return int((options or {}).get("start", start)), sample

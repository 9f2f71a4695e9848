"""The simulator itself as a session: a fast world that does exactly what actions say."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_action import MovingSpriteWorld
from lightning_action.batch import to_unit_range
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.play.live_world import Stage
from lightning_action.play.scenes import SimulatedTruth, frames_per_second, scenes_of

WORLD = MovingSpriteWorld(image_size=(20, 28), sprite_radius=3.0, max_speed=1.0)


class SimulatedSession:
    """Latent frames of four pixel frames, generated one by one by a simulator.

    It knows where it is from the first frame, as a model does; the prompt changes nothing but the brightness, and the
    seed nothing. Prompts of more words than the demo's text encoder takes are refused.
    """

    def __init__(self, world: MovingSpriteWorld = WORLD, seconds: float = 0.0) -> None:
        self.world, self.seconds = world, seconds
        self.truth: SimulatedTruth | None = None
        self.calls: list[str] = []
        self.dims = 1.0
        self.rows: list[Tensor] = []

    @property
    def rows_wanted(self) -> int:
        return 4

    @property
    def block_seconds(self) -> Mapping[str, float]:
        return {"generate": self.seconds, "decode": 0.0}

    def reset(
        self,
        first_frames: Tensor | None = None,
        prompt: str | None = None,
        seed: int | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> Tensor:
        assert first_frames is not None and seed is not None and frame_size is None
        HashingTextEncoder().encode([prompt or ""])
        self.calls.append(f"reset {seed} {prompt}")
        starts = [self.world.start([number]) for number in seeds()]
        shown = [to_unit_range(self.world.render(start, start.position[:, None])) for start in starts]
        found = next(start for start, frames in zip(starts, shown, strict=True) if torch.equal(frames, first_frames))
        self.truth = SimulatedTruth(self.world, found)
        self.dims = 1.0
        return first_frames

    def step_block(self, actions: Tensor) -> Tensor:
        assert self.truth is not None and actions.shape[:2] == (1, self.rows_wanted)
        time.sleep(self.seconds)
        self.calls.append("step")
        self.rows.append(actions[0])
        return self.truth.go_on(actions[0])[None] * self.dims

    def prompt(self, text: str) -> None:
        HashingTextEncoder().encode([text])
        self.calls.append(f"prompt {text}")
        self.dims = 0.5

    def write_pending(self) -> None:
        self.calls.append("write")

    def close(self) -> None:
        self.calls.append("close")


def data() -> SpriteDataModule:
    sizes = {"batch_size": 1, "train_size": 1, "validation_size": 1, "test_size": 7, "predict_size": 1}
    return SpriteDataModule(WORLD, num_latents=3, **sizes)  # type: ignore[arg-type]


def seeds() -> list[int]:
    return data().dataset("test").seeds(range(7))


def simulated_stage(new_session: Callable[[], Any] = SimulatedSession, **changes: Any) -> Stage:
    start, fps = scenes_of(data(), "test", 1, 4), frames_per_second(data(), "test")
    return Stage(**{"schema": data().action_schema, "open_session": new_session, "start": start, "fps": fps, **changes})

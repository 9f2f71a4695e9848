"""A session beside its truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_action.play.image_encoding import bytes_of_frames
from lightning_action.play.live_world import LiveWorld, RefusedWishError, Start
from tests.support.simulated_session import SimulatedSession, simulated_stage


class Notes:
    """An observer that keeps what it sees."""

    is_over = False

    def __init__(self) -> None:
        self.seen: list[tuple[str, object]] = []

    def begin(self, seed: int, prompt: str, frames: Tensor, given: Tensor | None) -> None:
        self.seen.append((f"begin {seed} {prompt}", frames))

    def step(self, rows: Tensor, frames: Tensor) -> None:
        self.seen.append(("step", (rows, frames)))

    def prompt(self, text: str) -> None:
        self.seen.append((f"prompt {text}", None))

    def close(self) -> None:
        self.seen.append(("close", None))


def test_a_row_is_held_for_a_block_and_the_truth_goes_along() -> None:
    session = SimulatedSession(seconds=0.001)
    world = LiveWorld(simulated_stage(lambda: session))
    first = world.reset(3)
    assert first.number == 0 and first.frames.shape == (1, 20, 28, 3) and first.frames.dtype == np.uint8
    assert first.truth is not None and np.array_equal(first.truth, first.frames)
    block = world.step(torch.tensor([0.5, -1.0]))
    assert block.number == 1 and block.frames.shape == (4, 20, 28, 3)
    assert block.truth is not None and np.array_equal(block.truth, block.frames)
    assert block.distance is not None and block.distance < 0.2
    assert block.seconds == {"generate": 0.001, "decode": 0.0}
    assert [rows.tolist() for rows in session.rows] == [[[0.5, -1.0]] * 4]


def test_a_reset_begins_the_truth_anew_and_counts_from_zero() -> None:
    world = LiveWorld(simulated_stage())
    first, block = world.reset(3), None
    for _ in range(3):
        block = world.step(torch.tensor([1.0, 0.0]))
    again = world.reset(3)
    assert np.array_equal(again.frames, first.frames) and again.number == 0
    assert block is not None and not np.array_equal(block.frames[-1:], first.frames)
    assert world.step(torch.tensor([1.0, 0.0])).number == 1


def test_prompts_are_the_worlds_own_or_those_given() -> None:
    session = SimulatedSession()
    world = LiveWorld(simulated_stage(lambda: session))
    world.reset(2)
    own = world.text
    world.reset(2, "a cat")
    world.prompt("a dog")
    world.write_pending()
    world.close()
    assert own.startswith("a ") and world.text == "a dog"
    assert session.calls == [f"reset 2 {own}", "reset 2 a cat", "prompt a dog", "write", "close"]


def test_what_is_refused_leaves_the_world_as_it_was() -> None:
    world, other = LiveWorld(simulated_stage()), LiveWorld(simulated_stage())
    for each in (world, other):
        each.reset(2)
        each.step(torch.tensor([1.0, 0.0]))
    for refused in (lambda: world.reset(3, "word " * 9), lambda: world.prompt("word " * 9)):
        with pytest.raises(RefusedWishError, match="prompt has 9 words, the text encoder takes 8"):
            refused()
    assert (world.seed, world.text) == (2, other.text)
    found, expected = (each.step(torch.tensor([0.0, 1.0])) for each in (world, other))
    assert found.number == 2 and np.array_equal(found.frames, expected.frames)
    assert found.truth is not None and expected.truth is not None and np.array_equal(found.truth, expected.truth)


def test_a_start_that_cannot_be_read_leaves_the_world_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    stage = simulated_stage()

    def start(seed: int) -> Start:
        if seed == 3:
            raise FileNotFoundError("no videos/000003.mp4")
        return stage.start(seed)

    world, other = LiveWorld(replace(stage, start=start)), LiveWorld(stage)
    for each in (world, other):
        each.reset(2)
    with pytest.raises(RefusedWishError, match="world 3 cannot be read: the server's output says why"):
        world.reset(3)
    assert "no videos/000003.mp4" in caplog.text
    found, expected = (each.step(torch.tensor([0.0, 1.0])) for each in (world, other))
    assert found.number == 1 and np.array_equal(found.frames, expected.frames)


def test_an_observer_sees_all_of_it() -> None:
    notes = Notes()
    world = LiveWorld(simulated_stage(), notes)
    first = world.reset(2, "a cat")
    block = world.step(torch.tensor([0.25, 0.0]))
    world.prompt("b")
    world.close()
    assert [name for name, _ in notes.seen] == ["begin 2 a cat", "step", "prompt b", "close"]
    rows, frames = notes.seen[1][1]  # type: ignore[misc]
    assert rows.tolist() == [[0.25, 0.0]] * 4 and np.array_equal(bytes_of_frames(frames), block.frames)
    assert np.array_equal(bytes_of_frames(notes.seen[0][1]), first.frames)  # type: ignore[arg-type]

"""A recorded session, played again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_action.play.live_world import LiveWorld
from lightning_action.play.recording import RecordedSession, SessionRecording, read_session
from lightning_action.play.replaying import changed, replay
from tests.support.simulated_session import SimulatedSession, simulated_stage

STAGE = simulated_stage(provenance={"generator": "abc", "threads": "2"})


@pytest.fixture
def session(tmp_path: Path) -> RecordedSession:
    world = LiveWorld(STAGE, SessionRecording(lambda: tmp_path / "session", STAGE, ""))
    for seed, count in ((4, 3), (1, 2)):
        world.reset(seed)
        for number in range(count):
            if number == 1:
                world.prompt("dark")
            world.step(torch.tensor([0.5, 0.1 * number]))
    world.close()
    return read_session(tmp_path / "session")


def test_the_same_is_seen_again(session: RecordedSession) -> None:
    blocks: list[None] = []
    replayed = replay(session, STAGE, lambda: blocks.append(None))
    assert (replayed.num_blocks, replayed.num_frames, replayed.differs, replayed.changes) == (5, 20, None, {})
    assert len(blocks) == 7  # with the first frames of both


class LaterSession(SimulatedSession):
    """The last bit of one value of its third block is another."""

    def step_block(self, actions: Tensor) -> Tensor:
        frames = super().step_block(actions)
        if self.calls.count("step") == 3:
            frames = frames.clone()
            frames[0, 2, 1, 5, 7] = torch.nextafter(frames[0, 2, 1, 5, 7], torch.tensor(2.0))
        return frames


def test_the_first_block_that_differs_in_one_bit_is_named(session: RecordedSession) -> None:
    replayed = replay(session, simulated_stage(LaterSession, provenance={"generator": "abc", "threads": "4"}))
    assert (replayed.num_blocks, replayed.num_frames) == (2, 8)
    assert replayed.differs == "block 3 of world 0" and replayed.changes == {"threads": ("2", "4")}


def test_prompts_rows_and_starts_count(session: RecordedSession) -> None:
    session.episodes[0].prompts.clear()
    assert replay(session, STAGE).differs == "block 2 of world 0"
    session.episodes[0].rows[0][1, 1] = 0.5
    assert replay(session, STAGE).differs == "block 1 of world 0"
    session.episodes[0].seed = 5
    assert replay(session, STAGE).differs == "the first frames of world 0"


def test_what_changed_is_named() -> None:
    assert changed({"a": 1, "b": 2}, {"b": 3, "c": 4}) == {"a": (1, None), "b": (2, 3), "c": (None, 4)}

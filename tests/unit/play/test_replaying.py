"""A recorded session, played again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_action.play.live_world import LiveWorld, Start
from lightning_action.play.replaying import changed, changed_settings, replay
from lightning_action.play.session_recording import RecordedSession, SessionRecording, read_session
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


class LongerBlocks(SimulatedSession):
    """Blocks of eight rows."""

    @property
    def rows_wanted(self) -> int:
        return 8


def test_a_block_of_another_number_of_rows_differs(session: RecordedSession) -> None:
    replayed = replay(session, simulated_stage(LongerBlocks, provenance=STAGE.provenance))
    assert (replayed.num_blocks, replayed.differs) == (0, "block 1 of world 0")


def test_prompts_that_are_refused_now_differ(session: RecordedSession) -> None:
    session.episodes[1].prompts[1] = "word " * 9
    replayed = replay(session, STAGE)
    assert (replayed.num_blocks, replayed.num_frames) == (4, 16)
    assert replayed.differs == "block 2 of world 1" and "prompt has 9 words" in str(replayed.refused)
    session.episodes[0].prompt = "word " * 9
    replayed = replay(session, STAGE)
    assert replayed.differs == "the first frames of world 0" and "prompt has 9 words" in str(replayed.refused)


def test_data_that_is_another_is_named(session: RecordedSession) -> None:
    def start(seed: int) -> Start:
        return STAGE.start(seed + (seed == 1))

    replayed = replay(session, replace(STAGE, start=start))
    assert replayed.differs == "the first frames of world 1"
    assert list(replayed.changes) == ["data: start of world 1"]
    then, now = replayed.changes["data: start of world 1"]
    assert len(then) == len(now) == 64 and then != now
    session.episodes[1].start = None
    assert replay(session, replace(STAGE, start=start)).changes == {}, "what was not recorded is not compared"


def test_what_changed_is_named() -> None:
    assert changed({"a": 1, "b": 2}, {"b": 3, "c": 4}) == {"b": (2, 3)}


def test_settings_that_changed_are_named() -> None:
    then = "{model: {size: 1, parts: [1, 2], kind: {name: a}}, split: test, trainer: {max_steps: 3}, device: cpu}"
    now = "{model: {size: 1, parts: [1, 3], kind: {name: a, more: 4}}, trainer: {max_steps: 4}, device: auto}"
    assert changed_settings(then, then) == {}
    assert changed_settings(then, now) == {
        "model.parts": ([1, 2], [1, 3]),
        "model.kind.more": (None, 4),
        "split": ("test", None),
    }

"""The thread that steps a world in real time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.play.live_world import LiveWorld
from lightning_action.play.messages import Hold, Pause, Prompt, Reset, Step
from lightning_action.play.stepping import Delivery, SteppingWorld
from tests.support.live_server import wait_until
from tests.support.simulated_session import SimulatedSession, simulated_stage


def row_of(held: tuple[tuple[int, float], ...]) -> Tensor:
    return torch.tensor([share for _, share in held] + [0.0] * (2 - len(held)))


@dataclass
class Seen:
    """What was delivered, and how it ended."""

    stepping: SteppingWorld
    session: SimulatedSession
    deliveries: list[Delivery] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    ends: list[BaseException | None] = field(default_factory=list)

    def wait_for(self, count: int) -> list[Delivery]:
        wait_until(lambda: len(self.deliveries) >= count)
        return self.deliveries


@contextmanager
def stepped(fps: float = 40.0, session: Any = None, wishes: Sequence[Reset] = (), **changes: Any) -> Iterator[Seen]:
    used = session or SimulatedSession()
    deliveries: list[Delivery] = []
    refusals: list[str] = []
    ends: list[BaseException | None] = []
    arguments: dict[str, Any] = {
        "open_world": lambda: LiveWorld(simulated_stage(lambda: used)),
        "row_of": row_of,
        "fps": fps,
        "deliver": deliveries.append,
        "refused": refusals.append,
        "ended": ends.append,
    }
    stepping = SteppingWorld(**{**arguments, **changes})
    for wish in wishes:
        stepping.take(wish)
    stepping.start()
    try:
        yield Seen(stepping, used, deliveries, refusals, ends)
    finally:
        stepping.stop()
        assert stepping.join(10)


def test_blocks_come_in_real_time_and_the_clean_pass_after_them() -> None:
    with stepped() as seen:
        began = [each.begun for each in seen.wait_for(7)]
    # A busy machine may begin the first one late by less than a block, and then make up for it.
    assert began[6] - began[1] > 4 * 0.1
    assert [each.block.number for each in seen.deliveries[:4]] == [0, 1, 2, 3]
    assert seen.session.calls[1:5] == ["write", "step", "write", "step"] and seen.session.calls[-1] == "close"
    assert seen.ends == [None]


def test_a_change_wakes_it() -> None:
    """A block at this speed takes longer than the test would wait."""
    with stepped(fps=0.1) as seen:
        seen.wait_for(2)
        seen.stepping.take(Hold(((0, 1.0),), 1))
        answer = seen.wait_for(3)[2]
        assert answer.change == 1 and seen.stepping.held == ((0, 1.0),)
        assert seen.session.rows[1].tolist() == [[1.0, 0.0]] * 4
        assert answer.span == pytest.approx(seen.deliveries[1].begun + 80 - answer.begun, abs=1)


def test_every_wish_arrives() -> None:
    with stepped() as seen:
        seen.stepping.take(Pause(True))
        seen.stepping.take(Reset(6, None))
        wait_until(lambda: bool(seen.deliveries) and seen.deliveries[-1].state["seed"] == 6)
        seen.stepping.take(Step())
        wait_until(lambda: seen.deliveries[-1].block.number == 1)
        assert seen.deliveries[-1].state["paused"]
        seen.stepping.take(Prompt("dark"))
        seen.stepping.take(Pause(False))
        wait_until(lambda: seen.deliveries[-1].block.number > 2)
    assert seen.deliveries[-1].state == {"seed": 6, "prompt": "dark", "paused": False, "recorded": False}
    assert seen.session.calls.count("prompt dark") == 1


LONG = "word " * 9


@pytest.mark.parametrize("message", [Prompt(LONG), Reset(6, LONG)])
def test_a_prompt_that_is_refused_is_told_and_the_world_goes_on(message: Prompt | Reset) -> None:
    with stepped() as seen:
        seen.wait_for(2)
        seen.stepping.take(message)
        wait_until(lambda: bool(seen.refusals))
        seen.wait_for(len(seen.deliveries) + 2)
    assert seen.refusals == ["prompt has 9 words, the text encoder takes 8: " + repr(LONG)] and seen.ends == [None]
    assert [each.block.number for each in seen.deliveries] == list(range(len(seen.deliveries)))
    assert {each.state["seed"] for each in seen.deliveries} == {0}
    assert not any(each.state["prompt"] == LONG for each in seen.deliveries)


def test_a_single_step_is_made_though_its_prompt_is_refused() -> None:
    with stepped() as seen:
        seen.stepping.take(Pause(True))
        seen.wait_for(1)
        wait_until(lambda: seen.session.calls[-1] == "write")
        before = seen.session.calls.count("step")
        seen.stepping.take(Prompt(LONG))
        seen.stepping.take(Step())
        wait_until(lambda: seen.session.calls.count("step") > before)
        assert len(seen.refusals) == 1


def test_a_first_wish_that_is_refused_begins_the_first_world() -> None:
    with stepped(wishes=[Reset(6, LONG)]) as seen:
        assert [each.block.number for each in seen.wait_for(2)[:2]] == [0, 1]
    assert seen.session.calls[0].startswith("reset 0 ") and len(seen.refusals) == 1


class BeginningFromNothing(SimulatedSession):
    """Its worlds have no frame until their first block."""

    def reset(self, *given: Any, **named: Any) -> Tensor:
        return super().reset(*given, **named)[:, :0]


def test_a_world_that_begins_without_a_frame_is_shown_from_its_first_block_on() -> None:
    with stepped(session=BeginningFromNothing()) as seen:
        assert [each.block.number for each in seen.wait_for(2)[:2]] == [1, 2]
        seen.stepping.take(Reset(3, None))
        wait_until(lambda: seen.deliveries[-1].state["seed"] == 3)
    assert all(len(each.block.frames) for each in seen.deliveries)


class BreakingSession(SimulatedSession):
    def step_block(self, actions: Tensor) -> Tensor:
        raise RuntimeError("generated latents hold NaN")


def test_a_failure_ends_the_session_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with stepped(session=BreakingSession()) as seen:
        wait_until(lambda: bool(seen.ends))
    assert str(seen.ends[0]) == "generated latents hold NaN" and len(seen.ends) == 1
    assert seen.session.calls[-1] == "close"
    assert "a session has ended" in caplog.text


def test_a_world_that_cannot_be_opened_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> LiveWorld:
        raise MemoryError("no room")

    with stepped(open_world=fail) as seen:
        wait_until(lambda: bool(seen.ends))
    assert isinstance(seen.ends[0], MemoryError) and not seen.deliveries

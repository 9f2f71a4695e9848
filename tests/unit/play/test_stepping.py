"""The thread that steps a world in real time."""

from __future__ import annotations

import time
from collections.abc import Iterator
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

# A block of four frames is 0.4 s.
SLOW = 10.0


def row_of(held: tuple[tuple[int, float], ...]) -> Tensor:
    return torch.tensor([share for _, share in held] + [0.0] * (2 - len(held)))


@dataclass
class Seen:
    """What was delivered, and how it ended."""

    stepping: SteppingWorld
    session: SimulatedSession
    deliveries: list[Delivery] = field(default_factory=list)
    ends: list[BaseException | None] = field(default_factory=list)

    def wait_for(self, count: int) -> list[Delivery]:
        wait_until(lambda: len(self.deliveries) >= count)
        return self.deliveries


@contextmanager
def stepped(fps: float = SLOW, session: Any = None, **changes: Any) -> Iterator[Seen]:
    used = session or SimulatedSession()
    deliveries: list[Delivery] = []
    ends: list[BaseException | None] = []
    arguments: dict[str, Any] = {
        "open_world": lambda: LiveWorld(simulated_stage(lambda: used)),
        "row_of": row_of,
        "fps": fps,
        "deliver": deliveries.append,
        "ended": ends.append,
    }
    stepping = SteppingWorld(**{**arguments, **changes})
    stepping.start()
    try:
        yield Seen(stepping, used, deliveries, ends)
    finally:
        stepping.stop()
        assert stepping.join(10)


def test_blocks_come_in_real_time_and_the_clean_pass_after_them() -> None:
    with stepped(fps=40.0) as seen:
        began = [each.begun for each in seen.wait_for(7)]
    gaps = [later - earlier for earlier, later in zip(began[1:], began[2:], strict=False)]
    assert sum(gaps) / len(gaps) == pytest.approx(0.1, abs=0.02)
    assert [each.block.number for each in seen.deliveries[:4]] == [0, 1, 2, 3]
    assert seen.session.calls[1:5] == ["write", "step", "write", "step"] and seen.session.calls[-1] == "close"
    assert seen.ends == [None]


def test_a_change_is_answered_at_once_and_the_clock_goes_on() -> None:
    with stepped() as seen:
        seen.wait_for(2)
        time.sleep(0.1)
        asked = time.perf_counter()
        seen.stepping.take(Hold(((0, 1.0),), 1))
        answer = seen.wait_for(3)[2]
        assert answer.begun - asked < 0.1 and answer.change == 1
        assert seen.session.rows[1].tolist() == [[1.0, 0.0]] * 4
        first = seen.deliveries[1]
        # Its frames are shown until the next block comes, which is two blocks after the first one.
        assert answer.span == pytest.approx(first.begun + 0.8 - answer.begun, abs=0.05)
        # Those that change all the time do not run ahead of the clock.
        for change in range(2, 12):
            seen.stepping.take(Hold(((0, change / 20),), change))
            time.sleep(0.01)
        assert len(seen.deliveries) == 3
        assert seen.wait_for(4)[3].begun >= first.begun + 0.39


def test_a_block_that_is_late_is_made_up_for() -> None:
    session = SimulatedSession()
    with stepped(fps=40.0, session=session) as seen:
        seen.wait_for(3)
        session.seconds = 0.16
        seen.wait_for(len(seen.deliveries) + 1)
        session.seconds = 0.0
        began = [each.begun for each in seen.wait_for(len(seen.deliveries) + 4)[1:]]
    assert (began[-1] - began[0]) / (len(began) - 1) == pytest.approx(0.1, abs=0.02)


def test_a_world_that_is_slow_goes_as_fast_as_it_can() -> None:
    with stepped(fps=1000.0, session=SimulatedSession(seconds=0.03)) as seen:
        deliveries = list(seen.wait_for(6))
    assert all(each.span == pytest.approx(0.0028) for each in deliveries[2:])


def test_pause_step_and_go_on() -> None:
    with stepped(fps=200.0) as seen:
        seen.wait_for(2)
        seen.stepping.take(Pause(True))
        time.sleep(0.1)
        count = len(seen.deliveries)
        time.sleep(0.1)
        assert len(seen.deliveries) == count
        seen.stepping.take(Step())
        seen.wait_for(count + 1)
        time.sleep(0.05)
        assert len(seen.deliveries) == count + 1
        for _ in range(50):
            seen.stepping.take(Step())
        time.sleep(0.3)
        assert count + 2 <= len(seen.deliveries) <= count + 8
        seen.stepping.take(Reset(1, None))
        wait_until(lambda: seen.deliveries[-1].block.number == 0)
        time.sleep(0.05)
        assert seen.deliveries[-1].block.number == 0 and seen.deliveries[-1].state["paused"]
        seen.stepping.take(Pause(False))
        wait_until(lambda: seen.deliveries[-1].block.number > 2)


def test_a_single_step_while_it_runs_is_nothing() -> None:
    with stepped() as seen:
        seen.wait_for(2)
        seen.stepping.take(Step())
        time.sleep(0.1)
        assert len(seen.deliveries) == 2


def test_the_last_wish_of_a_kind_counts() -> None:
    with stepped(session=SimulatedSession(seconds=0.1)) as seen:
        seen.wait_for(1)
        for seed in (1, 4, 6):
            seen.stepping.take(Reset(seed, None))
            seen.stepping.take(Prompt(f"prompt {seed}"))
        wait_until(lambda: "step" in seen.session.calls and "prompt prompt 6" in seen.session.calls)
        # Out of order: an older change does not come back.
        seen.stepping.take(Hold(((0, 0.5),), 9))
        seen.stepping.take(Hold(((0, 0.25),), 8))
        wait_until(lambda: seen.deliveries[-1].change == 9)
    resets = [call for call in seen.session.calls if call.startswith("reset")]
    assert resets[0].startswith("reset 0") and resets[-1].startswith("reset 6") and len(resets) <= 3
    assert [call for call in seen.session.calls if call.startswith("prompt")] == ["prompt prompt 6"]
    assert seen.deliveries[-1].state == {"seed": 6, "prompt": "prompt 6", "paused": False}


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

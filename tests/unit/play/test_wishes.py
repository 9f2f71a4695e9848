"""What is made when: blocks of four frames at 10 a second, which are 0.4 s, by a clock that the tests set."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_action.play.live_world import Block
from lightning_action.play.messages import Hold, Pause, Prompt, Reset, Step
from lightning_action.play.wishes import Wanted, Wishes

BLOCK = 0.4


def made(wishes: Wishes, now: float, seconds: float = 0.0) -> tuple[Wanted, float]:
    """What is made at a time, in so many seconds, and how long it is shown."""
    missing = wishes.missing(now)
    assert missing is not None and missing <= 1e-9
    wanted = wishes.begin(now)
    block = Block(0 if wanted.reset else 1, np.zeros((1 if wanted.reset else 4, 2, 2, 3), np.uint8))
    return wanted, wishes.end(block, now + seconds)


def played(now: float = 0.0) -> Wishes:
    """A world that begins at a time, and whose first block comes at once."""
    wishes = Wishes(fps=10.0)
    assert made(wishes, now)[0] == Wanted(Reset(0, None), None, Hold((), 0))
    assert made(wishes, now)[0] == Wanted(None, None, Hold((), 0))
    return wishes


def hold(change: int, *numbers: int, share: float = 1.0) -> Hold:
    return Hold(tuple((number, share) for number in numbers), change)


def test_a_block_is_due_when_the_one_before_is_over() -> None:
    wishes = played(now=5.0)
    assert wishes.missing(5.1) == pytest.approx(0.3)
    assert made(wishes, 5.4, seconds=0.1)[1] == pytest.approx(0.3)
    assert wishes.missing(5.5) == pytest.approx(0.3)


def test_a_change_is_answered_at_once_and_the_clock_goes_on() -> None:
    wishes = played()
    wishes.take(hold(1, 0), 0.1)
    wanted, span = made(wishes, 0.1)
    assert wanted.hold == hold(1, 0)
    # Its frames are shown until the next block comes, which is two blocks after the first one.
    assert span == pytest.approx(0.7)
    # Those that change all the time do not run ahead of the clock.
    wishes.take(hold(2, 1), 0.15)
    assert wishes.missing(0.15) == pytest.approx(0.25)
    assert made(wishes, 0.4)[0].hold == hold(2, 1)
    assert wishes.missing(0.4) == pytest.approx(0.8)


def test_a_block_that_is_late_by_less_than_its_time_is_made_up_for() -> None:
    wishes = played()
    made(wishes, 0.7)
    assert wishes.missing(0.7) == pytest.approx(0.1)
    made(wishes, 1.5)
    assert wishes.missing(1.5) == 0
    # More is lost: one block follows at once, and then one in its time.
    made(wishes, 5.0)
    made(wishes, 5.0)
    assert wishes.missing(5.0) == pytest.approx(0.4)


def test_a_world_that_is_slow_goes_as_fast_as_it_can() -> None:
    wishes = played()
    for number in range(1, 5):
        assert made(wishes, number, seconds=1.0)[1] == pytest.approx(0.7 * BLOCK)


def test_single_steps_are_made_while_the_world_stands_still() -> None:
    wishes = played()
    wishes.take(Step(), 0.1)
    assert wishes.missing(0.1) == pytest.approx(0.3)  # it runs: that was nothing
    wishes.take(Pause(True), 0.1)
    assert wishes.missing(9.0) is None and wishes.paused
    for _ in range(50):
        wishes.take(Step(), 9.0)
    for _ in range(4):
        made(wishes, 9.0)
    assert wishes.missing(9.0) is None
    wishes.take(Reset(1, None), 9.0)
    assert made(wishes, 9.0)[0].reset == Reset(1, None)
    assert wishes.missing(9.0) is None and wishes.paused


def test_the_last_wish_of_a_kind_counts() -> None:
    wishes = played()
    for seed in (1, 4, 6):
        wishes.take(Reset(seed, None), 1.0)
        wishes.take(Prompt(f"prompt {seed}"), 1.0)
    wishes.take(hold(9, 0), 1.0)
    wishes.take(hold(8, 1), 1.0)  # out of order: an older change does not come back
    assert made(wishes, 1.0)[0] == Wanted(Reset(6, None), None, Hold((), 0))
    assert made(wishes, 1.0)[0] == Wanted(None, Prompt("prompt 6"), hold(9, 0))
    assert made(wishes, 1.4)[0] == Wanted(None, None, hold(9, 0))
    wishes.take(Prompt("of the world before"), 1.5)
    wishes.take(Reset(1, None), 1.5)
    assert [made(wishes, 1.5)[0].prompt for _ in range(2)] == [None, None]


def test_a_world_answers_no_change_that_its_first_block_answers() -> None:
    wishes = played()
    wishes.take(Reset(1, None), 1.0)
    wishes.take(hold(1, 0), 1.0)
    assert [made(wishes, 1.0)[0].hold.change for _ in range(2)] == [0, 1]


def test_a_world_that_cannot_begin_costs_no_block() -> None:
    wishes = played()
    wishes.take(Reset(1, "too long"), 0.1)
    due = 0.4
    assert wishes.begin(0.1).reset == Reset(1, "too long")
    wishes.refuse(0.2)
    assert wishes.missing(0.2) == pytest.approx(due - 0.2)
    wishes.take(Reset(2, None), 0.2)
    assert wishes.missing(0.2) == pytest.approx(0.4)  # as behind a world that did begin


def test_a_prompt_that_a_world_which_cannot_begin_has_overtaken_holds() -> None:
    wishes = played()
    wishes.take(Prompt("a cat"), 0.1)
    for seed in (1, 2):
        wishes.take(Reset(seed, "too long"), 0.1)
    wishes.begin(0.1)
    wishes.refuse(0.2)
    assert made(wishes, 0.4)[0].prompt == Prompt("a cat") and made(wishes, 0.8)[0].prompt is None
    # A later one counts, and none that a world has ended.
    wishes.take(Prompt("a dog"), 0.9)
    wishes.take(Reset(1, "too long"), 0.9)
    wishes.begin(0.9)
    wishes.take(Prompt("a bird"), 1.0)
    wishes.refuse(1.0)
    assert made(wishes, 1.2)[0].prompt == Prompt("a bird")
    wishes.take(Prompt("a dog"), 1.3)
    wishes.take(Reset(1, None), 1.3)
    assert made(wishes, 1.6)[0].reset == Reset(1, None)
    wishes.take(Reset(1, "too long"), 1.7)
    wishes.begin(2.0)
    wishes.refuse(2.1)
    assert made(wishes, 2.4)[0].prompt is None


def test_worlds_begin_a_blocks_time_apart() -> None:
    wishes = Wishes(fps=10.0)
    made(wishes, 0.0, seconds=2.0)
    # No block was made yet: one is taken to have four frames.
    for seed in (1, 2, 3):
        wishes.take(Reset(seed, None), 2.1)
    assert wishes.missing(2.1) == pytest.approx(0.3)
    # Until then nothing else is made: a prompt is that of the world to come.
    wishes.take(Prompt("dark"), 2.1)
    assert made(wishes, 2.4)[0].reset == Reset(3, None)
    assert wishes.missing(2.4) <= 0 and made(wishes, 2.4)[0].prompt == Prompt("dark")
    # Blocks of another length than was thought; who waited long enough waits no more.
    wishes.begin(3.0)
    wishes.end(Block(2, np.zeros((8, 2, 2, 3), np.uint8)), 3.0)
    wishes.take(Reset(4, None), 3.1)
    assert made(wishes, 3.1)[0].reset == Reset(4, None)
    wishes.take(Reset(5, None), 3.2)
    assert wishes.missing(3.2) == pytest.approx(0.7)


def test_what_was_pressed_and_let_go_between_two_blocks_is_held_for_one() -> None:
    wishes = played()
    wishes.take(hold(1, 3, share=0.25), 0.1)
    wishes.take(hold(2, 3, share=0.75), 0.12)
    wishes.take(hold(3, 3, share=0.5), 0.14)
    wishes.take(hold(4), 0.16)
    # Somebody waits for an answer, which is one to the press; that it was let go is answered by the block after it.
    assert made(wishes, 0.16)[0].hold == Hold(((3, 0.75),), 1)
    assert made(wishes, 0.4)[0].hold == hold(4)
    assert wishes.missing(0.4) == pytest.approx(0.8)


def test_a_tap_beside_what_is_held_stands_in_the_order_of_pressing() -> None:
    wishes = played()
    wishes.take(hold(1, 5), 0.1)
    made(wishes, 0.1)
    wishes.take(hold(2, 5, 6), 0.2)
    wishes.take(hold(3, 5), 0.3)
    assert made(wishes, 0.4)[0].hold == hold(2, 5, 6)
    # One of two taps is taken again, and stays: it was pressed last.
    wishes.take(hold(4, 5, 1), 0.5)
    wishes.take(hold(5, 5, 1, 2), 0.5)
    wishes.take(hold(6, 5), 0.5)
    wishes.take(Hold(((5, 1.0), (1, 0.5)), 7), 0.5)
    assert made(wishes, 0.8)[0].hold == Hold(((5, 1.0), (2, 1.0), (1, 0.5)), 7)
    # What was held already when the last block began, and is let go, is not held longer.
    wishes.take(hold(8), 0.9)
    assert made(wishes, 1.2)[0].hold == hold(8)


def test_what_was_let_go_while_the_world_stood_still_is_held_for_a_single_step_alone() -> None:
    wishes = played()
    wishes.take(Pause(True), 0.1)
    for change in (1, 3):
        wishes.take(hold(change, 0), 0.2)
        wishes.take(hold(change + 1), 0.2)
        if change == 1:
            wishes.take(Step(), 0.3)
            assert made(wishes, 0.3)[0].hold == hold(1, 0)
    wishes.take(Pause(False), 5.0)
    assert made(wishes, 5.0)[0].hold == hold(4)


def test_going_on_begins_real_time_anew() -> None:
    wishes = played()
    wishes.take(Pause(True), 0.1)
    wishes.take(Pause(False), 9.0)
    made(wishes, 9.0)
    assert wishes.missing(9.0) == pytest.approx(BLOCK)
    # Single steps do not lie ahead of it either; and who goes on already changes nothing.
    wishes.take(Pause(True), 9.1)
    for _ in range(4):
        wishes.take(Step(), 9.1)
        made(wishes, 9.1)
    wishes.take(Pause(False), 9.2)
    made(wishes, 9.2)
    wishes.take(Pause(False), 9.3)
    assert wishes.missing(9.3) == pytest.approx(0.3)

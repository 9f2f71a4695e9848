"""Wishes of a page for its world, and when the next block is due: no thread, and no clock but what it is told."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_action.play.live_world import Block
from lightning_action.play.messages import Hold, Pause, Prompt, Reset, Step

# Single steps that wait; more are those of a key that is held.
_MAX_STEPS = 4
# Share of a block's time that its frames are shown at least, even if the next one is late already.
_SHORTEST_SPAN = 0.7
# Frames that a block is taken to have until one is made.
_USUAL_FRAMES = 4


@dataclass(frozen=True)
class Wanted:
    """Block that is to be made next.

    Args:
        reset: World that begins; None makes a block of the one that is there.
        prompt: Prompt that holds from this block on; None leaves it.
        hold: Controls held for the block, and the number of the last change that it answers.
    """

    reset: Reset | None
    prompt: Prompt | None
    hold: Hold


class Wishes:
    """Collects what a page wants, and says when to make what; of several wishes of a kind, the last one counts.

    A block is due when the one before is over, and at once where what is held changes: no more than one block ahead
    of the clock. A block that is late by less than its own time is made up for, other time is lost. What was pressed
    since the last block began is held for the next one, even if it was let go meanwhile. A world begins no sooner than
    a block's time after the one before was there.

    Args:
        fps: Number of frames of a second.
    """

    def __init__(self, fps: float) -> None:
        self.held = Hold((), 0)
        self.paused = False
        self._answered = Hold((), 0)
        self._pressed: dict[int, float] = {}
        self._press_change = 0
        self._reset: Reset | None = Reset(0, None)
        self._prompt: Prompt | None = None
        self._left: Prompt | None = None  # one that a world's end overtook
        self._steps = 0
        self._fps, self._block_seconds = fps, _USUAL_FRAMES / fps
        self._begun = self._due = 0.0
        self._next_reset = -math.inf

    def take(self, message: Hold | Reset | Prompt | Pause | Step, now: float) -> None:
        """Take a wish at a time in seconds."""
        if isinstance(message, Hold):
            if message.change >= self.held.change:
                self._take_hold(message)
        elif isinstance(message, Reset):
            self._left = self._prompt or self._left
            self._reset, self._prompt = message, None
        elif isinstance(message, Prompt):
            self._prompt = message
        elif isinstance(message, Pause):
            if self.paused and not message.on:
                # Real time starts anew, and what was let go while the world stood still is over.
                self._due, self._pressed = now, {}
            self.paused, self._steps = message.on, 0
        elif self.paused:
            self._steps = min(self._steps + 1, _MAX_STEPS)

    def missing(self, now: float) -> float | None:
        """Return the seconds until something is to be made, 0 or less where it is now; None waits for a wish."""
        if self._reset is not None:
            return self._next_reset - now
        if self._steps:
            return 0.0
        if self.paused:
            return None
        # A block may come one block's time before it is due, where somebody waits for an answer.
        ahead = self._block_seconds if self._wanted_hold().held != self._answered.held else 0.0
        return self._due - ahead - now

    def begin(self, now: float) -> Wanted:
        """Take out what is to be made now: a world, or a block."""
        self._begun = now
        if self._reset is not None:
            reset, self._reset = self._reset, None
            return Wanted(reset, None, self._answered)
        prompt, self._prompt = self._prompt, None
        self._steps = max(self._steps - 1, 0)
        self._answered, self._pressed = self._wanted_hold(), {}
        return Wanted(None, prompt, self._answered)

    def end(self, block: Block, now: float) -> float:
        """Note that a block is made, the first one of a world or another, and return the seconds that it is shown."""
        if block.number == 0:
            self._left = None
            self._due, self._next_reset = self._begun, now + self._block_seconds
        else:
            self._block_seconds = len(block.frames) / self._fps
            self._due = max(self._due + self._block_seconds, self._begun)
        return max(self._due - now, _SHORTEST_SPAN * self._block_seconds)

    def refuse(self, now: float) -> None:
        """Note that a world could not begin: the one before goes on, under the prompt that was asked for it.

        The next one comes no sooner than behind one that did begin.
        """
        self._next_reset = now + self._block_seconds
        self._prompt, self._left = self._prompt or self._left, None

    def _take_hold(self, hold: Hold) -> None:
        before = dict(self.held.held)
        for number, share in hold.held:
            if number not in before:
                self._pressed[number] = max(share, self._pressed.pop(number, 0.0))  # in the order of pressing
                self._press_change = hold.change
            elif number in self._pressed:
                self._pressed[number] = max(share, self._pressed[number])
        self.held = hold

    def _wanted_hold(self) -> Hold:
        """Join what is held with what was pressed since the last block began; letting go is answered later."""
        held = dict(self.held.held)
        if self._pressed.keys() <= held.keys():
            return self.held
        longer = {number: share for number, share in held.items() if number not in self._pressed}
        pressed = {number: held.get(number, share) for number, share in self._pressed.items()}
        return Hold((*longer.items(), *pressed.items()), self._press_change)

"""A world in a thread of its own, which goes on whether somebody looks or not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition, Thread
from time import perf_counter
from typing import Any

from torch import Tensor

from lightning_action.play.live_world import Block, LiveWorld
from lightning_action.play.messages import Hold, Pause, Prompt, Reset, Step

_log = logging.getLogger(__name__)
# Single steps that wait; more are those of a key that is held.
_MAX_STEPS = 4
# Share of a block's time that its frames are shown at least, even if the next one is late already.
_SHORTEST_SPAN = 0.7


@dataclass(frozen=True)
class Delivery:
    """A block on its way to the page.

    Args:
        block: The block.
        change: Number of the last change of what is held that it answers.
        begun: Time at which its step began, by `perf_counter`.
        span: Seconds over which its frames are shown: until the next block is due, about.
        state: What the page shows of the world.
    """

    block: Block
    change: int
    begun: float
    span: float
    state: dict[str, Any]


class SteppingWorld:
    """Steps a world in real time, with what is held at that moment.

    A block is begun when the one before is over, and at once where what is held changes: no more than one block ahead
    of the clock. A block that is late by less than its own time is made up for, other time is lost.

    Args:
        open_world: Function that opens the world, called in its thread.
        row_of: Function from what is held to an action row `[columns]`.
        fps: Number of frames of a second.
        deliver: Function that takes each block, called in its thread; it must not wait.
        ended: Function that is called once at the end, with what went wrong or None.
        seed: Seed of the first world.
    """

    def __init__(
        self,
        open_world: Callable[[], LiveWorld],
        row_of: Callable[[tuple[tuple[int, float], ...]], Tensor],
        fps: float,
        deliver: Callable[[Delivery], None],
        ended: Callable[[BaseException | None], None],
        seed: int = 0,
    ) -> None:
        self._open_world, self._row_of, self._fps = open_world, row_of, fps
        self._deliver, self._ended = deliver, ended
        self._changed = Condition()
        self._held = Hold((), 0)
        self._answered = Hold((), 0)
        self._reset: Reset | None = Reset(seed, None)
        self._prompt: Prompt | None = None
        self._paused, self._steps, self._stopped = False, 0, False
        self._due = self._block_seconds = 0.0
        self._thread = Thread(target=self._run, name="world", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Ask for the end, which comes when the block that is being made is done."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def join(self, seconds: float | None = None) -> bool:
        """Wait for the end; False says that it has not come in time."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def take(self, message: Hold | Reset | Prompt | Pause | Step) -> None:
        """Take what a page wants; of several wishes of a kind, the last one counts."""
        with self._changed:
            if isinstance(message, Hold):
                self._held = message if message.change >= self._held.change else self._held
            elif isinstance(message, Reset):
                self._reset, self._prompt = message, None
            elif isinstance(message, Prompt):
                self._prompt = message
            elif isinstance(message, Pause):
                self._paused, self._steps = message.on, 0
            elif self._paused:
                self._steps = min(self._steps + 1, _MAX_STEPS)
            self._changed.notify()

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            world = self._open_world()
            try:
                while self._wait():
                    self._advance(world)
            finally:
                world.close()
        except Exception as error:
            _log.exception("a session has ended")
            failure = error
        self._ended(failure)

    def _wait(self) -> bool:
        """Wait until there is something to do; False at the end."""
        with self._changed:
            while not self._stopped:
                # A block may come one block's time before it is due, where somebody waits for an answer.
                ahead = self._block_seconds if self._held.held != self._answered.held else 0.0
                missing = self._due - ahead - perf_counter()
                if self._reset is not None or self._steps or (missing <= 0 and not self._paused):
                    return True
                self._changed.wait(None if self._paused else missing)
        return False

    def _advance(self, world: LiveWorld) -> None:
        """Make a block of what is wanted now, hand it over, and only then prepare the next one."""
        with self._changed:
            reset, self._reset = self._reset, None
            prompt = None
            if reset is None:
                prompt, self._prompt = self._prompt, None
                self._steps = max(self._steps - 1, 0)
            held = self._answered = self._held
        begun = perf_counter()
        if reset is not None:
            block = world.reset(reset.seed, reset.prompt)
            self._due = begun
        else:
            if prompt is not None:
                world.prompt(prompt.text)
            block = world.step(self._row_of(held.held))
            self._block_seconds = len(block.frames) / self._fps
            self._due = max(self._due + self._block_seconds, begun)
        span = max(self._due - perf_counter(), _SHORTEST_SPAN * self._block_seconds)
        state = {"seed": world.seed, "prompt": world.text, "paused": self._paused}
        self._deliver(Delivery(block, held.change, begun, span, state))
        world.write_pending()

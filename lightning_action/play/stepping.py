"""A world in a thread of its own, which goes on whether somebody looks or not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition, Thread
from time import perf_counter
from typing import Any

from torch import Tensor

from lightning_action.play.live_world import Block, LiveWorld, RefusedWishError
from lightning_action.play.messages import Hold, Pause, Prompt, Reset, Step
from lightning_action.play.wishes import Wanted, Wishes

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Delivery:
    """A block on its way to the page.

    Args:
        block: The block.
        change: Number of the last change of what is held that it answers.
        begun: Time at which its step began, by `perf_counter`.
        span: Seconds over which its frames are shown: until the next block is due, about.
        state: State of the world that the page shows.
    """

    block: Block
    change: int
    begun: float
    span: float
    state: dict[str, Any]


class SteppingWorld:
    """Steps a world in real time, with what is held at that moment; `Wishes` says when.

    Args:
        open_world: Function that opens the world, called in its thread.
        row_of: Function from what is held to an action row `[columns]`.
        fps: Number of frames of a second.
        deliver: Function that takes each block, called in its thread; it must not wait.
        refused: Function that is told why a prompt or a reset is not followed, called in its thread; it must not wait.
        ended: Function that is called once at the end, with what went wrong or None.
    """

    def __init__(
        self,
        open_world: Callable[[], LiveWorld],
        row_of: Callable[[tuple[tuple[int, float], ...]], Tensor],
        fps: float,
        deliver: Callable[[Delivery], None],
        refused: Callable[[str], None],
        ended: Callable[[BaseException | None], None],
    ) -> None:
        self._open_world, self._row_of = open_world, row_of
        self._deliver, self._refused, self._ended = deliver, refused, ended
        self._changed = Condition()
        self._wishes, self._stopped = Wishes(fps), False
        self._thread = Thread(target=self._run, name="world", daemon=True)

    @property
    def held(self) -> tuple[tuple[int, float], ...]:
        """Controls that are held now."""
        return self._wishes.held.held

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
        """Take what a page wants."""
        with self._changed:
            self._wishes.take(message, perf_counter())
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
                missing = self._wishes.missing(perf_counter())
                if missing is not None and missing <= 0:
                    return True
                self._changed.wait(missing)
        return False

    def _advance(self, world: LiveWorld) -> None:
        """Make a block of what is wanted now, hand it over, and only then prepare the next one."""
        begun = perf_counter()
        with self._changed:
            wanted = self._wishes.begin(begun)
        block = self._step(world, wanted) if wanted.reset is None else self._begin(world, wanted.reset)
        if block is None:
            return
        with self._changed:
            span = self._wishes.end(block, perf_counter())
            is_paused = self._wishes.paused
        state = {"seed": world.seed, "prompt": world.text, "paused": is_paused, "recorded": world.is_recorded}
        if len(block.frames):  # a model that begins from nothing has none before its first step
            self._deliver(Delivery(block, wanted.hold.change, begun, span, state))
        world.write_pending()

    def _step(self, world: LiveWorld, wanted: Wanted) -> Block:
        """Make a block; a prompt that is refused changes nothing."""
        if wanted.prompt is not None:
            try:
                world.prompt(wanted.prompt.text)
            except RefusedWishError as error:
                self._refused(str(error))
        return world.step(self._row_of(wanted.hold.held))

    def _begin(self, world: LiveWorld, reset: Reset) -> Block | None:
        """Begin a world; where that is refused, the one that is there goes on (None), or the first one begins."""
        try:
            return world.reset(reset.seed, reset.prompt)
        except RefusedWishError as error:
            self._refused(str(error))
            with self._changed:
                self._wishes.refuse(perf_counter())
            return None if world.has_begun else world.reset(0)

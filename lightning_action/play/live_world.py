"""World that is played: a session that is stepped, where its worlds begin, and the truth beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from lightning_action.action.schema import ActionSchema
from lightning_action.play.image_encoding import bytes_of_frames

if TYPE_CHECKING:
    from lightning_action.generation.world_session import WorldSession

_log = logging.getLogger(__name__)


class RefusedWishError(ValueError):
    """A session refuses a reset or a prompt; the world is as it was."""


class ReferenceSimulator(Protocol):
    """A simulator that goes where the same actions lead."""

    def go_on(self, rows: Tensor) -> Tensor:
        """Play action rows `[t, columns]`: frames `[t, 3, H, W]` in [0, 1]."""
        ...

    def distance(self, frames: Tensor) -> float | None:
        """Measure how far, in pixels, frames `[t, 3, H, W]` in [0, 1] end from the truth; None if it is not seen."""
        ...


@dataclass(frozen=True)
class Start:
    """Beginning of a world.

    Args:
        prompt: Description of it.
        frame_size: Height and width of its frames.
        first_frames: Frames that are given, `[1, T0, 3, H, W]` in [0, 1]; None where the model begins from nothing.
        truth: Simulator that begins there too; None where there is none.
    """

    prompt: str
    frame_size: tuple[int, int]
    first_frames: Tensor | None = None
    truth: ReferenceSimulator | None = None


@dataclass(frozen=True)
class Stage:
    """Parts that a server needs of what is played; it knows no network.

    Args:
        schema: Meaning of an action row.
        open_session: Function that opens a session of one world, for each player its own.
        start: Function of a seed that gives where the world begins.
        fps: Number of frames of a second.
        title: Name of what is played.
        provenance: Entries by which a recording says where it comes from.
        num_warm_up_blocks: Number of blocks until each is made as the one before.
        turn: Lock that a session holds while it works: side by side on one device, all of them would be slower.
    """

    schema: ActionSchema
    open_session: Callable[[], WorldSession]
    start: Callable[[int], Start]
    fps: float
    title: str = "a world"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    num_warm_up_blocks: int = 2
    turn: Lock = field(default_factory=Lock)


@dataclass(frozen=True)
class Block:
    """Frames that are shown one after another.

    Args:
        number: Number of the block since the world began; 0 holds the given frames, which may be none.
        frames: Frames of the world, uint8 `[t, H, W, 3]`.
        truth: Frames of the simulator under the same actions; None where there is none.
        distance: Distance of the last frame from the truth in pixels; None where nobody knows.
        seconds: Seconds that each part of the work took.
    """

    number: int
    frames: np.ndarray
    truth: np.ndarray | None = None
    distance: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


class Observer(Protocol):
    """Observer that keeps what happens in a world, such as a recording."""

    @property
    def is_over(self) -> bool:
        """True if nothing is kept any more of what comes."""
        ...

    def begin(self, seed: int, prompt: str, frames: Tensor, given: Tensor | None) -> None:
        """See a world begin with frames `[T0, 3, H, W]` in [0, 1], and those that were given for it, before the VAE."""
        ...

    def step(self, rows: Tensor, frames: Tensor) -> None:
        """See the rows `[rows, columns]` of a block, and the frames `[t, 3, H, W]` that they led to."""
        ...

    def prompt(self, text: str) -> None:
        """See the prompt change before the next block."""
        ...

    def close(self) -> None:
        """See the end."""
        ...


class LiveWorld:
    """A session beside its truth, one block at a time.

    Args:
        stage: Stage that is played.
        observer: Observer that keeps what happens; None for none.
    """

    def __init__(self, stage: Stage, observer: Observer | None = None) -> None:
        self.stage, self.observer = stage, observer
        self._session = stage.open_session()
        self._truth: ReferenceSimulator | None = None
        self._unseen: tuple[Tensor, Tensor] | None = None
        self._number = 0
        self.seed, self.text, self.has_begun = 0, "", False

    @property
    def is_recorded(self) -> bool:
        """True if somebody keeps what happens."""
        return self.observer is not None and not self.observer.is_over

    @property
    def rows_wanted(self) -> int:
        """Number of action rows of the next block."""
        return self._session.rows_wanted

    def reset(self, seed: int, prompt: str | None = None) -> Block:
        """Begin where a seed says; None takes the prompt that belongs there.

        Raises:
            RefusedWishError: The session cannot begin so.
        """
        self._let_see()
        start = self._start(seed)
        text = start.prompt if prompt is None else prompt
        frame_size = start.frame_size if start.first_frames is None else None
        with _refusing(), self.stage.turn:
            frames = self._session.reset(start.first_frames, text, seed, frame_size)[0].cpu()
        self.seed, self.text, self.has_begun = seed, text, True
        self._truth, self._number = start.truth, 0
        self._let_observe(lambda observer: observer.begin(seed, text, frames, start.first_frames))
        given = None if start.first_frames is None or start.truth is None else start.first_frames[0, : len(frames)]
        return Block(0, bytes_of_frames(frames), None if given is None else bytes_of_frames(given))

    def _start(self, seed: int) -> Start:
        try:
            return self.stage.start(seed)
        except (ValueError, OSError) as error:
            _log.exception("world %d cannot be read", seed)
            raise RefusedWishError(f"world {seed} cannot be read: the server's output says why") from error

    def step(self, row: Tensor) -> Block:
        """Hold an action row `[columns]` for a block."""
        return self.step_rows(row.expand(self.rows_wanted, -1))

    def step_rows(self, rows: Tensor) -> Block:
        """Take the rows `[rows, columns]` of a block."""
        self._let_see()
        with self.stage.turn:
            frames = self._session.step_block(rows[None])[0].cpu()
            # Reading them waits for the device, which must not happen while a pass of another one is captured.
            seconds = self._session.block_seconds
        self._number += 1
        self._unseen = rows, frames
        shown, distance = None, None
        if self._truth is not None:
            shown, distance = bytes_of_frames(self._truth.go_on(rows)), self._truth.distance(frames)
        return Block(self._number, bytes_of_frames(frames), shown, distance, seconds)

    def prompt(self, text: str) -> None:
        """Let the blocks that follow be under another prompt.

        Raises:
            RefusedWishError: The session does not take the prompt.
        """
        self._let_see()
        with _refusing(), self.stage.turn:
            self._session.prompt(text)
        self.text = text
        self._let_observe(lambda observer: observer.prompt(text))

    def write_pending(self) -> None:
        """Do what the next block needs of the last one, and let the observer see it, while nobody waits."""
        with self.stage.turn:
            self._session.write_pending()
        self._let_see()

    def close(self) -> None:
        """Free the session, and end what is kept of it."""
        self._truth = None  # an environment is closed here, in the thread that has stepped it
        try:
            with self.stage.turn:
                self._session.close()
            self._let_see()
        finally:
            self._let_observe(lambda observer: observer.close())

    def _let_see(self) -> None:
        if self._unseen is not None:
            (rows, frames), self._unseen = self._unseen, None
            self._let_observe(lambda observer: observer.step(rows, frames))

    def _let_observe(self, tell: Callable[[Observer], None]) -> None:
        """Tell the observer; the world goes on without one that cannot write what it sees."""
        if self.observer is None:
            return
        try:
            tell(self.observer)
        except OSError:
            _log.exception("a recording has ended: it cannot be written")
            self.observer = None


@contextmanager
def _refusing() -> Iterator[None]:
    """Tell what a session refuses, and leaves as it was, from what fails elsewhere."""
    try:
        yield
    except ValueError as error:
        raise RefusedWishError(str(error)) from error

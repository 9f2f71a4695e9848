"""One connection: a world of its own, of which the page gets what it can take, and never what is old."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any

from lightning_action.play.action_map import ActionMap
from lightning_action.play.image_encoding import choose_format, encode, strip
from lightning_action.play.latency import Latencies
from lightning_action.play.live_world import LiveWorld
from lightning_action.play.messages import RefusedMessageError, Shown, pack_block, read_message
from lightning_action.play.stepping import Delivery, SteppingWorld

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

_log = logging.getLogger(__name__)
# Blocks that a page has not drawn yet; while there are so many, new ones are dropped.
_MAX_IN_FLIGHT = 2
# Seconds after which a page that neither takes nor draws anything is given up.
_SEND_SECONDS, _VANISHED_SECONDS = 10.0, 60.0
_FIGURES_SECONDS = 1.0
# More than any page sends: four axes of a gamepad move, and 120 frames are drawn. As many may come at once.
_MESSAGES_A_SECOND = 500
_FAILED = 1011


class Player:
    """A page and its world.

    Args:
        websocket: Accepted connection.
        open_world: Function that opens the world.
        action_map: Map from what is held to action rows.
        fps: Number of frames of a second.
        latencies: Figures of all players, to which this one's are added.
    """

    def __init__(
        self,
        websocket: WebSocket,
        open_world: Callable[[], LiveWorld],
        action_map: ActionMap,
        fps: float,
        latencies: Latencies,
    ) -> None:
        self._websocket, self._num_controls = websocket, len(action_map.controls)
        self._all_latencies, self._latencies = latencies, Latencies()
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._waiting: Delivery | None = None
        self._notices: dict[str, dict[str, Any]] = {}
        self._in_flight: dict[int, tuple[Delivery, float, float]] = {}
        self._shown: deque[tuple[float, int]] = deque(maxlen=256)
        self._serial = self._dropped = self._refused = self.num_blocks = 0
        self._is_over = False
        self._failure: BaseException | None = None
        self._stepping = SteppingWorld(open_world, action_map.row, fps, self._deliver, self._refuse_soon, self._ended)

    async def run(self) -> None:
        """Play until one of both goes away; the world is freed when this returns."""
        self._stepping.start()
        tasks = [asyncio.create_task(work) for work in (self._send_all(), self._receive_all(), self._tell_figures())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stepping.stop()
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.shield(asyncio.to_thread(self._stepping.join))
            if self._refused:
                _log.warning("refused %d messages of a session", self._refused)
            for error in results:
                if isinstance(error, Exception) and not _is_gone(error):
                    raise error

    def _deliver(self, delivery: Delivery) -> None:
        self._loop.call_soon_threadsafe(self._put, delivery)

    def _refuse_soon(self, why: str) -> None:
        self._loop.call_soon_threadsafe(self._refuse, why)

    def _ended(self, failure: BaseException | None) -> None:
        self._loop.call_soon_threadsafe(self._end, failure)

    def _put(self, delivery: Delivery) -> None:
        self._dropped += self._waiting is not None
        self._waiting = delivery
        self._wake.set()

    def _end(self, failure: BaseException | None) -> None:
        self._is_over, self._failure = True, failure
        self._wake.set()

    def _tell(self, notice: dict[str, Any]) -> None:
        """Send a notice soon, in place of one of its type that waits."""
        self._notices[notice["type"]] = notice
        self._wake.set()

    def _refuse(self, why: str) -> None:
        self._refused += 1
        if self._refused == 1:
            _log.warning("refused a message: %s", why)
        self._tell({"type": "refused", "why": why})

    async def _send_all(self) -> None:
        while not self._is_over:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _FIGURES_SECONDS)
            if self._has_vanished():
                _log.warning("a page has drawn nothing for %.0f s: its session ends", _VANISHED_SECONDS)
                return
            self._wake.clear()
            while self._notices:
                notice = self._notices.pop(next(iter(self._notices)))
                await self._within_time(self._websocket.send_text(json.dumps(notice)))
            if self._waiting is not None and len(self._in_flight) < _MAX_IN_FLIGHT:
                delivery, self._waiting = self._waiting, None
                await self._send_block(delivery)
        if self._failure is not None:
            await self._within_time(self._websocket.close(_FAILED, "the world has stopped: see the server's output"))

    async def _send_block(self, delivery: Delivery) -> None:
        block, started = delivery.block, perf_counter()
        count, height, width = block.frames.shape[:3]
        image_format = choose_format(height, width)
        picture = await asyncio.to_thread(lambda: encode(strip(block.frames, block.truth), image_format))
        self._serial += 1
        sent = perf_counter()
        header = {
            "serial": self._serial,
            "number": block.number,
            "frames": count,
            "size": [height, width],
            "truth": block.truth is not None,
            "distance": block.distance,
            "format": image_format,
            "change": delivery.change,
            "span_ms": 1000 * delivery.span,
            **delivery.state,
        }
        self._in_flight[self._serial] = delivery, sent - started, sent
        self.num_blocks += 1
        await self._within_time(self._websocket.send_bytes(pack_block(header, picture)))

    async def _receive_all(self) -> None:
        spent = 0.0  # up to when what was taken would last, at the rate that is allowed
        while True:
            event = await self._websocket.receive()
            if event["type"] == "websocket.disconnect":
                return
            # What comes faster is not read yet: it waits at the page's end of the connection.
            spent = max(spent, perf_counter() - 1) + 1 / _MESSAGES_A_SECOND
            await asyncio.sleep(max(spent - perf_counter(), 0))
            try:
                text = event.get("text")
                if text is None:
                    raise RefusedMessageError("a message is text")
                message = read_message(text, self._num_controls)
                if isinstance(message, Shown):
                    self._note_shown(message)
                else:
                    self._stepping.take(message)
            except RefusedMessageError as error:
                self._refuse(str(error))

    def _note_shown(self, message: Shown) -> None:
        found = self._in_flight.pop(message.serial, None)
        if found is None:
            raise RefusedMessageError("shown is for a block that was sent and not shown before")
        # A page passes over what comes after a newer block, or cannot be drawn.
        self._in_flight = {serial: block for serial, block in self._in_flight.items() if serial > message.serial}
        delivery, encoding, sent = found
        now = perf_counter()
        seconds = {**delivery.block.seconds, "encode": encoding, "send": now - sent, "pixels": now - delivery.begun}
        if message.key_seconds is not None:
            seconds["key"] = message.key_seconds
        if delivery.block.number:  # the first one is not stepped
            self._latencies.add(seconds)
            self._all_latencies.add(seconds)
        self._shown.append((now, len(delivery.block.frames)))
        self._wake.set()

    async def _tell_figures(self) -> None:
        while True:
            await asyncio.sleep(_FIGURES_SECONDS)
            parts = {part: [1000 * each for each in pair] for part, pair in self._latencies.quantiles().items()}
            if parts:
                self._tell({"type": "figures", "ms": parts, "fps": self.frames_per_second(), "dropped": self._dropped})

    def frames_per_second(self) -> float:
        """Frames that were shown in a second, over the last blocks of the last five seconds."""
        now = perf_counter()
        recent = [(at, frames) for at, frames in list(self._shown) if now - at < 5]
        if len(recent) < 2:
            return 0.0
        return sum(frames for _, frames in recent[1:]) / (recent[-1][0] - recent[0][0])

    def _has_vanished(self) -> bool:
        oldest = min((sent for _, _, sent in self._in_flight.values()), default=None)
        return oldest is not None and perf_counter() - oldest > _VANISHED_SECONDS

    @staticmethod
    async def _within_time(sending: Any) -> None:
        await asyncio.wait_for(sending, _SEND_SECONDS)


def _is_gone(error: Exception) -> bool:
    """Tell whether an error only says that the page has gone away."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, asyncio.TimeoutError | ConnectionError) or bool(
        names & {"WebSocketDisconnect", "ClientDisconnected"}
    )

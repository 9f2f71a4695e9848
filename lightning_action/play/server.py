"""The web server: three files of a page, and a connection for each player."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lightning_action.play.access import Access
from lightning_action.play.action_map import ActionMap
from lightning_action.play.latency import Latencies, as_scalars
from lightning_action.play.live_world import LiveWorld, Observer, Stage
from lightning_action.play.messages import MAX_MESSAGE, MAX_PROMPT
from lightning_action.play.player import Player

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket
    from torch.utils.tensorboard import SummaryWriter
    from uvicorn import Server

_log = logging.getLogger(__name__)
_TYPES = {
    "index.html": "text/html",
    "play.js": "text/javascript",
    "held.js": "text/javascript",
    "play.css": "text/css",
    "icon.svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_FULL, _LOADING_SECONDS, _LOG_SECONDS = 1013, 0.1, 10.0


@dataclass
class Progress:
    """Progress of the loading, as pages show it.

    Args:
        doing: Step that is being done.
        share: Share that is done, from 0 to 1.
        failed: Failure in words, if there is one.
    """

    doing: str = "starting"
    share: float = 0.0
    failed: str | None = None


@dataclass(frozen=True)
class Playground:
    """World that is played, once it is loaded.

    Args:
        stage: The worlds.
        action_map: Map from what is held to action rows.
        new_observer: Function that makes a recording of a new world; None records nothing.
        log: Writer that takes the latencies, and ends with the server; None writes nothing.
    """

    stage: Stage
    action_map: ActionMap
    new_observer: Callable[[], Observer] | None = None
    log: SummaryWriter | None = None


@dataclass
class PlayServer:
    """Answers pages and players.

    Args:
        access: Rules of who gets an answer.
        max_sessions: Largest number of players at a time.
        progress: Progress of the loading.
        playground: Playground that is played; None until it is loaded.
    """

    access: Access
    max_sessions: int = 4
    progress: Progress = field(default_factory=Progress)
    playground: Playground | None = None
    latencies: Latencies = field(default_factory=Latencies)
    num_blocks: int = 0
    num_sessions: int = 0  # connections that have a world, or wait for one
    _players: set[Player] = field(default_factory=set)

    def app(self) -> Starlette:
        """Build the ASGI application."""
        from starlette.applications import Starlette
        from starlette.routing import Route, WebSocketRoute

        pages = [Route("/" if name == "index.html" else f"/{name}", self._page_of(name)) for name in _TYPES]
        return Starlette(routes=[*pages, WebSocketRoute("/live", self._play)], lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        logging_task = asyncio.create_task(self._log_figures())
        yield
        logging_task.cancel()
        await asyncio.gather(logging_task, return_exceptions=True)

    def _page_of(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        content = files("lightning_action.play").joinpath("page", name).read_bytes()

        async def respond(request: Request) -> Response:
            from starlette.responses import PlainTextResponse, RedirectResponse, Response

            given = request.query_params.get("token")
            if name == "index.html" and self.access.is_own(request.headers) and self.access.is_token(given):
                # The token leaves the address, so that it is neither copied with it nor kept in a history.
                response: Response = RedirectResponse("/", 303, headers=_HEADERS)
                # Lax, so that an address that is clicked elsewhere opens; a page of elsewhere has another origin.
                response.set_cookie(self.access.cookie, str(given), httponly=True, samesite="lax")
                return response
            if not self._allows(request):
                return PlainTextResponse("Not for you: open the address that the server printed.\n", 403, _HEADERS)
            return Response(content, media_type=_TYPES[name], headers=_HEADERS)

        return respond

    def _allows(self, connection: HTTPConnection) -> bool:
        allowed = self.access.allows(connection.headers, connection.cookies)
        if not allowed:
            _log.warning("refused %s from %s", connection.url.path, connection.client and connection.client.host)
        return allowed

    async def _play(self, websocket: WebSocket) -> None:
        if not self._allows(websocket):
            await websocket.close()  # before it is accepted: the answer is 403
            return
        await websocket.accept()
        if self.num_sessions >= self.max_sessions:
            await websocket.close(_FULL, f"all {self.max_sessions} worlds are being played: try again later")
            return
        self.num_sessions += 1
        try:
            await self._play_accepted(websocket)
        finally:
            self.num_sessions -= 1

    async def _play_accepted(self, websocket: WebSocket) -> None:
        from starlette.websockets import WebSocketDisconnect

        try:
            while self.playground is None:
                loading = {"type": "loading", "doing": self.progress.doing, "share": self.progress.share}
                await websocket.send_json({**loading, "failed": self.progress.failed})
                # What is said meanwhile is dropped, but read: the answers to pings come behind it.
                with suppress(asyncio.TimeoutError):
                    event = await asyncio.wait_for(websocket.receive(), _LOADING_SECONDS)
                    if event["type"] == "websocket.disconnect":
                        return
            await websocket.send_json(self._hello(self.playground))
        except WebSocketDisconnect:
            return
        playground = self.playground
        player = Player(
            websocket,
            lambda: LiveWorld(playground.stage, playground.new_observer and playground.new_observer()),
            playground.action_map,
            playground.stage.fps,
            self.latencies,
        )
        self._players.add(player)
        try:
            await player.run()
        finally:
            self._players.discard(player)
            self.num_blocks += player.num_blocks

    def _hello(self, playground: Playground) -> dict[str, Any]:
        return {
            "type": "hello",
            "title": playground.stage.title,
            "fps": playground.stage.fps,
            "controls": playground.action_map.shown(),
            "max_message": MAX_MESSAGE,
            "max_prompt": MAX_PROMPT,
        }

    async def _log_figures(self) -> None:
        """Write the figures of all players, now and then and at the end."""
        written = 0
        try:
            while True:
                await asyncio.sleep(_LOG_SECONDS)
                written = self._write_figures(written)
        finally:
            self._write_figures(written)
            if (writer := self._writer()) is not None:
                writer.close()

    def _write_figures(self, written: int) -> int:
        blocks = self.num_blocks + sum(player.num_blocks for player in self._players)
        if (writer := self._writer()) is not None and blocks > written:
            rates = [player.frames_per_second() for player in self._players]
            for tag, value in as_scalars(self.latencies.quantiles(), sum(rates)).items():
                writer.add_scalar(tag, value, blocks)
        return blocks

    def _writer(self) -> SummaryWriter | None:
        return None if self.playground is None else self.playground.log


def new_server(app: Starlette) -> Server:
    """Make the uvicorn server of an application, whose `run` takes the sockets that it listens at.

    Messages that are larger than any page's end their connection; a dead connection is noticed within 20 seconds.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        ws="websockets-sansio",
        ws_max_size=16 * MAX_MESSAGE,
        ws_ping_interval=10,
        ws_ping_timeout=10,
        ws_per_message_deflate=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config)

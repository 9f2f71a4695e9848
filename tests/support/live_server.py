"""A play server in a thread of this process, on a free port."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

from websockets.sync.client import ClientConnection, connect

from benchmarks._live_player import unpack_block
from lightning_action.play.access import Access
from lightning_action.play.action_map import default_map
from lightning_action.play.live_world import Stage
from lightning_action.play.server import Playground, PlayServer, new_server


@dataclass(frozen=True)
class Running:
    """A server, and how it is reached."""

    server: PlayServer
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, path: str = "/live", **headers: str) -> ClientConnection:
        return connect(
            f"ws://127.0.0.1:{self.port}{path}",
            additional_headers=headers,
            compression=None,
            open_timeout=10,
            proxy=None,
        )


@contextmanager
def serving(stage: Stage | None, token: str | None = None, **settings: Any) -> Iterator[Running]:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    server = PlayServer(Access(token, port), **settings)
    if stage is not None:
        server.playground = server.playground or Playground(stage, default_map(stage.schema))
    uvicorn = new_server(server.app())
    thread = Thread(target=uvicorn.run, args=([listening],), daemon=True)
    thread.start()
    wait_until(lambda: uvicorn.started)
    try:
        yield Running(server, port)
    finally:
        uvicorn.should_exit = True
        thread.join(15)
        assert not thread.is_alive(), "the server does not end"


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.01)


def next_block(client: ClientConnection, shows: bool = True) -> tuple[dict[str, Any], bytes]:
    """Header and picture of the next block; with `shows` it is drawn at once."""
    while True:
        message = client.recv(15)
        if isinstance(message, bytes):
            header, picture = unpack_block(message)
            if shows:
                say(client, "shown", serial=header["serial"], key_ms=None)
            return header, picture


def next_notice(client: ClientConnection, kind: str) -> dict[str, Any]:
    """The next notice of a type; blocks before it are drawn at once."""
    while True:
        message = client.recv(15)
        if isinstance(message, bytes):
            say(client, "shown", serial=unpack_block(message)[0]["serial"], key_ms=None)
        elif (notice := json.loads(message))["type"] == kind:
            return dict(notice)


def say(client: ClientConnection, kind: str, **values: Any) -> None:
    client.send(json.dumps({"type": kind, **values}))

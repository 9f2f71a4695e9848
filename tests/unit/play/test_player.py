"""One connection: what becomes of pages that are slow, silent or gone. What a page gets is tested beside the server."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from websockets.exceptions import ConnectionClosed

from lightning_action.play import player
from lightning_action.play.player import _is_gone
from tests.support.live_server import next_block, say, serving, wait_until
from tests.support.simulated_session import SimulatedSession, simulated_stage


def test_a_page_that_draws_nothing_for_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(player, "_VANISHED_SECONDS", 0.3)
    session = SimulatedSession()
    with serving(simulated_stage(lambda: session)) as running, running.connect() as client:
        with pytest.raises(ConnectionClosed):
            while True:
                client.recv(10)
        wait_until(lambda: running.server.num_sessions == 0)
    assert session.calls[-1] == "close" and "a page has drawn nothing for" in caplog.text


def test_a_block_that_is_passed_over_is_not_waited_for() -> None:
    """Two are on their way at a time; a page that shows the second before the first never tells of the first."""
    with serving(simulated_stage()) as running, running.connect() as client:
        numbers = []
        for _ in range(3):
            first, second = (next_block(client, shows=False)[0] for _ in range(2))
            say(client, "shown", serial=second["serial"], key_ms=None)
            numbers += [first["number"], second["number"]]
        assert numbers == sorted(set(numbers))


def test_a_page_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection stays, and all room between here and there is full."""
    monkeypatch.setattr(player, "_SEND_SECONDS", 0.3)
    monkeypatch.setattr(player, "_MAX_IN_FLIGHT", 10**6)
    monkeypatch.setattr(player, "pack_block", lambda header, picture: bytes(2**20))
    with serving(simulated_stage(fps=240.0)) as running:
        with socket.create_connection(("127.0.0.1", running.port)) as silent:
            key = "dGhlIHNhbXBsZSBub25jZQ=="
            silent.sendall(
                f"GET /live HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            wait_until(lambda: running.server.num_sessions == 1)
            wait_until(lambda: running.server.num_sessions == 0)
        monkeypatch.undo()
        with running.connect() as client:
            assert next_block(client)[0]["number"] >= 0


def test_messages_that_come_faster_than_any_page_sends_them_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(player, "_MESSAGES_A_SECOND", 10)
    with serving(simulated_stage()) as running, running.connect() as client:
        begun = time.perf_counter()
        for _ in range(400):
            client.send("none of those")
        next_block(client, shows=False)
        (playing,) = running.server._players
        wait_until(lambda: playing._refused >= 18)
        assert time.perf_counter() - begun > 0.7  # ten at once, and each of the others a tenth of a second later
        # Who goes away is not waited for until all is read, which would be 40 seconds.
        client.socket.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: running.server.num_sessions == 0)


def test_it_is_told_apart_whether_a_page_has_gone_or_something_is_wrong() -> None:
    class WebSocketDisconnect(Exception):
        pass

    assert _is_gone(WebSocketDisconnect()) and _is_gone(asyncio.TimeoutError()) and _is_gone(ConnectionResetError())
    assert not _is_gone(RuntimeError()) and not _is_gone(KeyError())

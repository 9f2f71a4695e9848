"""The server over real connections."""

from __future__ import annotations

import gc
import json
import random
import socket
import time
import urllib.error
import urllib.request
import weakref
from io import BytesIO
from pathlib import Path
from threading import active_count

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from websockets.exceptions import ConnectionClosed, InvalidStatus

from lightning_action.play.action_map import default_map
from lightning_action.play.latency import as_scalars
from lightning_action.play.live_world import LiveWorld
from lightning_action.play.server import Playground
from tests.support.live_server import Running, next_block, next_notice, say, serving, wait_until
from tests.support.simulated_session import SimulatedSession, simulated_stage

TOKEN = "a-long-enough-token"


def fetch(running: Running, path: str = "/", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    request = urllib.request.Request(running.address + path, headers=headers)
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=10) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object) -> None:
        return None


def pixels(header: dict[str, object], picture: bytes) -> np.ndarray:
    """Frames `[t, H, W or 2 W, 3]`."""
    height, width = header["size"]  # type: ignore[misc]
    return np.asarray(Image.open(BytesIO(picture)).convert("RGB")).reshape(-1, height, width * (1 + header["truth"]), 3)  # type: ignore[operator]


def is_new(header: dict[str, object]) -> bool:
    """Whether a block is one of a world's first: on a busy machine block 0 may be dropped for a later one."""
    return header["number"] in range(8)


def test_a_player_gets_a_world_that_does_what_is_held() -> None:
    with serving(simulated_stage()) as running, running.connect() as client:
        hello = next_notice(client, "hello")
        assert hello["controls"][0] == {"label": "→", "inputs": ["key:ArrowRight", "key:KeyD"]}
        assert hello["fps"] == 16.0
        header, picture = next_block(client)
        assert not header["recorded"]
        assert is_new(header) and header["size"] == [20, 28]
        say(client, "hold", held=[[0, 1]], change=1)
        while header["change"] != 1:
            header, picture = next_block(client)
        expected = LiveWorld(simulated_stage())
        first = expected.reset(0)
        action_map = default_map(expected.stage.schema)
        for _ in range(header["number"] - 1):
            first = expected.step(action_map.row())
        block = expected.step(action_map.row([(0, 1.0)]))
        shown = pixels(header, picture)
        assert block.truth is not None and header["format"] == "webp" and not np.array_equal(first.frames, block.frames)
        assert np.array_equal(shown[:, :, :28], block.frames) and np.array_equal(shown[:, :, 28:], block.truth)
        assert header["distance"] < 0.2 and 0 < header["span_ms"] <= 500
        figures = next_notice(client, "figures")
        assert figures["ms"].keys() == {"generate", "decode", "encode", "send", "pixels"}
        assert all(0 <= median <= tail for median, tail in figures["ms"].values())
        assert figures["ms"]["pixels"][0] >= figures["ms"]["send"][0]


def test_reset_prompt_pause_and_step() -> None:
    session = SimulatedSession()
    with serving(simulated_stage(lambda: session)) as running, running.connect() as client:
        say(client, "pause", on=True)
        say(client, "reset", seed=4, prompt=None)
        header, picture = next_block(client)
        while header["seed"] != 4:
            header, picture = next_block(client)
        assert header["number"] == 0 and header["paused"]
        assert np.array_equal(pixels(header, picture)[:, :, :28], LiveWorld(simulated_stage()).reset(4).frames)
        say(client, "pause", on=False)
        say(client, "prompt", text="dark")
        while header["prompt"] != "dark":
            header, _ = next_block(client)
        say(client, "pause", on=True)
        time.sleep(0.4)
        count = session.calls.count("step")
        say(client, "step")
        wait_until(lambda: session.calls.count("step") == count + 1)
        time.sleep(0.3)
        assert session.calls.count("step") == count + 1


def test_players_have_worlds_of_their_own_that_are_freed() -> None:
    sessions: list[weakref.ref[SimulatedSession]] = []

    def new_session() -> SimulatedSession:
        session = SimulatedSession()
        sessions.append(weakref.ref(session))
        return session

    with serving(simulated_stage(new_session), max_sessions=2) as running:
        threads = active_count()
        with running.connect() as one, running.connect() as other:
            say(one, "reset", seed=5, prompt=None)
            header = next_block(one)[0]
            while header["seed"] != 5:
                header = next_block(one)[0]
            assert next_block(other)[0]["seed"] == 0
            assert running.server.num_sessions == 2
            with running.connect() as third, pytest.raises(ConnectionClosed, match="all 2 worlds are being played"):
                third.recv(5)
        wait_until(lambda: running.server.num_sessions == 0)
        wait_until(lambda: active_count() <= threads + 4)  # those that encode stay for the next one
        gc.collect()
        assert [session() for session in sessions] == [None, None]
        with running.connect() as client:
            assert is_new(next_block(client)[0])


def test_a_thousand_bad_messages_leave_it_serving(caplog: pytest.LogCaptureFixture) -> None:
    source = random.Random(1)
    bad: list[str | bytes] = [
        *("", "{", "null", "[]", '{"type": "run"}', '{"type": "hold", "held": [[99, 1]], "change": 1}', "[" * 3000),
        *(json.dumps({"type": "prompt", "text": "x" * 3000}), "y" * 10_000, b"\x00\xff", b""),
        *('{"type": "shown", "serial": 5000, "key_ms": null}', '{"type": "step"}', '{"type": "pause", "on": false}'),
        *('{"type": "hold", "held": [[0, 1e99]], "change": 1}', '{"type": "reset", "seed": 1e9, "prompt": null}'),
        *('{"type": "hold", "held": [[0, 1]], "change": 1}', '{"type": "hold", "held": [], "change": 0}'),
        json.dumps({"type": "prompt", "text": "x " * 9}),  # more words than the text encoder takes
        json.dumps({"type": "reset", "seed": 1, "prompt": "x " * 9}),
    ]
    with serving(simulated_stage()) as running, running.connect() as client:
        next_block(client)
        for _ in range(1000):
            client.send(source.choice(bad))
        assert next_notice(client, "refused")["why"]
        before = next_block(client)[0]["number"]
        while next_block(client)[0]["number"] < before + 2:
            pass
        with running.connect() as large:
            large.send("z" * 100_000)
            with pytest.raises(ConnectionClosed):
                while True:
                    large.recv(5)
        assert next_block(client)[0]["number"] > before
        wait_until(lambda: running.server.num_sessions == 1)
    told = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len([line for line in told if line.startswith("refused a message:")]) == 1
    assert any(line.startswith("refused ") and line.endswith("messages of a session") for line in told)


def test_a_page_that_draws_nothing_stalls_neither_the_world_nor_others() -> None:
    sessions: list[SimulatedSession] = []

    def new_session() -> SimulatedSession:
        sessions.append(SimulatedSession())
        return sessions[-1]

    with serving(simulated_stage(new_session, fps=200.0)) as running, running.connect() as slow:
        wait_until(lambda: bool(sessions) and sessions[0].calls.count("step") >= 30)
        with running.connect() as quick:
            while next_block(quick)[0]["number"] < 20:
                pass
        received = [next_block(slow, shows=False)[0] for _ in range(2)]
        assert [header["serial"] for header in received] == [1, 2]
        say(slow, "shown", serial=1, key_ms=None)
        newest = next_block(slow, shows=False)[0]
        assert newest["serial"] == 3 and newest["number"] > 30  # those between were dropped


def test_a_browser_that_vanishes_frees_its_world() -> None:
    with serving(simulated_stage()) as running, running.connect() as client:
        next_block(client)
        client.socket.shutdown(socket.SHUT_RDWR)  # without a word
        wait_until(lambda: running.server.num_sessions == 0)


def test_a_world_that_breaks_is_told_and_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    class Breaking(SimulatedSession):
        def step_block(self, actions: object) -> object:  # type: ignore[override]
            raise RuntimeError("secret of the server")

    with serving(simulated_stage(Breaking)) as running, running.connect() as client:
        with pytest.raises(ConnectionClosed, match="the world has stopped") as closed:
            while True:
                client.recv(5)
        assert "secret" not in str(closed.value) and "secret of the server" in caplog.text
        wait_until(lambda: running.server.num_sessions == 0)
        assert fetch(running)[0] == 200


def test_the_page_waits_for_the_model() -> None:
    stage = simulated_stage()
    with serving(None) as running, running.connect() as client:
        running.server.progress.doing, running.server.progress.share = "loading weights", 0.5
        notice = next_notice(client, "loading")
        while notice["share"] == 0:  # it is set last
            notice = next_notice(client, "loading")
        assert notice == {"type": "loading", "doing": "loading weights", "share": 0.5, "failed": None}
        running.server.playground = Playground(stage, default_map(stage.schema))
        assert next_notice(client, "hello")["title"] == "a world"
        assert is_new(next_block(client)[0])


def test_who_speaks_while_the_model_loads_stays_and_gets_a_world_of_its_own() -> None:
    """What nobody reads would keep the answers to pings from being read, too."""
    stage = simulated_stage()
    with serving(None) as running, running.connect() as client:
        for _ in range(3):
            say(client, "reset", seed=4, prompt=None)
            time.sleep(0.05)
        assert client.ping().wait(5)
        running.server.playground = Playground(stage, default_map(stage.schema))
        assert next_block(client)[0]["seed"] == 0


def test_who_leaves_while_the_model_loads_is_forgotten() -> None:
    with serving(None) as running, running.connect() as client:
        say(client, "pause", on=True)
        client.socket.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: running.server.num_sessions == 0)


def test_the_page_may_load_nothing_from_elsewhere() -> None:
    with serving(simulated_stage()) as running:
        for path, kind in [("/", "text/html"), ("/play.js", "text/javascript"), ("/play.css", "text/css")]:
            status, content, headers = fetch(running, path)
            assert status == 200 and content and headers["content-type"].startswith(kind)
            assert headers["content-security-policy"].startswith("default-src 'self';")
            assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
            assert b"http://" not in content.replace(b"http://www.w3.org/2000/svg", b"") and b"https://" not in content
        assert "server" not in fetch(running)[2]
        for path in ("/nothing", "/../setup.cfg", "/%2e%2e/setup.cfg", "/server.py", "/live"):
            assert fetch(running, path)[0] == 404


def test_a_wrong_token_and_a_foreign_origin_get_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with serving(simulated_stage(), token=TOKEN) as running:
        for path in ("/", "/play.js", "/?token=a-wrong-token", "/?token="):
            status, content, headers = fetch(running, path)
            assert status == 403 and content.startswith(b"Not for you") and "set-cookie" not in headers
        assert fetch(running, f"/?token={TOKEN}", Origin="https://evil.example")[0] == 403
        status, _, headers = fetch(running, f"/?token={TOKEN}")
        assert status == 303 and headers["location"] == "/"
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=lax" in cookie and TOKEN not in headers["location"]
        shown = {"Cookie": cookie.split(";")[0]}
        assert fetch(running, "/", **shown)[0] == fetch(running, "/play.js", **shown)[0] == 200
        refused: list[dict[str, str]] = [
            {},
            {"Cookie": f"play_token_{running.port}=wrong-token"},
            {"Authorization": "Bearer wrong-token"},
            {**shown, "Origin": "https://evil.example"},
        ]
        for headers in refused:
            with pytest.raises(InvalidStatus, match="HTTP 403"), running.connect(**headers):
                pass
        assert running.server.num_sessions == 0
        for headers in (shown, {"Authorization": f"Bearer {TOKEN}"}, {**shown, "Origin": running.address}):
            with running.connect(**headers) as client:
                assert is_new(next_block(client)[0])
    assert TOKEN not in caplog.text


def test_another_name_for_this_machine_is_refused_without_a_token() -> None:
    with serving(simulated_stage()) as running:
        assert fetch(running, Host="evil.example")[0] == 403
        with pytest.raises(InvalidStatus, match="HTTP 403"), running.connect(Origin="http://evil.example"):
            pass


def test_latencies_are_logged(tmp_path: Path) -> None:
    stage = simulated_stage()
    playground = Playground(stage, default_map(stage.schema), log=SummaryWriter(str(tmp_path)))
    with serving(None, playground=playground) as running, running.connect() as client:
        while next_block(client)[0]["number"] < 3:
            pass
    read = EventAccumulator(str(tmp_path)).Reload()
    expected = as_scalars(running.server.latencies.quantiles(), 0.0)
    assert set(read.Tags()["scalars"]) == expected.keys() and len(expected) == 11
    for tag, value in expected.items():
        event = read.Scalars(tag)[-1]
        assert event.step >= 3 and (event.value == pytest.approx(value) or "per_second" in tag)

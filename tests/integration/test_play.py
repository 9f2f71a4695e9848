"""`play` and `replay` as they are started: a page at once, a model, a recorded session, and the same again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT

import pytest
from websockets.sync.client import connect

from lightning_action.cli import main
from lightning_action.play.session_recording import read_session
from tests.support.forked_processes import end_of, start_command
from tests.support.live_server import next_block, next_notice, say, wait_until
from tests.support.playable_run import write_playable_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    config, checkpoint = write_playable_run(tmp_path_factory.mktemp("run"))
    return [f"--config={config}", f"--ckpt_path={checkpoint}"]


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """Yield the process, the address of its page, and what is filled at the end with the lines that it prints then."""
    told: list[str] = []
    command = [sys.executable, "main.py", "play", "--port=0", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        address = next(line for line in process.stdout if line.startswith("play at ")).split()[-1]
        yield process, address, told
    finally:
        process.send_signal(SIGINT)
        told += process.communicate(timeout=60)[0].splitlines()


def test_a_session_is_played_recorded_and_reproduced(run: list[str], tmp_path: Path) -> None:
    more = [f"--record={tmp_path / 'recorded'}", f"--log_dir={tmp_path / 'log'}", "--token=a-secret-of-mine"]
    with started(*run, *more) as (process, address, told):
        assert address.endswith("/?token=a-secret-of-mine") and address.startswith("http://127.0.0.1:")
        place = address.split("/?")[0].replace("http", "ws") + "/live"
        headers = {"Authorization": "Bearer a-secret-of-mine"}
        with connect(place, additional_headers=headers, proxy=None, open_timeout=30) as client:
            hello = next_notice(client, "hello")
            assert hello["fps"] == 16
            say(client, "hold", held=[[0, 1]], change=1)
            while (header := next_block(client)[0])["number"] < 3:
                assert header["recorded"]
            say(client, "prompt", text="a violet star")
            while next_block(client)[0]["prompt"] != "a violet star":
                pass
            say(client, "reset", seed=2, prompt=None)
            while next_block(client)[0]["seed"] != 2:
                pass
            while next_block(client)[0]["number"] < 2:
                pass
        wait_until(lambda: any((tmp_path / "recorded").glob("[!.]*/meta/play")))
    assert process.returncode == 130
    (folder,) = (tmp_path / "recorded").iterdir()
    assert told.count(f"recorded {folder}") == 1
    session = read_session(folder)
    assert [episode.seed for episode in session.episodes] == [0, 2] and session.episodes[0].prompts
    assert "a-secret-of-mine" not in "".join(path.read_text() for path in (folder / "meta" / "play").glob("*.[jy]*"))
    assert list((tmp_path / "log").glob("events*"))
    main(["replay", str(folder)])
    told = json.loads((folder / "meta/play/session.json").read_text())
    told["episodes"][1]["hashes"][2] = "0" * 64
    told["provenance"]["generator"] = "another"
    (folder / "meta/play/session.json").write_text(json.dumps(told))
    with pytest.raises(SystemExit) as stopped:
        main(["replay", str(folder)])
    assert stopped.value.code == 1


def test_what_fails_while_loading_ends_it(run: list[str], tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("controls: []")
    ended = start_command(["play", "--port=0", *run, f"--action_map={tmp_path / 'map.yaml'}"], tmp_path / "told")
    assert end_of(ended) == 2
    told = (tmp_path / "told").read_text()
    assert f"error: {tmp_path / 'map.yaml'} is no action map: controls: expected a list" in told


def fetch(address: str) -> bytes:
    with urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(address, timeout=10) as answer:
        content: bytes = answer.read()
    return content


def test_the_page_is_there_before_the_model(run: list[str], tmp_path: Path) -> None:
    told = tmp_path / "told"
    process = start_command(["play", "--port=0", *run, "--host=0.0.0.0"], told)
    try:
        wait_until(lambda: "\n" in told.read_text().partition("play at ")[2])
        address = told.read_text().partition("play at ")[2].split()[0]
        assert address.startswith("http://127.0.0.1:") and "/?token=" in address
        begun = time.monotonic()
        assert b"<canvas" in fetch(address)
        assert time.monotonic() - begun < 5
    finally:
        end_of(process, seconds=0)

"""The verb that opens a page, up to the page; what a player sees is tested beside the server."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from threading import current_thread

import pytest

from lightning_action.cli import main
from lightning_action.cli.play import listen_at, run_play
from lightning_action.cli.support.mistakes import UsageError
from tests.support.playable_run import write_playable_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    config, checkpoint = write_playable_run(tmp_path_factory.mktemp("run"))
    return [f"--config={config}", f"--ckpt_path={checkpoint}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt_path=null"], "play needs trained weights"),
        (["--token=short"], "a token has from 8 to 200 letters"),
        (["--port=70000"], "port must be a whole number of at least 0 and of at most 65535"),
        (["--max_sessions=0"], "max_sessions must be a whole number of at least 1"),
        (["--window=1"], "window must be a whole number of at least 2"),
        (["--fps=0"], "fps must be a finite number of at least 1"),
        (["--split=other"], "split"),
        (["--host=no.such.host.invalid"], "cannot listen at no.such.host.invalid"),
        (["--action_map=nowhere.yaml"], "no action map at 'nowhere.yaml'"),
        (["--model.action_projection=null", "--model.optimization.train_backbone=true"], "takes no actions"),
        (["--record=setup.cfg"], "cannot write to 'setup.cfg' .Not a directory.: give a folder .* with --record"),
        (["--log_dir=setup.cfg/log"], "cannot write to 'setup.cfg/log' .Not a directory.: .* with --log_dir"),
        (["--prot=8000"], "did you mean '--port'"),
    ],
)
def test_mistakes_are_refused_before_anything_is_loaded(run: list[str], arguments: list[str], message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        run_play([*run, *arguments])


def test_the_page_does_not_wait_for_tensorboard(
    run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its import takes seconds, in which the thread of the page would answer nobody."""

    def make(folder: str) -> None:
        raise RuntimeError(f"made in the thread {current_thread().name} for {folder}")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", make)
    with pytest.raises(RuntimeError, match=f"made in the thread loading for {tmp_path}/log"):
        run_play([*run, "--port=0", f"--log_dir={tmp_path / 'log'}"])
    assert capsys.readouterr().out.startswith("play at http://127.0.0.1:")


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="cannot listen at 127.0.0.1:.* give another --port"):
            listen_at("127.0.0.1", taken.getsockname()[1])
    with listen_at("127.0.0.1", 0) as listening:
        assert listening.getsockname()[1] > 0


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ImportError, match=r"play needs uvicorn: pip install 'lightning_action\[play\]'"):
        run_play([])


@pytest.mark.parametrize(("verb", "word"), [("play", "--max_sessions"), ("replay", "--ckpt_path")])
def test_help_says_what_there_is(verb: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0 and word in capsys.readouterr().out

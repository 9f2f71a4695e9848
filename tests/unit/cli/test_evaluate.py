"""`evaluate --compare`, by its command line, and what the three uses of `evaluate` take."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lightning_action.cli import evaluate, run_verb
from lightning_action.cli.support.mistakes import UsageError
from lightning_action.evaluation.report.report import null_where_undefined
from tests.support import made_up_report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs, the second of which obeys less."""
    for name, skill in (("good", 1.0), ("bad", 0.7)):
        write(tmp_path / name, made_up_report.report(skill))
    return tmp_path


def write(run: Path, report: dict[str, Any]) -> None:
    run.mkdir()
    (run / "report.json").write_text(json.dumps(null_where_undefined(report)))


def test_the_better_one_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder / "pages" / "both.html"
    sides = [str(folder / "bad"), str(folder / "good" / "report.json")]
    assert run_verb(["evaluate", "--compare", *sides, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert f"A: {folder / 'bad'}: partly" in printed and "report.json: obeys" in printed
    assert "gain x 1.00, gain y 0.98" in printed  # the reasons of B
    gain = next(line for line in printed.splitlines() if line.startswith("  gain x"))
    assert gain.split()[-1] == "better" and "*" in gain
    assert "* of the distances from the ideal" in printed and "Paired over the same episodes" in printed
    assert "B is better in sign accuracy, gain x, gain y, position error" in printed
    assert "and worse in nothing" in printed and f"written to {output}" in printed
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_without_output_nothing_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    run_verb(["evaluate", "--compare", str(folder / "bad"), str(folder / "good")])
    assert sorted(folder.rglob("*")) == before
    assert "written" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], UsageError, "nothing to evaluate: give --compare A B"),
        (["--output", "x.html"], UsageError, "nothing to evaluate: give --compare A B"),
        (["--compare", "good"], UsageError, "--compare: expected 2 arguments"),
        (["--compare", "good", "bad", "ugly"], UsageError, "expected an option, got ugly"),
        (["--compare", "good", "good"], ValueError, "good is compared with itself: give two reports"),
        (["--compare", "good", "good/report.json"], ValueError, "is compared with itself"),
        (["--compare", "good", "nowhere"], FileNotFoundError, "no report at nowhere"),
        (["--compare", "good", "empty"], ValueError, "have no figure in common"),
        (["--compare", "good", "bad", "--output", "x.png"], ValueError, "give a name that ends in .html, got 'x.png'"),
        (["--compare", "good", "bad", "--videos", "good"], UsageError, "one thing at a time: give --compare A B"),
        (
            ["--compare", "good", "bad", "--null", "x"],
            UsageError,
            "--null is for --videos, not for --compare: leave it",
        ),
        (["--compare", "good", "bad", "--split=test"], UsageError, "--split is for --videos and --export, not for"),
        (["--compare", "good", "bad", "--data.x=1"], UsageError, "--data is for --videos and --export, not for"),
        (["--videos", "good", "--truth", "good", "--ckpt_path", "x"], UsageError, "--ckpt_path is for --export, not"),
        (["--videos", "good", "--truth", "good"], UsageError, "--videos needs --output"),
        (["--export", "worldproof", "--resize"], UsageError, "--resize is for --videos, not for --export"),
        (["--export", "worldproof", "--output", "x"], UsageError, "--export needs --config and --ckpt_path"),
        (["--export", "onnx"], UsageError, "onnx"),
    ],
)
def test_misuse_is_refused_before_anything_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: type[Exception], message: str
) -> None:
    write(folder / "empty", {"speed_q1_px": 2.0})
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(error, match=message):
        run_verb(["evaluate", *arguments])
    assert sorted(folder.rglob("*")) == before


def test_help_says_what_goes_with_what(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_verb(["evaluate", "--help"])
    printed = capsys.readouterr().out
    for usage in (
        "--compare A B [--output FILE.html]",
        "--videos DIR --config FILE --output DIR",
        "--export worldproof",
    ):
        assert usage in printed
    options = {name.rstrip(".") for name in re.findall(r"--([a-z_.]+)", printed)}
    uses = evaluate._USES
    assert options - {"help", "data", "data.test_size"} == {
        *uses,
        *(name for names in uses.values() for name in names),
    } - {"data"}

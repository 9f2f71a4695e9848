"""The files of a report."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_action.evaluation.report.report import format_table, read_report, write_report, write_reports
from tests.support import made_up_report


def test_both_files_are_written_with_paired_tests(tmp_path: Path) -> None:
    paths = write_reports(tmp_path / "run", made_up_report.report(), made_up_report.pictures(1))
    assert [path.name for path in paths] == ["report.json", "report.html"]
    assert sorted(os.listdir(tmp_path / "run")) == ["report.html", "report.json"]
    report = read_report(tmp_path / "run")
    assert report == read_report(paths[0])
    assert report["paired"]["gain_x"]["ignore_actions"]["p_value"] < 0.001
    assert report["r2_y"] is None
    assert paths[1].read_text(encoding="utf-8").startswith("<!doctype html>")


def test_what_cannot_be_shown_replaces_nothing(tmp_path: Path) -> None:
    write_reports(tmp_path, {"gain_x": 1.0}, {})
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TypeError):
        write_reports(tmp_path, {"gain_x": 0.5, "baselines": 3}, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_the_values_of_episodes_are_a_line_each(tmp_path: Path) -> None:
    report = {"gain_x": 1.0, "per_episode": {"gain_x": [1.5, -2e-07, None]}, "told": ["a\n[ 1,\n 2 ]", "[\n1\n]"]}
    write_report(tmp_path / "report.json", report)
    assert '    "gain_x": [ 1.5, -2e-07, null ]\n' in (tmp_path / "report.json").read_text()
    assert read_report(tmp_path) == report


@pytest.mark.parametrize("text", ["no json", "[]", '{"loss": 1.0}', '{"gain_x": 1.0, "verdict": "obeys"}'])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ValueError, match=r"report.json is no report"):
        read_report(tmp_path)


def test_a_report_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no report at .*report.json: `python main.py test` writes one"):
        read_report(tmp_path)


def test_the_table_shows_figures_of_what_is_held() -> None:
    table = format_table(made_up_report.report() | {"held_gain_0.04": 0.9, "held_drift_px": 0.25, "intervals": {}})
    rows = {line[:32].strip(): line[32:].split() for line in table.splitlines()}
    assert rows["held gain at 0.04 (ideal 1)"] == ["0.900", "-", "-"]
    assert rows["drift held still, px (ideal 0)"] == ["0.250", "0.000", "0.000"]

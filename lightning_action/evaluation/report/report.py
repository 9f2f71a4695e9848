"""The figures of a test, as a file and as a table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_action.atomic import write_text
from lightning_action.evaluation.report.comparison import paired_tests
from lightning_action.evaluation.report.figures import FIGURES, figures_of, format_value
from lightning_action.evaluation.report.report_page import report_page

Report = dict[str, Any]
_SECTIONS = ("verdict", "intervals", "baselines", "per_episode", "curves", "provenance")
_LIST_OF_NUMBERS = re.compile(r"\[\n[-+.\w\s,]*\n\s*\]")


def write_reports(folder: Path, report: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> list[Path]:
    """Write `report.json` and `report.html`, with paired tests over episodes, and return their paths.

    Args:
        folder: Folder of both files.
        report: The report, see `docs/report.md`.
        pictures: Videos for the page, see `report_page`.
    """
    told = null_where_undefined({**report, "paired": paired_tests(report)})
    paths = [folder / "report.json", folder / "report.html"]
    page = report_page(told, pictures)
    write_report(paths[0], told)
    write_text(paths[1], page)
    return paths


def report_file(path: Path) -> Path:
    """Return the file of a report, given the file itself or its folder."""
    return path / "report.json" if path.is_dir() else path


def read_report(path: Path) -> Report:
    """Read a report, given the file or the folder that it is in.

    Raises:
        FileNotFoundError: The path names no report.
        ValueError: The file is no report.
    """
    file = report_file(path)
    if not file.is_file():
        raise FileNotFoundError(f"no report at {file}: `python main.py test` writes one into trainer.default_root_dir")
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no report: {error}") from error
    if not isinstance(report, dict) or not any(key in FIGURES for key in report):
        raise ValueError(f"{file} is no report: it holds none of the figures that `python main.py test` writes")
    broken = [name for name in _SECTIONS if not isinstance(report.get(name) or {}, dict)]
    if broken:
        raise ValueError(
            f"{file} is no report: {', '.join(broken)} should be by name, as `python main.py test` writes it"
        )
    return report


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write JSON in one step: the file is either the old one or the whole new one.

    A figure that is undefined, such as the sign accuracy of videos in which nothing should move, is null.
    """
    text = json.dumps(null_where_undefined(report), indent=2, allow_nan=False)
    # The values of all episodes of a figure in one line; no text has line breaks in JSON.
    text = _LIST_OF_NUMBERS.sub(lambda found: " ".join(found[0].split()), text)
    write_text(path, text + "\n")


def format_table(report: Report) -> str:
    """Write the report as a table: the model, with an interval where there is one, beside the baselines; a verdict."""
    columns: dict[str, Report] = {"model": report, **report["baselines"]}
    intervals: Mapping[str, Any] = report.get("intervals", {})
    titles = ["model", *(["95 %"] if intervals else []), *report["baselines"]]
    lines = [f"{'':32}" + "".join(f"{name:>20}" for name in titles)]
    for key, figure in figures_of(report).items():
        if figure.printed:
            cells = [format_value(values.get(key)) for values in columns.values()]
            if intervals:
                cells.insert(1, " .. ".join(map(format_value, intervals[key])) if key in intervals else "")
            lines.append(f"{figure.heading:<31.31} " + "".join(f"{cell:>20}" for cell in cells))
    if "verdict" in report:
        lines += ["", f"verdict: {report['verdict']['label']}", *(f"- {why}" for why in report["verdict"]["reasons"])]
    return "\n".join(lines)


def null_where_undefined(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    if isinstance(value, Mapping):
        return {key: null_where_undefined(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [null_where_undefined(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

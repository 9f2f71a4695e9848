"""The figures of a test, as a file and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_action.atomic import replacing

Report = dict[str, Any]


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write JSON in one step: the file is either the old one or the whole new one.

    A figure that is undefined, such as the sign accuracy of videos in which nothing should move, is null.
    """
    text = json.dumps(null_where_undefined(report), indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n")


_ROWS: tuple[tuple[str, str], ...] = (
    ("sign_accuracy", "sign accuracy (chance 0.5)"),
    ("gain_x", "gain x (ideal 1)"),
    ("gain_y", "gain y (ideal 1)"),
    ("r2_x", "R2 x"),
    ("r2_y", "R2 y"),
    ("lag_frames", "lag in pixel frames (ideal 0)"),
    ("ade_px", "position error in px"),
    ("missing_rate", "object missing"),
    ("delta_psnr_db", "PSNR true - other actions, dB"),
    ("shuffle_win_rate", "shuffle win rate (chance 0.5)"),
)


def format_table(report: Report) -> str:
    """Write the report as a table: the model, with an interval where there is one, beside the baselines; a verdict."""
    columns: dict[str, Report] = {"model": report, **report["baselines"]}
    intervals: Mapping[str, Any] = report.get("intervals", {})
    titles = ["model", *(["95 %"] if intervals else []), *report["baselines"]]
    lines = [f"{'':32}" + "".join(f"{name:>18}" for name in titles)]
    for key, title in _ROWS:
        if key in report:
            cells = [_cell(values[key]) for values in columns.values()]
            if intervals:
                cells.insert(1, " .. ".join(map(_cell, intervals[key])) if key in intervals else "")
            lines.append(f"{title:32}" + "".join(f"{cell:>18}" for cell in cells))
    if "verdict" in report:
        lines += ["", f"verdict: {report['verdict']['label']}", *(f"- {why}" for why in report["verdict"]["reasons"])]
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"


def null_where_undefined(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    if isinstance(value, Mapping):
        return {key: null_where_undefined(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [null_where_undefined(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

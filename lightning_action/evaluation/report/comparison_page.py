"""Two reports side by side, as a page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from lightning_action.evaluation.report.comparison import Change, Comparison
from lightning_action.evaluation.report.page import (
    card,
    document,
    folded,
    section,
    side_by_side,
    table,
    verdict_with_reasons,
)
from lightning_action.evaluation.report.report_page import (
    curve_charts,
    number,
    outcome_chip,
    p_text,
    provenance_facts,
    signed,
)

Report = Mapping[str, Any]


def comparison_page(comparison: Comparison, first: Report, second: Report, sources: tuple[str, str]) -> str:
    """Write the comparison of two reports, which come from two sources, as HTML that needs nothing else."""
    reports = dict(zip(comparison.names, (first, second), strict=True))
    tested, untested = ([each for each in comparison.changes if (each.tested is None) == no] for no in (False, True))
    one, other = comparison.names
    header = ["", one, other, f"{other} − {one}", "95 %", "n", "p", f"{other} is"]
    rest = folded(f"{len(untested)} figures that could not be tested", table(header, map(_row, untested)))
    details = [each for each in comparison.details if each.tested is not None]
    more = folded(
        f"{len(details)} figures that break these down, corrected for among themselves",
        table(header, map(_row, details)),
    )
    told = section("Is it more than noise?", f"{comparison.method()}.", table(header, map(_row, tested)), more, rest)
    verdicts = [_verdict(name, source, report) for (name, report), source in zip(reports.items(), sources, strict=True)]
    origins = [_origin(name, report) for name, report in reports.items()]
    body = (
        f'<header class="verdict"><h1>Which one obeys better?</h1><p>{escape(comparison.summary())}.</p>'
        f"{side_by_side(verdicts)}</header>{told}{_curves(reports)}"
        + section("Of what", "Fingerprints of weights and data, versions and settings.", side_by_side(origins))
    )
    return document(f"{one} and {other}", body)


def _row(change: Change) -> list[str]:
    tested, distance = ["-"] * 3, ""
    if change.tested is not None:
        low, high = change.tested.interval
        tested = [signed(change.tested.difference), f"{signed(low)} to {signed(high)}", f"{change.tested.episodes}"]
        distance = "difference: of distances from the ideal" if change.figure.better == "nearer" else ""
    name = f"{escape(change.figure.name)}<small>{distance}</small>"
    values = [number(change.first), number(change.second)]
    return [name, *values, *tested, p_text(change.p_value), outcome_chip(change.outcome)]


def _verdict(name: str, source: str, report: Report) -> str:
    title = f"<h3>{escape(name)} <small>{escape(source)}</small></h3>"
    return card(title + verdict_with_reasons(report.get("verdict") or {}))


def _curves(reports: Mapping[str, Report]) -> str:
    """Section that shows both models over the horizon, in the same pictures."""
    quantities: dict[str, dict[str, Any]] = {}
    for name, report in reports.items():
        for quantity, curves in (report.get("curves") or {}).items():
            if "model" in curves:
                quantities.setdefault(quantity, {})[name] = curves["model"]
    first = min((int(report.get("num_initial_frames") or 1) for report in reports.values()), default=1)
    return section("How far into the video?", "Mean over the episodes.", curve_charts(quantities, first))


def _origin(name: str, report: Report) -> str:
    told = provenance_facts(report)
    return card(f"<h3>{escape(name)}</h3>{told}") if told else ""

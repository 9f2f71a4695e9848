"""A report as a page that one looks at: verdict, figures, curves, film strips, and where all of it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from torch import Tensor

from lightning_action.evaluation.report.comparison import SIGNIFICANT, Outcome, outcome_of
from lightning_action.evaluation.report.figures import (
    DIFFERENCE,
    FIGURES,
    FOLLOWING,
    GROUPS,
    OTHER_ACTIONS_TOLD,
    QUALITY,
    Figure,
    figures_of,
    format_value,
    is_number,
)
from lightning_action.evaluation.report.page import (
    card,
    chip,
    document,
    facts,
    folded,
    section,
    side_by_side,
    table,
    verdict_with_reasons,
)
from lightning_action.evaluation.report.page_pictures import action_scan, counterfactual_pairs, film_strips
from lightning_action.evaluation.report.svg_curves import line_chart

Report = Mapping[str, Any]

HEADLINES = (
    *("gain_x", "gain_y", "sign_accuracy", "lag_frames", "idm_correlation", "flow_gain"),
    *("swapped_win_rate", "shuffle_win_rate"),
    *("psnr_moving_db", "psnr_db", "counterfactual_ratio", "delta_psnr_db"),
)
_NUM_HEADLINES = 6
TITLES = {
    "model": "model",
    "copy_first_frame": "copy of the first frame",
    "ignore_actions": "same model, no actions",
}
_LEADS = {
    FOLLOWING: "Read off the generated videos, and compared with what the actions should have done.",
    DIFFERENCE: "The same start and the same noise under true, other and no actions. A model that is blind to actions "
    "has no difference here.",
    QUALITY: "Compared with the true videos, frame by frame. A copy of the first frame shows what a still background "
    "is worth.",
}
_CURVES = {
    "position_error_px": ("Distance from the true place", "position error, px"),
    "psnr_db": ("Likeness with the truth", "PSNR, dB"),
    "psnr_moving_db": ("Likeness where something moves", "PSNR, moving region, dB"),
    "ssim": ("Structural similarity", "SSIM"),
}
# Numbers of a report that are no figures, and told of how it was measured.
_TOLD = {"episodes", "seed", "num_frames", "num_initial_frames", "fit_seconds", "predict_seconds"}


def report_page(report: Report, pictures: Mapping[str, Tensor] | None = None) -> str:
    """Write a report as HTML that needs nothing else; what a report does not have is left out.

    Args:
        report: The report, as `report.json` has it.
        pictures: Videos of some samples, uint8 `[n, T, 3, H, W]`: `truth`, `model`, `other` (under another sample's
            actions), `null` (under none), and `held <action>` for each held action.
    """
    videos = pictures or {}
    given = int(report.get("num_initial_frames") or 0)
    label = (report.get("verdict") or {}).get("label", "")
    parts = [
        _head(report),
        film_strips(videos, given),
        *(_group(report, group) for group in GROUPS),
        _paired(report),
        _curves(report),
        _by_noise(report),
        counterfactual_pairs(videos, given),
        action_scan(videos, given),
        _method(report),
        _provenance(report),
    ]
    return document(f"Does it obey? {label}".strip(), "".join(parts))


def _head(report: Report) -> str:
    """The verdict with its reasons and thresholds, and the figures that matter most."""
    verdict = report.get("verdict") or {}
    limits = {name.replace("_", " "): f"{limit:g}" for name, limit in (verdict.get("thresholds") or {}).items()}
    known = [key for key in HEADLINES if key in report]
    tiles = "".join(_tile(FIGURES[key], report) for key in known[:_NUM_HEADLINES])
    told = card(verdict_with_reasons(verdict) + folded("Thresholds of this verdict", facts(limits)))
    title = "<h1>Does the model obey its actions?</h1>"
    return f'<header class="verdict">{title}{told}<div class="tiles">{tiles}</div></header>'


def _tile(figure: Figure, report: Report) -> str:
    unit = f" {figure.unit}" if figure.unit else ""
    return (
        f'<div class="card tile"><small>{escape(figure.title)}</small>'
        f"<b>{number(report[figure.key], 2)}{unit}</b>"
        f"<small>{_interval(report, figure.key)}</small><small>{_ideal_and_chance(figure)}</small></div>"
    )


def _ideal_and_chance(figure: Figure) -> str:
    told = {"ideal": figure.ideal, "chance": figure.chance}
    return ", ".join(f"{name} {value:g}" for name, value in told.items() if value is not None)


def _interval(report: Report, key: str) -> str:
    bounds = (report.get("intervals") or {}).get(key)
    return f"{number(bounds[0])} to {number(bounds[1])}" if bounds and all(map(is_number, bounds)) else ""


def _group(report: Report, group: str) -> str:
    """The figures that answer one question, those in detail folded."""
    figures = [figure for figure in figures_of(report).values() if figure.group == group]
    main = [figure for figure in figures if not figure.detail]
    detail = [figure for figure in figures if figure.detail]
    return section(
        group, _LEADS[group], _figures(report, main), folded(f"{len(detail)} more figures", _figures(report, detail))
    )


def _figures(report: Report, figures: Sequence[Figure]) -> str:
    baselines: Mapping[str, Any] = report.get("baselines") or {}
    header = ["", "model (95 %)", *(TITLES.get(name, name) for name in baselines), "reference"]
    forced = (report.get("protocol") or {}).get("teacher_forced", ())

    def row(figure: Figure) -> Iterator[str]:
        protocol = chip("teacher-forced") if figure.key in forced else ""
        yield f"{escape(figure.name)}{protocol}<small>{escape(figure.says)}</small>"
        interval = _interval(report, figure.key)
        yield f'<span><span class="own">{number(report[figure.key])}</span><small>{interval}</small></span>'
        yield from (number(values[figure.key]) if figure.key in values else "" for values in baselines.values())
        yield _ideal_and_chance(figure)

    return table(header, map(list, map(row, figures)))


def _paired(report: Report) -> str:
    """Section that says whether the model differs from its baselines by more than noise."""
    tests: Mapping[str, Any] = report.get("paired") or {}
    figures = figures_of(tests)
    names = list(dict.fromkeys(name for by_baseline in tests.values() for name in by_baseline))
    header = ["", *(TITLES.get(name, name) for name in names)]

    def row(key: str) -> Iterator[str]:
        figure = figures[key]
        distance = "<small>of distances from the ideal</small>" if figure.better == "nearer" else ""
        yield f"{escape(figure.name)}{distance}"
        yield from (_tested(figure, tests[key][name]) if name in tests[key] else "" for name in names)

    main, rest = ([key for key, figure in figures.items() if figure.printed == printed] for printed in (True, False))
    lead = (
        "Model minus each baseline, episode by episode, with an interval of 95 % and the p-value of a sign-flip "
        "permutation test for each figure alone: of twenty, one falls below 0.05 by chance."
    )
    others = folded(f"{len(rest)} more figures", table(header, map(list, map(row, rest))))
    return section("Is it more than noise?", lead, table(header, map(list, map(row, main))), others)


def _tested(figure: Figure, tested: Mapping[str, Any]) -> str:
    """A difference, what it means, and how sure that is."""
    difference, (low, high), p_value = tested["difference"], tested["interval"], tested["p_value"]
    outcome = outcome_chip(outcome_of(figure, difference, p_value))
    sure = f"p {p_text(p_value)}, n {tested['episodes']}"
    interval = f"{signed(low)} to {signed(high)}"
    return f"<span>{outcome} {signed(difference)}<small>{interval}</small><small>{sure}</small></span>"


def _curves(report: Report) -> str:
    """Section that shows what becomes of the videos, the farther they go."""
    lead = "Mean over the episodes at each generated frame: an error that grows is one that adds up."
    first = int(report.get("num_initial_frames") or 1)
    return section("How far into the video?", lead, curve_charts(report.get("curves") or {}, first))


def curve_charts(quantities: Mapping[str, Any], first: int) -> str:
    """Draw a chart for each quantity, of curves by name, whose values begin at pixel frame `first`."""
    charts = []
    for quantity, curves in quantities.items():
        title, label = _CURVES.get(quantity, (quantity, quantity))
        points = {
            TITLES.get(name, name): [(float(first + index), value) for index, value in enumerate(values)]
            for name, values in curves.items()
        }
        charts.append(_chart(title, line_chart(points, "pixel frame", label)))
    return side_by_side(charts, "charts")


def _by_noise(report: Report) -> str:
    """Gap and win rate by noise level."""
    gaps: dict[str, Any] = {}
    rates: dict[str, Any] = {}
    for kind, rows in (report.get("loss_by_noise_level") or {}).items():
        name = OTHER_ACTIONS_TOLD.get(kind, kind)
        gaps[name] = [((low + high) / 2, gap) for low, high, gap, _ in rows]
        rates[name] = [((low + high) / 2, rate) for low, high, _, rate in rows]
    charts = [
        _chart("What wrong actions cost", line_chart(gaps, "noise level", "loss gap", ("a blind model", 0))),
        _chart("How often the true ones win", line_chart(rates, "noise level", "win rate", ("chance", 0.5))),
    ]
    lead = (
        "Teacher-forced: loss under other actions minus loss under the true ones, at the same noise. Actions decide at "
        "high noise; at low noise the picture shows already what happens."
    )
    return section("At which noise do actions act?", lead, side_by_side(charts, "charts"))


def _chart(title: str, curves: str) -> str:
    return f'<figure class="card"><h3>{escape(title)}</h3>{curves}</figure>' if curves else ""


def _method(report: Report) -> str:
    """Section that says how the figures were measured."""
    values = {
        "episodes": f"{report['episodes']:.0f}" if is_number(report.get("episodes")) else "",
        "frames": f"{report['num_frames']}, of which {report.get('num_initial_frames', 0)} are given"
        if "num_frames" in report
        else "",
        "rollouts": str(report.get("rollout", "")),
        "seed of the noise": str(report.get("seed", "")),
        "randomness": "matched: the same noise for a sample, whatever its actions" if "seed" in report else "",
        "intervals": "percentile bootstrap over episodes, 95 %" if report.get("intervals") else "",
        "paired tests": f"sign flips of the differences of episodes; more than noise is p < {SIGNIFICANT}"
        if report.get("paired")
        else "",
        "teacher-forced": "losses at a noise level, behind the true past",
        "autoregressive": "videos in which every latent frame but the given ones is generated, behind generated ones",
        "training took": f"{report['fit_seconds']:.0f} s" if is_number(report.get("fit_seconds")) else "",
        "rollouts took": f"{report['predict_seconds']:.0f} s" if is_number(report.get("predict_seconds")) else "",
    }
    shown = figures_of(report).keys() | _TOLD
    rest = {key: number(value) for key, value in report.items() if key not in shown and is_number(value)}
    others = folded("Figures that stand in no table", card(facts(rest)))
    return section("How it was measured", "Enough to measure it again.", card(facts(values)), others)


def _provenance(report: Report) -> str:
    """Section that names weights, data and settings."""
    config = (report.get("provenance") or {}).get("config")
    settings = folded("Configuration", card(f"<pre>{escape(_text(config))}</pre>") if config else "")
    lead = "Fingerprints of weights and data, versions and settings."
    return section("Of what", lead, card(provenance_facts(report)), settings)


def provenance_facts(report: Report) -> str:
    """List where a report comes from, but for its configuration; nothing where it does not say."""
    found: dict[str, str] = {}
    for name, values in (report.get("provenance") or {}).items():
        if isinstance(values, Mapping) and name != "config":
            found |= {f"{name}: {key}".replace("_", " "): _text(value) for key, value in values.items()}
    return facts(found)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2)


def number(value: Any, digits: int = 3) -> str:
    """Write a figure with a minus sign, and without one before zero."""
    text = format_value(value, digits)
    return text.replace("-", "−") if is_number(value) and float(text) else text.removeprefix("-") or "-"


def signed(value: Any) -> str:
    """Write a difference with its sign."""
    return f"{value:+.3f}".replace("-", "−") if is_number(value) else "-"


def outcome_chip(outcome: Outcome) -> str:
    """Colour what a test says."""
    return chip(outcome, {"better": "good", "worse": "bad"}.get(outcome, "none"))


def p_text(value: Any) -> str:
    """Write a p-value, as HTML."""
    if not is_number(value):
        return "-"
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"

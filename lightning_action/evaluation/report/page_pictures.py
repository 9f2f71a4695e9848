"""The film strips of a report's page: what was generated beside the truth, and what other actions change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from torch import Tensor

from lightning_action.evaluation.report.page import folded, section, side_by_side
from lightning_action.evaluation.report.strips import by_sample, data_uri, difference, film_strip, spread

Videos = Mapping[str, Tensor]

HELD = "held "
_ROWS = {
    "truth": "truth",
    "model": "model, true actions",
    "other": "model, another sample's actions",
    "null": "model, no action",
}
_NUM_SHOWN = 2


def film_strips(videos: Videos, given: int) -> str:
    """Show each sample as it is, and as it is generated under its own, another's and no actions."""
    present = {title: videos[key] for key, title in _ROWS.items() if key in videos}
    lead = (
        "One start and one noise in each: what obeys is like the truth in the second row, and unlike it in the third."
    )
    return section("What it looks like", lead, *_some(_films("sample", by_sample(present), given)))


def counterfactual_pairs(videos: Videos, given: int) -> str:
    """Show the same start under two actions, and their difference."""
    samples = []
    for own, other in zip(videos.get("model", ()), videos.get("other", ()), strict=False):
        change, factor = difference(own, other)
        brighter = f", {factor} times brighter" if factor > 1 else ""
        samples.append({"true actions": own, "another sample's": other, f"difference{brighter}": change})
    lead = "The last row is black where actions change nothing. It should be black at the start, and not at the end."
    return section("The same start, two actions", lead, *_some(_films("sample", samples, given)))


def action_scan(videos: Videos, given: int) -> str:
    """Show one start under each held action."""
    held = {key.removeprefix(HELD): video for key, video in videos.items() if key.startswith(HELD)}
    lead = (
        "One start and one noise, each row under one action that never changes: rows must part, more so to the right."
    )
    return section("One action, held", lead, side_by_side(_films("start", by_sample(held)[:_NUM_SHOWN], given)))


def _films(name: str, samples: Sequence[Videos], given: int) -> list[str]:
    return [_film(f"{name} {number}", rows, given) for number, rows in enumerate(samples, start=1)]


def _film(title: str, rows: Videos, given: int) -> str:
    """Rows of frames under their numbers, and a title."""
    frames = spread(min(map(len, rows.values())))
    numbers = "".join(f"<i>{frame}{' given' if frame < given else ''}</i>" for frame in frames)
    head = (
        f'<div class="row"><span class="nothing">frame</span>'
        f'<div class="times" style="grid-template-columns:repeat({len(frames)},1fr)">{numbers}</div></div>'
    )
    strips = "".join(
        f'<div class="row"><span>{escape(name)}</span>'
        f'<img alt="{escape(name)}, frames {frames[0]} to {frames[-1]}" src="{data_uri(film_strip(video, frames))}">'
        "</div>"
        for name, video in rows.items()
    )
    return f'<figure class="card"><h3>{escape(title)}</h3><div class="film"><div>{head}{strips}</div></div></figure>'


def _some(films: Sequence[str]) -> tuple[str, str]:
    """Show the first samples, and fold the others."""
    first, rest = films[:_NUM_SHOWN], films[_NUM_SHOWN:]
    return side_by_side(first), folded(f"{len(rest)} more", side_by_side(rest))

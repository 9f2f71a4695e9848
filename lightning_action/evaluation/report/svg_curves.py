"""Curves as inline SVG: axes with units, gaps where a value is undefined, colours that the page chooses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from lightning_action.evaluation.report.figures import is_number

Points = Sequence[tuple[float, float | None]]

_WIDTH, _HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 14, 12, 44
_NUM_TICKS = 5


class _Axis(NamedTuple):
    """Values at the ends of an axis, and those that are written beside it."""

    low: float
    high: float
    ticks: list[float]

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


def line_chart(
    curves: Mapping[str, Points], x_label: str, y_label: str, reference: tuple[str, float] | None = None
) -> str:
    """Draw curves over one another, with a legend; an empty text where no value is defined.

    The i-th curve has the class `curve-i`, which gives its colour.

    Args:
        curves: Points (x, y) of each curve by its name; a y of None, NaN or infinity leaves a gap.
        x_label: Quantity on the horizontal axis, with its unit.
        y_label: Quantity on the vertical axis.
        reference: Name and value of a dashed line from left to right.
    """
    defined = [(x, y) for points in curves.values() for x, y in points if y is not None and is_number(y)]
    if not defined:
        return ""
    xs = _axis_of_data([x for x, _ in defined])
    ys = _axis_around([y for _, y in defined] + ([] if reference is None else [reference[1]]))
    lines = [_curve(index, points, xs, ys) for index, points in enumerate(curves.values())]
    names = "".join(f"<li>{_key(f'curve-{index}')}{escape(name)}</li>" for index, name in enumerate(curves))
    dashed = ""
    if reference is not None:
        dashed = f'<path class="reference" d="M{_LEFT} {_vertical(reference[1], ys):.1f}H{_WIDTH - _RIGHT}"/>'
        names += f"<li>{_key('reference')}{escape(reference[0])}</li>"
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(y_label)} by '
        f'{escape(x_label)}">{_frame(xs, ys, x_label, y_label)}{dashed}{"".join(lines)}</svg>'
        f'<ul class="legend">{names}</ul>'
    )


def round_ticks(low: float, high: float, count: int = _NUM_TICKS) -> list[float]:
    """Choose about `count` round numbers, steps of 1, 2 or 5 times a power of ten, that lie around an interval."""
    span = high - low if high > low else max(abs(high), 1.0)
    rough = span / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _axis_around(values: Sequence[float]) -> _Axis:
    ticks = round_ticks(min(values), max(values))
    return _Axis(ticks[0], ticks[-1], ticks)


def _axis_of_data(values: Sequence[float]) -> _Axis:
    """An axis that ends where the data does, with the round numbers inside."""
    low, high = min(values), max(values)
    if low == high:
        return _axis_around(values)
    return _Axis(low, high, [tick for tick in round_ticks(low, high) if low <= tick <= high])


def _horizontal(value: float, axis: _Axis) -> float:
    return _LEFT + axis.share(value) * (_WIDTH - _LEFT - _RIGHT)


def _vertical(value: float, axis: _Axis) -> float:
    return _HEIGHT - _BOTTOM - axis.share(value) * (_HEIGHT - _TOP - _BOTTOM)


def _frame(xs: _Axis, ys: _Axis, x_label: str, y_label: str) -> str:
    """Grid, numbers and labels of both axes."""
    parts = []
    for value in ys.ticks:
        y = _vertical(value, ys)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for value in xs.ticks:
        x = _horizontal(value, xs)
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{_number(value)}</text>')
    middle_x, middle_y = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<text x="{middle_x}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(14 {middle_y}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _curve(index: int, points: Points, xs: _Axis, ys: _Axis) -> str:
    """Lines between neighbours that are both defined, and dots where there are few points, or one stands alone."""
    commands, dots = [], []
    defined = [None if y is None or not is_number(y) else (x, y) for x, y in points]
    for before, here, after in zip([None, *defined[:-1]], defined, [*defined[1:], None], strict=False):
        if here is None:
            continue
        across, down = f"{_horizontal(here[0], xs):.1f}", f"{_vertical(here[1], ys):.1f}"
        commands.append(f"{'M' if before is None else 'L'}{across} {down}")
        if len(points) <= 2 * _NUM_TICKS or before is after is None:
            dots.append(f'<circle cx="{across}" cy="{down}" r="3"/>')
    return f'<g class="curve-{index}"><path d="{"".join(commands)}"/>{"".join(dots)}</g>' if commands else ""


def _key(kind: str) -> str:
    return f'<svg class="key {kind}" viewBox="0 0 28 8" aria-hidden="true"><path d="M0 4H28"/></svg>'


def _number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−") if abs(value) > 1e-12 else "0"

"""Curves as SVG that a parser of XML reads."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from lightning_action.evaluation.report.svg_curves import line_chart, round_ticks


def drawn(chart: str) -> ET.Element:
    return ET.fromstring(f"<div>{chart}</div>")


def curves(chart: str) -> list[str]:
    return [path.attrib["d"] for group in drawn(chart).iter("g") for path in group.iter("path")]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 0.9), (22.1, 30.9), (-3, 14), (5, 5), (0, 0), (1e-7, 3e-7), (-2e5, 1e6)]
)
def test_ticks_are_round_and_lie_around(low: float, high: float) -> None:
    found = round_ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    steps = {f"{b - a:.6e}" for a, b in pairwise(found)}
    assert len(steps) == 1 and steps.pop()[:2] in ("1.", "2.", "5.")
    assert 2 <= len(found) <= 8


def test_a_curve_goes_through_its_points() -> None:
    chart = line_chart({"model": [(1.0, 0.0), (2.0, 1.0), (3.0, 0.5)]}, "frame", "error, px")
    (path,) = curves(chart)
    points = [tuple(map(float, point.split())) for point in path[1:].split("L")]
    (x1, low), (x2, high), (x3, middle) = points
    assert x2 - x1 == pytest.approx(x3 - x2)
    assert low > middle > high and middle == pytest.approx((low + high) / 2)
    texts = [text.text for text in drawn(chart).iter("text")]
    assert {"frame", "error, px", "0", "1"} <= set(texts)


def test_what_is_undefined_is_a_gap() -> None:
    values = [0.0, None, 1.0, math.nan, 2.0, 3.0]
    (path,) = curves(line_chart({"model": list(enumerate(values))}, "x", "y"))  # type: ignore[arg-type]
    assert path.count("M") == 3 and path.count("L") == 1


def test_a_point_that_stands_alone_is_a_dot() -> None:
    values = [0.0, 1.0, None, 2.0, None, *range(12)]
    chart = line_chart({"model": list(enumerate(values))}, "x", "y")  # type: ignore[arg-type]
    (dot,) = drawn(chart).iter("circle")
    assert f"M{dot.attrib['cx']} {dot.attrib['cy']}M" in curves(chart)[0]


def test_nothing_is_drawn_of_nothing() -> None:
    assert line_chart({}, "x", "y") == line_chart({"model": [(1.0, None)]}, "x", "y") == ""


def test_names_are_in_the_legend_and_do_no_harm() -> None:
    chart = line_chart({"<b>&": [(0.0, 1.0)], "two": [(0.0, 2.0)]}, "x", 'y "quoted"', ("chance", 1.5))
    assert [item.itertext().__next__() for item in drawn(chart).iter("li")] == ["<b>&", "two", "chance"]
    assert "<b>" not in chart and "curve-1" in chart

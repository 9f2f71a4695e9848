"""Names whose beginnings are replaced."""

from __future__ import annotations

from lightning_action.weights.names import below, renamed


def test_beginnings_are_replaced_once() -> None:
    rows = [("a.", "b."), ("b.", "c.")]
    assert [renamed(name, rows) for name in ("a.b.a.", "b.a.", "ab.a.", "")] == ["b.b.a.", "c.a.", "ab.a.", ""]


def test_what_stands_below_a_name_is_called_without_it() -> None:
    assert below({"a.b": 1, "a.a.b": 2, "ab": 3}, "a.") == {"b": 1, "a.b": 2}
    assert below({"a.b": 1}, "") == {"a.b": 1}

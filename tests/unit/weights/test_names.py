"""Names whose beginnings are replaced."""

from __future__ import annotations

from lightning_action.weights.names import renamed


def test_beginnings_are_replaced_once() -> None:
    rows = [("a.", "b."), ("b.", "c.")]
    assert [renamed(name, rows) for name in ("a.b.a.", "b.a.", "ab.a.", "")] == ["b.b.a.", "c.a.", "ab.a.", ""]

"""A table of text."""

from __future__ import annotations

from collections.abc import Iterable

Row = tuple[str, ...]


def text_table(title: str, header: Row, rows: Iterable[Row]) -> str:
    """Rows under a title and a header, the first column to the left, the others to the right; nothing without rows."""
    rows = list(rows)
    if not rows:
        return ""
    shown = [header, *rows] if any(header) else rows
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in shown]
    return "\n".join([title, *("  " + "   ".join(line).rstrip() for line in lines)])


def span(numbers: list[int]) -> str:
    """Write whole numbers that follow each other as `first - last`."""
    return "none" if not numbers else str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} - {numbers[-1]}"

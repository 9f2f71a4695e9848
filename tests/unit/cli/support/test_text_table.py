from __future__ import annotations

import pytest

from lightning_action.cli.support.text_table import span, text_table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [("generator", "12", ""), ("vae", "3456", "frozen")]
    assert text_table("parts", ("name", "size", "what"), rows) == (
        "parts\n"
        "  name        size     what\n"
        "  generator     12\n"
        "  vae         3456   frozen"
    )  # fmt: skip


def test_an_empty_header_takes_no_line_and_no_rows_give_nothing() -> None:
    assert text_table("parts", ("", ""), iter([("a", "1")])) == "parts\n  a   1"
    assert text_table("parts", ("name", "size"), []) == ""
    with pytest.raises(ValueError, match="shorter"):
        text_table("parts", ("name", "size"), [("a",)])


@pytest.mark.parametrize(("numbers", "told"), [([], "none"), ([3], "3"), ([3, 4, 5], "3 - 5")])
def test_spans(numbers: list[int], told: str) -> None:
    assert span(numbers) == told

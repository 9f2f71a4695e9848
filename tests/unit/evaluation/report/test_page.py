from __future__ import annotations

import pytest

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


def test_a_document_may_load_nothing() -> None:
    page = document("a < b", "<p>hello</p>")
    assert page.startswith("<!doctype html>") and page.endswith("<main><p>hello</p></main></body></html>\n")
    assert "<title>a &lt; b</title>" in page and "content=\"default-src 'none'; img-src data:;" in page
    assert page.count("\n") == 1, "the style is one line"


def test_texts_are_escaped_and_parts_are_not() -> None:
    assert section("a&b", "c<d", "<i>1</i>", "", "<i>2</i>") == (
        '<section><h2>a&amp;b</h2><p class="lead">c&lt;d</p><i>1</i><i>2</i></section>'
    )
    assert folded("3 > 2", "<i>1</i>") == "<details><summary>3 &gt; 2</summary><i>1</i></details>"
    assert chip("<b>", "good") == '<span class="chip good">&lt;b&gt;</span>' and 'class="chip none"' in chip("x")
    assert card("<i>1</i>") == '<div class="card"><i>1</i></div>'
    assert side_by_side(["<i>1</i>", ""], "charts") == '<div class="charts"><i>1</i></div>'
    assert facts({"a&b": "<1>", "c": ""}) == "<dl><dt>a&amp;b</dt><dd>&lt;1&gt;</dd></dl>"


def test_a_table_names_its_cells_for_narrow_screens() -> None:
    assert table(["name", "<x>"], [["<b>p</b>", "1"]]) == (
        '<div class="card tabled"><table class="stacks"><thead><tr><th scope=col>name</th><th scope=col>&lt;x&gt;</th>'
        "</tr></thead><tbody><tr><th scope=row><b>p</b></th>"
        '<td data-label="&lt;x&gt;">1</td></tr></tbody></table></div>'
    )
    with pytest.raises(ValueError, match="argument 2 is longer"):
        table(["name"], [["a", "b"]])


def test_nothing_is_drawn_around_nothing() -> None:
    empty = [section("a", "b", "", ""), table(["a"], []), card(""), side_by_side(["", ""]), folded("a", ""), facts({})]
    assert [*empty, section("a", "b"), facts({"a": ""})] == [""] * 8


@pytest.mark.parametrize(
    ("label", "kind"), [("obeys", "good"), ("partly", "fair"), ("ignores", "bad"), ("cannot tell", "none")]
)
def test_verdicts_have_colours(label: str, kind: str) -> None:
    assert verdict_with_reasons({"label": label, "reasons": ["a<b", 3]}) == (
        f'<span class="label {kind}">{label}</span><ul><li>a&lt;b</li><li>3</li></ul>'
    )


def test_a_report_without_a_verdict_says_so() -> None:
    assert verdict_with_reasons({}) == '<span class="label none">no verdict</span><ul></ul>'

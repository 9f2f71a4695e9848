"""Two reports side by side, as a page."""

from __future__ import annotations

from lightning_action.evaluation.report.comparison import compare
from lightning_action.evaluation.report.comparison_page import comparison_page
from tests.support import made_up_report


def test_the_page_shows_both() -> None:
    first, second = made_up_report.report(1.0), made_up_report.report(0.7, seed=2)
    page = comparison_page(compare(first, second, ("A", "B")), first, second, ("runs/<one>", "runs/two"))
    for told in (
        *("obeys", "partly", "runs/&lt;one&gt;", "runs/two", "B − A", "worse", "no more than noise", "not tested"),
        *("Paired over the same episodes", "figures that could not be tested", "pixel frame", "5f0c5f0c"),
    ):
        assert told in page, told
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page


def test_reports_that_know_little_make_a_page_too() -> None:
    first, second = {"psnr_db": 20.0}, {"psnr_db": 21.0}
    page = comparison_page(compare(first, second, ("A", "B")), first, second, ("one", "two"))
    assert "no verdict" in page and "How far" not in page and "Of what" not in page

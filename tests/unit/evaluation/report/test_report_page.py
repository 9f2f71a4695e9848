"""The page of a report: it holds what the report has, needs nothing else, and takes what a report lacks."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lightning_action.evaluation.report.comparison import paired_tests
from lightning_action.evaluation.report.figures import FIGURES
from lightning_action.evaluation.report.report import null_where_undefined
from lightning_action.evaluation.report.report_page import report_page
from tests.support import made_up_report

VOID = {"meta", "img", "path", "circle", "br"}
# What the page shows of each key of a report that is no figure, and of nothing else.
SHOWN = {
    "a_figure_of_its_own": "a_figure_of_its_own3.500",
    "baselines": "24.000",
    "curves": "How far into the video?",
    "episodes": "episodes12",
    "fit_seconds": "training took431 s",
    "intervals": "0.942 to 1.042",
    "loss_by_noise_level": "At which noise do actions act?",
    "num_frames": "frames33, of which 1 are given",
    "num_initial_frames": "of which 1 are given",
    "predict_seconds": "rollouts took12 s",
    "protocol": f"teacher-forced{FIGURES['swapped_win_rate'].says}",
    "provenance": "checkpoint: fingerprint5f0c5f0c",
    "rollout": "fully autoregressive",
    "seed": "seed of the noise0",
    "verdict": "right direction in 99 %",
}
# Keys of which the page shows nothing: only the paired tests are made of them.
NOT_SHOWN = {"per_episode", "baselines_per_episode", "sample_ids"}
_PAIR = "<h2>The same start, two actions</h2>"
# What the page shows of each kind of picture.
PICTURES = {
    "truth": ('alt="truth, frames',),
    "model": ('alt="model, true actions, frames', _PAIR),
    "other": ('alt="model, another sample&#x27;s actions, frames', _PAIR),
    "null": ('alt="model, no action, frames',),
    "held +x": ('alt="+x, frames',),
}


class Reader(HTMLParser):
    """Keeps tags, attributes and text, and refuses what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def made_up(**changes: Any) -> dict[str, Any]:
    report = made_up_report.report()
    told: dict[str, Any] = null_where_undefined({**report, "paired": paired_tests(report), **changes})
    return told


def shown_of(key: str, report: dict[str, Any]) -> str:
    """Text of the page that is there if, and only if, the report has the key."""
    if key not in FIGURES:
        return SHOWN[key]
    protocol = "teacher-forced" if key in report["protocol"]["teacher_forced"] else ""
    return f"{FIGURES[key].name}{protocol}{FIGURES[key].says}"


def test_the_page_holds_what_the_report_has() -> None:
    pictures = made_up_report.pictures()
    page = read(report_page(made_up(), pictures))
    for told in (
        *("obeys", "right direction in 99 %", "gain low", "0.8"),
        *("sign accuracy", "0.942 to 1.042", "copy of the first frame", "ideal 1, chance 0.5", "teacher-forced"),
        *(
            "Model minus each baseline",
            "p < 0.001, n 12",
            "a blind model",
            "better",
            "episodes",
            "pixel frame",
            "PSNR, dB",
            "position error, px",
        ),
        *("noise level", "loss gap", "win rate", "another sample's actions", "shuffled actions"),
        *("truth", "model, true actions", "model, no action", "difference", "+x", "zero", "0 given", "32"),
        *("5f0c5f0c", "ab91ab91", "runs/demo/checkpoints/last.ckpt", "2.9.0", "teacher_forcing"),
        *(
            "percentile bootstrap",
            "matched: the same noise",
            "seed of the noise",
            "drift held still, px",
            "a_figure_of_its_own",
        ),
    ):
        assert told in page.text, told
    assert page.tags.count("img") == 2 * 4 + 2 * 3 + 2 * 5
    assert page.tags.count("svg") >= 6


def test_the_page_needs_nothing_else_and_is_small() -> None:
    page = report_page(made_up(), made_up_report.pictures(4, image_size=64))
    reader = read(page)
    assert all(link.startswith("data:image/webp;base64,") for link in reader.links)
    assert "script" not in reader.tags and "link" not in reader.tags
    assert re.findall(r"https?://", page) == []
    assert "default-src 'none'" in page and "prefers-color-scheme:dark" in page
    assert len(page) < 2e6


@pytest.mark.parametrize("size", [(96, 96), (240, 416)])
def test_large_videos_stay_small_on_the_page(size: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    coarse = 255 * torch.rand(4 * 8, 3, 15, 26, generator=random)
    textured = F.interpolate(coarse, size, mode="bilinear") + 8 * torch.randn(*size, generator=random)
    shown = textured.clamp(0, 255).to(torch.uint8).unflatten(0, (4, 8))
    names = ("truth", "model", "other", "null", *(f"held a {value}" for value in (-2, -1, 0, 1, 2)))
    assert len(report_page(made_up(), dict.fromkeys(names, shown))) < 2e6


@pytest.mark.parametrize("missing", sorted(made_up_report.report().keys() - NOT_SHOWN))
def test_what_a_report_lacks_is_left_out(missing: str) -> None:
    report = made_up()
    shown = shown_of(missing, report)
    assert shown in read(report_page(report)).text
    del report[missing]
    assert shown not in read(report_page(report)).text


@pytest.mark.parametrize("missing", sorted(NOT_SHOWN))
def test_values_of_episodes_are_not_shown_themselves(missing: str) -> None:
    report = made_up()
    del report[missing]
    assert report_page(report) == report_page(made_up())


def test_a_report_of_recorded_data_is_a_page_too() -> None:
    page = read(report_page({"psnr_db": 25.0, "delta_psnr_db": None, "baselines": {}}))
    assert "no verdict" in page.text and "25.000" in page.text and "How far" not in page.text


@pytest.mark.parametrize("missing", PICTURES)
def test_pictures_that_are_not_there_are_left_out(missing: str) -> None:
    pictures = made_up_report.pictures()
    whole = report_page(made_up(), pictures)
    del pictures[missing]
    page = report_page(made_up(), pictures)
    read(page)
    assert [shown in whole for shown in PICTURES[missing]] == [True] * len(PICTURES[missing])
    assert [shown in page for shown in PICTURES[missing]] == [False] * len(PICTURES[missing])


def test_texts_of_others_stay_texts() -> None:
    evil = "<script>alert('x')</script>"
    report = made_up(verdict={"label": evil, "reasons": [evil], "thresholds": {}}, rollout=evil)
    report["provenance"] = {"checkpoint": {"path": evil}, "config": evil}
    report["curves"] = {evil: {evil: [1.0, 2.0]}}
    report["baselines"] = {evil: {"psnr_db": 1.0}}
    report["loss_by_noise_level"] = {evil: [[0, 200, 0.1, 0.5]]}
    page = report_page(report, {f"held {evil}": made_up_report.pictures()["truth"]})
    assert "<script" not in page
    read(page)


def test_every_group_of_figures_has_its_section() -> None:
    assert {figure.group for figure in FIGURES.values()} <= set(re.findall(r"<h2>(.*?)</h2>", report_page(made_up())))

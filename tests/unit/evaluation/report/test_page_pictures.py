from __future__ import annotations

import re

import torch
from torch import Tensor

from lightning_action.evaluation.report.page_pictures import action_scan, counterfactual_pairs, film_strips
from lightning_action.evaluation.report.strips import data_uri, film_strip


def video(samples: int, num_frames: int = 5, value: int = 0) -> Tensor:
    return torch.full((samples, num_frames, 3, 2, 4), value, dtype=torch.uint8)


def rows(page: str) -> list[str]:
    """Names of the rows of frames, in their order."""
    return re.findall(r"<span>(.*?)</span>", page)


def test_rows_stand_under_the_numbers_of_their_frames() -> None:
    page = film_strips({"other": video(1, value=9), "truth": video(1, 7)}, given=2)
    assert rows(page) == ["truth", "model, another sample&#x27;s actions"]
    assert re.findall(r"<i>(.*?)</i>", page) == ["0 given", "1 given", "2", "3", "4"], "frames that both have"
    assert 'alt="truth, frames 0 to 4"' in page and "grid-template-columns:repeat(5,1fr)" in page
    assert data_uri(film_strip(video(1, value=9)[0], [0, 1, 2, 3, 4])) in page


def test_samples_after_the_second_are_folded() -> None:
    page = film_strips({"truth": video(5), "model": video(4)}, given=1)
    assert re.findall(r"<h3>(.*?)</h3>", page) == [f"sample {number}" for number in range(1, 5)]
    shown, hidden = page.split("<details><summary>2 more</summary>")
    assert shown.count("<h3>") == hidden.count("<h3>") == 2


def test_pairs_end_with_their_difference() -> None:
    own, other = video(2), video(2)
    other[0, 4, 0, 0, 0], other[1, 4] = 20, 200
    page = counterfactual_pairs({"model": own, "other": other}, given=1)
    names = ["true actions", "another sample&#x27;s"]
    assert rows(page) == [*names, "difference, 8 times brighter", *names, "difference"]


def test_held_actions_are_shown_from_two_starts_at_most() -> None:
    page = action_scan({"held +x": video(3), "truth": video(3), "held zero": video(3)}, given=1)
    assert rows(page) == ["+x", "zero"] * 2 and re.findall(r"<h3>(.*?)</h3>", page) == ["start 1", "start 2"]


def test_without_videos_there_is_no_section() -> None:
    assert (
        film_strips({}, 1) == counterfactual_pairs({"model": video(1)}, 1) == action_scan({"truth": video(1)}, 1) == ""
    )

"""Film strips: which frames, which pixels, and what a browser gets."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_action.evaluation.report.strips import (
    by_sample,
    captioned,
    data_uri,
    difference,
    film_strip,
    shrink,
    spread,
)


def decoded(uri: str) -> Tensor:
    head, _, content = uri.partition(",")
    assert head == "data:image/webp;base64"
    return torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(content))))).permute(2, 0, 1)


def test_samples_are_those_that_all_videos_have() -> None:
    samples = by_sample({"a": torch.arange(3), "b": torch.arange(10, 12)})
    assert samples == [{"a": 0, "b": 10}, {"a": 1, "b": 11}]
    assert by_sample({}) == []


@pytest.mark.parametrize(
    ("num_frames", "count", "frames"), [(33, 5, [0, 8, 16, 24, 32]), (3, 8, [0, 1, 2]), (1, 8, [0])]
)
def test_frames_are_spread_from_the_first_to_the_last(num_frames: int, count: int, frames: list[int]) -> None:
    assert spread(num_frames, count) == frames


def test_a_strip_has_the_frames_and_gaps_that_one_sees_through() -> None:
    video = torch.randint(256, (5, 3, 6, 7), dtype=torch.uint8)
    strip = decoded(data_uri(film_strip(video, [0, 2, 4])))
    assert strip.shape == (4, 6, 3 * 7 + 2 * 2)
    for place, frame in enumerate((0, 2, 4)):
        assert torch.equal(strip[:3, :, 9 * place : 9 * place + 7], video[frame])
    assert bool((strip[3, :, :7] == 255).all()) and bool((strip[3, :, 7:9] == 0).all())


def test_large_frames_are_shrunk() -> None:
    video = torch.full((2, 3, 300, 500), 200, dtype=torch.uint8)
    assert shrink(video).shape == (2, 3, 75, 125)
    assert bool((shrink(video) == 200).all())
    assert shrink(video[..., :100, :100]).shape == (2, 3, 100, 100)


def test_a_difference_is_brightened_so_that_it_is_seen() -> None:
    one, other = torch.zeros(2, 3, 4, 5, dtype=torch.uint8), torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    other[1, :, 0, 0] = 50
    change, factor = difference(one, other)
    assert factor == 5 and change[1, 0, 0, 0] == 250 and change.sum() == 750
    assert torch.equal(change, difference(other, one)[0])
    assert difference(one, one)[1] == 8


def test_captions_stand_above_rows() -> None:
    picture = captioned(dict.fromkeys(("truth", "model"), torch.full((3, 3, 8, 9), 77, dtype=torch.uint8)))
    assert picture.dtype == torch.uint8 and picture.shape[0] == 3
    height = picture.shape[1] // 2
    caption = picture[:, :18]
    assert caption.max() > 200 and bool((picture[:, 18:height, :9] == 77).all())

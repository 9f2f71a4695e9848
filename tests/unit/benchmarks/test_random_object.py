"""What is seen of an object that moves by chance, in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmarks._random_object import (
    RandomObject,
    determined_psnr,
    displacements,
    look_at,
    object_share,
    realism,
    wasserstein,
)

COLOR = torch.tensor([0.9, -0.5, 0.9])
OTHERS = torch.tensor([[0.9, -0.7, -0.7], [0.9, 0.9, 0.9]])
BACKGROUND = torch.tensor([-0.8, -0.2, 0.1])[None, :, None, None].expand(2, -1, 8, 11)


def test_mixtures_are_taken_apart() -> None:
    random = torch.Generator().manual_seed(0)
    share, other = (0.5 * torch.rand(2, 3, 8, 11, generator=random) for _ in range(2))
    behind = BACKGROUND[:, None]
    own, its = COLOR[:, None, None] - behind, OTHERS[:, None, :, None, None] - behind
    video = behind + share[:, :, None] * own + other[:, :, None] * its
    torch.testing.assert_close(object_share(video, BACKGROUND, COLOR, OTHERS), share, atol=1e-5, rtol=0)
    beyond = behind + 1.5 * own.expand(-1, 3, -1, -1, -1)
    assert object_share(beyond, BACKGROUND, COLOR, OTHERS).unique().tolist() == [1.0]


def square(left: int, share: float = 1.0, side: int = 2, columns: int = 12) -> Tensor:
    """A share map `[H, W]` of a square whose upper left corner is in row 3."""
    picture = torch.zeros(9, columns)
    picture[3 : 3 + side, left : left + side] = share
    return picture


def test_a_square_is_where_it_is_and_as_large_as_it_is() -> None:
    found = look_at(torch.stack([square(2), square(5, 0.5)])[None], area=4)
    assert found.contrast.tolist() == [[1.0, 0.5]] and found.size.tolist() == [[4.0, 4.0]]
    assert found.position.tolist() == [[[3.0, 4.0], [6.0, 4.0]]]


def test_a_smear_is_weaker_and_larger() -> None:
    """The mean of two futures, which do not overlap: half the contrast, and twice the size."""
    smear = (square(2) + square(6)) / 2
    found = look_at(smear[None, None], area=4)
    assert found.contrast.item() == 0.5 and found.size.item() == pytest.approx(8)
    assert found.position[0, 0].tolist() == [5.0, 4.0]


def test_traces_all_over_count_for_nothing() -> None:
    found = look_at((square(5) + 0.08).clamp(0, 1)[None, None], area=4)
    assert found.size.item() == 4 and found.position[0, 0].tolist() == [6.0, 4.0]
    assert look_at(torch.full((1, 1, 9, 12), 0.08), area=4).size.isnan().all()


def test_what_is_hidden_has_no_place() -> None:
    found = look_at(torch.stack([square(2), torch.zeros(9, 12), square(3), square(5)])[None], area=4)
    assert found.contrast[0, 1] == 0 and found.size[0].isnan().tolist() == [False, True, False, False]
    assert displacements(found, 1).tolist() == [2.0] and displacements(found, 2).tolist() == [1.0]


def test_distances_of_sets_of_numbers() -> None:
    ramp = torch.arange(10.0)
    assert wasserstein(ramp, ramp.flip(0)) == 0
    assert wasserstein(ramp, ramp + 3) == pytest.approx(3)
    assert wasserstein(ramp, ramp.repeat(7)) == pytest.approx(0, abs=1e-9)
    assert wasserstein(torch.zeros(4), torch.tensor([0.0, 8])) == pytest.approx(4), "half of it moves by 8"
    assert wasserstein(torch.full((5,), 2.0), torch.tensor([0.0, 4.0])) == pytest.approx(2), "means agree, they do not"
    assert math.isnan(wasserstein(ramp[:0], ramp))


def walk(steps: list[float], contrast: float = 1.0, size: float = 4.0) -> RandomObject:
    """An object that goes to the right."""
    x = torch.tensor([steps], dtype=torch.float32).cumsum(dim=1)
    position = torch.stack([x, torch.zeros_like(x)], dim=-1)
    return RandomObject(torch.full_like(x, contrast), torch.full_like(x, size), position)


def test_realism_by_hand() -> None:
    true = walk([0, 2, 2, 2])
    assert realism(true, true, 1) == {
        "realism_distance": 0,
        **dict.fromkeys(("contrast", "size", "displacement"), 1),
        **dict.fromkeys(("contrast_distance", "size_distance", "displacement_distance"), 0),
    }
    found = realism(walk([0, 1, 1, 1], contrast=0.7, size=6), true, 1)
    assert found["displacement"] == 0.5 and found["displacement_distance"] == pytest.approx(0.5)
    assert found["contrast_distance"] == pytest.approx(0.3) and found["size_distance"] == pytest.approx(0.5)
    assert found["realism_distance"] == pytest.approx((0.5 + 0.3 + 0.5) / 3)
    shifted = realism(walk([5, 1, 3, 2]), true, 1)
    assert shifted["displacement"] == pytest.approx(1) and shifted["displacement_distance"] > 0.3


def test_only_what_is_determined_counts() -> None:
    truth = torch.full((2, 3, 3, 4, 5), 0.5)
    by_chance = torch.zeros(2, 3, 4, 5, dtype=torch.bool)
    by_chance[:, :, 1] = True
    video = truth.clone()
    video[:, :, :, 1] += 0.4
    assert determined_psnr(video, truth, by_chance) == math.inf
    assert determined_psnr(video + 0.01, truth, by_chance) == pytest.approx(40, abs=1e-3)
    assert determined_psnr(video, truth, torch.zeros_like(by_chance)) == pytest.approx(-10 * math.log10(0.16 / 4))

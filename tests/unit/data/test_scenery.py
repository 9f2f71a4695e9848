from __future__ import annotations

from typing import get_args

import pytest
import torch

from lightning_action.data.scenery import SHAPES, Background, Shape, distance_outside, draw_background, paint


@pytest.mark.parametrize(
    ("shape", "beside", "diagonal"),
    [("disc", 3.0, 50**0.5 - 2), ("square", 5 - 1.7, 5 - 1.7), ("diamond", 5 / 2**0.5 - 1.6, 10 / 2**0.5 - 1.6)],
)
def test_distances_outside_by_hand(shape: Shape, beside: float, diagonal: float) -> None:
    """Of points 5 pixels to the left, and 5 pixels up and to the right, from a shape of radius 2."""
    found = distance_outside(shape, torch.tensor([-5.0, 5.0]), torch.tensor([0.0, -5.0]), 2.0)
    torch.testing.assert_close(found, torch.tensor([beside, diagonal]))
    assert distance_outside(shape, torch.zeros(1), torch.zeros(1), 2.0).item() < -1


def test_a_disc_covers_its_pixels_and_half_of_those_on_its_edge() -> None:
    """One in the first frame around the middle of the pixel (row 1, column 3), out of the picture in the second."""
    frames = torch.full((1, 2, 3, 4, 6), -0.5)
    color = torch.tensor([[1.0, 0.0, -1.0]])
    painted = paint(frames, torch.tensor([[[3.5, 1.5], [30.0, 1.5]]]), color, radius=1.0)
    cover = torch.zeros(4, 6)
    cover[1, 3] = 1
    cover[1, 2] = cover[1, 4] = cover[0, 3] = cover[2, 3] = 0.5
    around = 1.5 - 2**0.5
    cover[0, 2] = cover[0, 4] = cover[2, 2] = cover[2, 4] = around
    torch.testing.assert_close(painted[0, 0], -0.5 + cover * (color[0, :, None, None] + 0.5))
    assert torch.equal(painted[0, 1], frames[0, 1]) and torch.equal(frames, torch.full_like(frames, -0.5))


def test_a_shaded_disc_is_half_as_bright_at_its_rim() -> None:
    painted = paint(torch.full((1, 1, 3, 1, 9), -1.0), torch.tensor([[[4.5, 0.5]]]), torch.ones(1, 3), 4.0, shaded=True)
    light = 1 - 0.5 * torch.tensor([16.0, 9, 4, 1, 0, 1, 4, 9, 16]) / 16
    cover = torch.tensor([0.5, 1, 1, 1, 1, 1, 1, 1, 0.5])
    torch.testing.assert_close(painted[0, 0, 0, 0], cover * 2 * light - 1)


@pytest.mark.parametrize("kind", get_args(Background))
def test_backgrounds_are_dark_and_follow_from_the_generator(kind: Background) -> None:
    drawn, again, other, *more = (
        draw_background(kind, 8, 12, torch.Generator().manual_seed(seed)) for seed in (0, *range(40))
    )
    assert drawn.shape == (3, 8, 12) and all(-1 <= each.min() <= each.max() <= 0.2 for each in (drawn, other, *more))
    assert torch.equal(drawn, again) and torch.equal(drawn, other) == (kind == "plain")


def test_gradients_run_straight_from_corner_to_corner() -> None:
    drawn = draw_background("gradient", 3, 5, torch.Generator().manual_seed(2))
    assert drawn.min() > -1 and drawn.max() < 0.2, "no value was cut off"
    torch.testing.assert_close(drawn[:, 1, 2], drawn[:, ::2, ::4].mean(dim=(1, 2)))
    torch.testing.assert_close(drawn[:, 0, 1], drawn[:, 0, 0].lerp(drawn[:, 0, 4], 0.25))


def test_the_names_of_shapes_are_those_that_are_drawn() -> None:
    point = torch.tensor([1.3]), torch.tensor([0.4])
    assert len({distance_outside(shape, *point, 2.0).item() for shape in SHAPES}) == len(SHAPES) == 3

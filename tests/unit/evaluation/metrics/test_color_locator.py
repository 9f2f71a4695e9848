"""Positions of a coloured object: exact on what is drawn, whatever is beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_action.evaluation.metrics.color_locator import ColorLocator

BLUE, SLATE, GREEN = (65, 105, 225), (119, 136, 153), (144, 238, 144)
HEIGHT, WIDTH = 10, 14


def paint(frame: Tensor, color: tuple[int, int, int], rows: slice, columns: slice) -> None:
    frame[:, rows, columns] = torch.tensor(color)[:, None, None] / 127.5 - 1


def scene() -> Tensor:
    """Two videos of three white frames `[2, 3, 3, H, W]` with a blue object, in all but the last frame of the last."""
    video = torch.ones(2, 3, 3, HEIGHT, WIDTH)
    for number, frame in enumerate(video.flatten(0, 1)[:-1]):
        paint(frame, SLATE, slice(6, 9), slice(1, 12))
        paint(frame, GREEN, slice(0, 2), slice(10, 14))
        paint(frame, BLUE, slice(4, 6), slice(number, number + 3))
    return video


def test_it_finds_the_middle_of_the_object_beside_objects_of_other_hues() -> None:
    position, found = ColorLocator(BLUE)(scene())
    assert found.tolist() == [[True, True, True], [True, True, False]]
    expected = [[number + 1.5, 5.0] for number in range(5)]
    torch.testing.assert_close(position.flatten(0, 1)[:-1], torch.tensor(expected))
    assert position[1, 2].tolist() == [WIDTH / 2, HEIGHT / 2]


def test_an_edge_that_covers_a_part_of_a_pixel_counts_as_that_part() -> None:
    video = torch.ones(1, 1, 3, HEIGHT, WIDTH)
    paint(video[0, 0], BLUE, slice(2, 4), slice(3, 6))
    # Three quarters of a pixel further to the right.
    moved = 0.25 * video + 0.75 * video.roll(1, dims=-1)
    position, _ = ColorLocator(BLUE, threshold=0)(moved)
    torch.testing.assert_close(position, torch.tensor([[[5.25, 3.0]]]))


def test_a_pale_object_is_found_while_its_hue_is_above_the_threshold() -> None:
    pale = 1 + 0.5 * (scene() - 1)
    assert ColorLocator(BLUE, threshold=0.3)(pale)[1][0, 0]
    assert not ColorLocator(BLUE, threshold=0.5)(pale)[1][0, 0]


def test_less_than_the_least_area_is_nothing() -> None:
    area = 6 * 0.7
    assert ColorLocator(BLUE, min_area=area - 0.01)(scene())[1][0, 0]
    assert not ColorLocator(BLUE, min_area=area + 0.01)(scene())[1][0, 0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"color": (5, 5, 5)}, "is a grey"),
        ({"color": (5, 6)}, "red, green and blue"),
        ({"color": (5, 6, 256)}, r"color\[2\] must be"),
        ({"color": BLUE, "threshold": 1.0}, "threshold must be"),
        ({"color": BLUE, "min_area": 0}, "min_area must be"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ColorLocator(**arguments)  # type: ignore[arg-type]

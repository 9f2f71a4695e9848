"""Seams between blocks, of videos whose jumps are known."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_action.evaluation.metrics.smoothness import BlockSeams
from tests.support.moving_dot import assert_ranks_are_one, dot_paths, dot_video


def brightening(steps: Tensor) -> Tensor:
    """Videos `[B, T, 3, 4, 5]` whose brightness changes by `steps` `[B, T - 1]`."""
    brightness = torch.cat([torch.zeros(len(steps), 1), steps.cumsum(dim=1)], dim=1)
    return brightness[:, :, None, None, None].expand(-1, -1, 3, 4, 5)


def ratio(steps: Tensor, num_initial_frames: int = 1) -> float:
    metric = BlockSeams(4, num_initial_frames)
    metric.update(brightening(steps))
    result: float = metric.compute()["seam_ratio"]
    return result


def test_even_motion_has_no_seams() -> None:
    assert ratio(torch.full((2, 12), 0.05)) == pytest.approx(1)


@pytest.mark.parametrize("size", [0.0, 0.5, 3.0, -3.0])
def test_blocks_that_jump_or_halt(size: float) -> None:
    steps = torch.full((2, 12), 0.01)
    steps[:, [0, 4, 8]] *= size  # frames 1, 5 and 9 begin blocks
    assert ratio(steps) == pytest.approx(abs(size), rel=1e-4)


def test_jumps_elsewhere_are_no_seams() -> None:
    steps = torch.full((2, 12), 0.01)
    steps[:, [1, 5, 9]] *= 4
    assert ratio(steps) == pytest.approx(0.5, rel=1e-4)


def test_given_frames_do_not_count() -> None:
    steps = torch.full((2, 14), 0.01)
    steps[:, :6] = 0.2
    steps[:, [6, 10]] = 0.02  # frames 7 and 11 begin blocks
    assert ratio(steps, num_initial_frames=7) == pytest.approx(2, rel=1e-4)


def test_a_still_video_has_no_ratio() -> None:
    assert math.isnan(ratio(torch.zeros(2, 12)))


def test_the_ratio_of_true_motion_is_near_one() -> None:
    metric = BlockSeams(4)
    metric.update(dot_video(dot_paths(batch_size=8, num_frames=41)))
    assert metric.compute()["seam_ratio"] == pytest.approx(1, abs=0.1)


def test_ranks() -> None:
    assert_ranks_are_one(partial(BlockSeams, 4), [dot_video(dot_paths(0))], [dot_video(dot_paths(1))])


@pytest.mark.parametrize(("frames", "given"), [(1, 1), (4, 0)])
def test_blocks_without_an_inside_or_a_past_are_refused(frames: int, given: int) -> None:
    with pytest.raises(ValueError, match="blocks of 2 frames or more"):
        BlockSeams(frames, given)

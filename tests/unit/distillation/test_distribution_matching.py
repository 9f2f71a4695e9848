"""The gradient of distribution matching, against numbers by hand and a straightforward reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.distillation.distribution_matching import (
    draw_score_levels,
    matching_gradient,
    matching_loss,
    score_gap,
)

ALL = torch.ones(4, dtype=torch.bool)
GROUPS = [range(0, 1), range(1, 4)]


def tensors(count: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 3, 5, 6, generator=random, dtype=torch.float64) for _ in range(count)]


def test_numbers_by_hand() -> None:
    """One value a frame: the distance to the teacher is 2 in the first group, and (1 + 3 + 2) / 3 in the second."""
    sample, real, fake = (torch.tensor(v).view(1, 4, 1, 1, 1) for v in ([5.0, 1, 4, 2], [3.0, 0, 1, 4], [4.0, 2, 2, 2]))
    gradient = matching_gradient(sample, real, fake, GROUPS, ALL)
    assert gradient.dtype == torch.float64
    assert gradient.flatten().tolist() == [1 / 2, 2 / 2, 1 / 2, -2 / 2]


def test_given_frames_do_not_thin_the_distance_of_their_group() -> None:
    sample, real, fake = tensors(3)
    counts = torch.tensor([True, False, True, True])
    real[:, ~counts] = sample[:, ~counts]
    alone = matching_gradient(sample[:, counts], real[:, counts], fake[:, counts], [range(1), range(1, 3)], ALL[:3])
    torch.testing.assert_close(matching_gradient(sample, real, fake, GROUPS, counts)[:, counts], alone)
    none = matching_gradient(sample, real, fake, GROUPS, ~ALL)
    torch.testing.assert_close(none, fake - real)


def test_each_sample_and_group_is_normalised_on_its_own() -> None:
    sample, real, fake = tensors(3)
    scale = torch.ones(2, 4, 1, 1, 1, dtype=torch.float64)
    scale[1, :1], scale[0, 1:] = 7.0, 0.01
    together = matching_gradient(sample, real, fake, GROUPS, ALL)
    scaled = matching_gradient(real + scale * (sample - real), real, real + scale * (fake - real), GROUPS, ALL)
    torch.testing.assert_close(scaled, together)
    whole = matching_gradient(sample, real, fake, [range(4)], ALL)
    assert (whole - together).abs().max() > 0.01


def test_the_loss_has_the_gradient_where_frames_count() -> None:
    sample, real, fake = tensors(3)
    sample.requires_grad_()
    gradient = matching_gradient(sample, real, fake, GROUPS, ALL)
    counts = torch.tensor([False, True, True, True])
    (found,) = torch.autograd.grad(matching_loss(sample, gradient, counts), sample)
    expected = gradient / gradient[:, counts].numel()
    torch.testing.assert_close(found[:, 1:], expected[:, 1:])
    assert not found[:, 0].any() and expected[:, 1:].abs().max() > 1e-4


def test_a_teacher_with_nothing_to_change_gives_no_infinity() -> None:
    sample, fake = tensors(2)
    assert bool(matching_gradient(sample, sample.clone(), sample.clone(), GROUPS, ALL).eq(0).all())
    assert bool(matching_gradient(sample, sample.clone(), fake, GROUPS, ALL).isfinite().all())


def test_the_gradient_vanishes_where_critic_and_teacher_agree() -> None:
    sample, real = tensors(2)
    assert not matching_gradient(sample, real, real.clone(), GROUPS, ALL).any()
    assert score_gap(real, real.clone(), torch.ones(4, dtype=torch.bool)) == 0
    assert score_gap(real, real + 0.25, torch.tensor([True, False, True, True])) == pytest.approx(0.25)


def test_levels_are_shared_in_a_group_and_leave_both_ends_out() -> None:
    schedule = FlowMatchSchedule(5.0)
    randoms = [torch.Generator().manual_seed(seed) for seed in range(300)]
    levels = draw_score_levels(schedule, GROUPS, randoms)
    assert levels.shape == (300, 4) and torch.equal(levels[:, 1:], levels[:, 1:2].expand(-1, 3))
    assert (levels[:, 0] != levels[:, 1]).float().mean() > 0.9
    low, high = schedule.timesteps[979], schedule.timesteps[20]
    assert low <= levels.min() < low * 1.2 and high * 0.999 < levels.max() <= high
    again = draw_score_levels(schedule, GROUPS, [torch.Generator().manual_seed(seed) for seed in range(300)])
    assert torch.equal(levels, again)

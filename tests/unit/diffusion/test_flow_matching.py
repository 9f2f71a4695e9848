from __future__ import annotations

import pytest
import torch

from lightning_action.diffusion.flow_matching import FlowMatchSchedule, add_noise, clean_from_velocity


@pytest.mark.parametrize("shift", [1.0, 5.0, 8.0])
def test_table(shift: float) -> None:
    schedule = FlowMatchSchedule(shift)
    linear = 1 - torch.arange(1000, dtype=torch.float64) / 1000
    torch.testing.assert_close(schedule.sigmas.double(), shift * linear / (1 + (shift - 1) * linear), atol=1e-7, rtol=0)
    assert schedule.sigmas[0] == 1 and (schedule.sigmas.diff() < 0).all()
    torch.testing.assert_close(schedule.weights.mean(), torch.tensor(1.0))
    assert schedule.weights.min() == 0


def test_known_values() -> None:
    """Published: shift 5 warps 1000, 750, 500, 250 to 1000, 937.5, 833.33, 625; shift 8 to 1000, 960, 888.9, 727.3."""
    steps = [1000, 750, 500, 250]
    five = FlowMatchSchedule(5.0).denoising_timesteps(steps, warp_denoising_step=True)
    assert five == pytest.approx((1000, 937.5, 2500 / 3, 625))
    eight = FlowMatchSchedule(8.0).denoising_timesteps(steps, warp_denoising_step=True)
    assert eight == pytest.approx((1000, 960, 888.8889, 727.2727))
    assert FlowMatchSchedule(5.0).denoising_timesteps([1000, 757, 522], False) == (1000.0, 757.0, 522.0)
    assert FlowMatchSchedule(5.0).euler_sigmas(4) == pytest.approx((1, 0.9375, 5 / 6, 0.625, 0))


@pytest.mark.parametrize("steps", [[], [500, 750], [1000, 0], [1001, 500], [500, 500]])
def test_step_lists_that_do_not_fall_are_refused(steps: list[int]) -> None:
    with pytest.raises(ValueError, match="must fall and lie in"):
        FlowMatchSchedule(5.0).denoising_timesteps(steps, True)


def test_other_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="timestep_shift must be a finite number above 0"):
        FlowMatchSchedule(0.0)
    with pytest.raises(ValueError, match="at least 1"):
        FlowMatchSchedule(5.0).euler_sigmas(0)


def test_nearest_entry() -> None:
    schedule = FlowMatchSchedule(5.0)
    timesteps = torch.cat([schedule.timesteps, 1000 * torch.rand(50), torch.tensor([0.0, 1000.0])]).reshape(4, -1)
    distance = (timesteps[..., None] - schedule.timesteps).abs()
    found = schedule.nearest(timesteps)
    assert torch.equal(distance.gather(-1, found[..., None])[..., 0], distance.min(dim=-1).values)
    assert torch.equal(schedule.sigma_at(schedule.timesteps), schedule.sigmas)
    assert torch.equal(schedule.weights[schedule.nearest(schedule.timesteps)], schedule.weights)


def test_straight_line_and_back() -> None:
    clean, noise = torch.randn(2, 3, 5, 4, 1, dtype=torch.float64), torch.randn(2, 3, 5, 4, 1, dtype=torch.float64)
    sigma = torch.rand(2, 3, dtype=torch.float64)
    noisy = add_noise(clean, noise, sigma)
    torch.testing.assert_close(clean_from_velocity(noisy, noise - clean, sigma), clean)
    assert torch.equal(add_noise(clean, noise, torch.zeros(2, 3)), clean)
    assert torch.equal(add_noise(clean, noise, torch.ones(2, 3)), noise)

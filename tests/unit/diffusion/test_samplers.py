from __future__ import annotations

import torch
from torch import Tensor

from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.samplers import denoised_input, euler, few_step

SHAPE = (2, 3, 4, 1, 5)
SCHEDULE = FlowMatchSchedule(5.0)
TIMESTEPS = (1000.0, 750.0, 250.0)


def noise(step: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def test_both_samplers_reach_the_data_of_a_perfect_model() -> None:
    clean = torch.randn(SHAPE, dtype=torch.float64)

    def velocity(noisy: Tensor, timestep: float) -> Tensor:
        sigma = SCHEDULE.sigma_at(torch.tensor(timestep)).double() if timestep in TIMESTEPS else timestep / 1000
        return (noisy - clean) / sigma

    few = few_step(velocity, noise, TIMESTEPS, SCHEDULE)
    torch.testing.assert_close(few, clean, atol=1e-6, rtol=0)
    torch.testing.assert_close(euler(velocity, noise, SCHEDULE.euler_sigmas(5)), clean, atol=1e-9, rtol=0)


def test_euler_by_hand() -> None:
    seen: list[float] = []

    def velocity(noisy: Tensor, timestep: float) -> Tensor:
        seen.append(timestep)
        return 2 * noisy

    x = noise(0)
    expected = x - 0.25 * 2 * x
    expected = expected - 0.75 * 2 * expected
    torch.testing.assert_close(euler(velocity, noise, (1.0, 0.75, 0.0)), expected)
    assert seen == [1000.0, 750.0]


def test_few_step_noises_again_with_fresh_noise_of_each_step() -> None:
    asked: list[int] = []

    def remembered(step: int) -> Tensor:
        asked.append(step)
        return noise(step)

    inputs: list[Tensor] = []

    def velocity(noisy: Tensor, timestep: float) -> Tensor:
        inputs.append(noisy)
        return torch.zeros_like(noisy)

    few_step(velocity, remembered, TIMESTEPS, SCHEDULE)
    assert asked == [0, 1, 2]
    sigma = SCHEDULE.sigma_at(torch.tensor(750.0)).double()
    torch.testing.assert_close(inputs[1], (1 - sigma) * inputs[0] + sigma * noise(1), atol=1e-7, rtol=0)


def test_known_frames_are_given_clean_at_timestep_zero() -> None:
    noisy, known = noise(0), noise(1)[:, :1]
    latents, timesteps = denoised_input(noisy, 750.0, known)
    assert torch.equal(latents[:, :1], known) and torch.equal(latents[:, 1:], noisy[:, 1:])
    assert timesteps.tolist() == [[0.0, 750.0, 750.0]] * 2
    latents, timesteps = denoised_input(noisy, 750.0, None)
    assert latents is noisy and timesteps.tolist() == [[750.0] * 3] * 2

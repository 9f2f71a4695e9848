"""Settings turn into samplers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.samplers import euler, few_step
from lightning_action.generation.sampling import Sampling

SCHEDULE = FlowMatchSchedule(3.0)


def told_timesteps(sampling: Sampling) -> list[float]:
    """The timesteps that the sampler asks the network at."""
    asked: list[float] = []

    def velocity(noisy: Tensor, timestep: float) -> Tensor:
        asked.append(timestep)
        return torch.zeros_like(noisy)

    sampling.sampler(SCHEDULE)(velocity, lambda step: torch.zeros(2, 3, 4, 5, 6))
    return asked


def test_steps_are_euler_steps() -> None:
    sampler = Sampling(num_inference_steps=4).sampler(SCHEDULE)
    assert isinstance(sampler, partial) and sampler.func is euler
    # 3 s / (1 + 2 s) at s = 1, 3/4, 1/2, 1/4.
    assert told_timesteps(Sampling(num_inference_steps=4)) == pytest.approx([1000, 900, 750, 500])


@pytest.mark.parametrize(("warp", "expected"), [(True, [1000, 900, 500]), (False, [1000, 750, 250])])
def test_a_list_of_timesteps_is_a_few_step_sampler(warp: bool, expected: list[float]) -> None:
    sampling = Sampling(denoising_step_list=[1000, 750, 250], warp_denoising_step=warp)
    sampler = sampling.sampler(SCHEDULE)
    assert isinstance(sampler, partial) and sampler.func is few_step
    assert told_timesteps(sampling) == pytest.approx(expected, abs=1e-3)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="num_inference_steps must be a whole number of at least 1, got 0"):
        Sampling(num_inference_steps=0)
    with pytest.raises(ValueError, match="num_initial_latents must be a whole number of at least 0, got -1"):
        Sampling(num_initial_latents=-1)
    with pytest.raises(ValueError, match="denoising_step_list must fall"):
        Sampling(denoising_step_list=[500, 750])


def test_passes_that_denoise_a_block() -> None:
    assert Sampling(num_inference_steps=7).num_steps == 7
    assert Sampling(num_inference_steps=7, denoising_step_list=[1000, 500, 250]).num_steps == 3

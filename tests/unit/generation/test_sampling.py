"""Settings turn into samplers."""

from __future__ import annotations

from dataclasses import replace
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
    with pytest.raises(ValueError, match="from the lower timestep to the higher one, got 600, 500"):
        Sampling(guidance_interval=(600, 500))
    with pytest.raises(ValueError, match="guidance_interval"):
        Sampling(guidance_interval=(0, 1001))
    with pytest.raises(ValueError, match="denoising_step_list must fall"):
        Sampling(denoising_step_list=[500, 750])


def test_passes_that_denoise_a_block() -> None:
    assert Sampling(num_inference_steps=7).num_steps == 7
    assert Sampling(num_inference_steps=7, denoising_step_list=[1000, 500, 250]).num_steps == 3


def test_passes_of_a_rollout_with_other_steps_for_its_first_block() -> None:
    blocks = [range(0, 1), range(1, 4), range(4, 7), range(7, 10)]
    plain = Sampling(num_inference_steps=4)
    assert (plain.num_passes, plain.count_passes(blocks, 1)) == (5, 1 + 5 + 5 + 4)
    assert [plain.count_passes(blocks, known) for known in (0, 9, 10)] == [19, 3 + 4, 3]
    skipping = Sampling(num_inference_steps=2, context="last_step", first_num_inference_steps=4)
    assert (skipping.num_passes, skipping.count_passes(blocks, 1)) == (2, 1 + 4 + 2 + 2)
    listed = Sampling(denoising_step_list=[1000, 500], first_denoising_step_list=[1000, 750, 250])
    assert listed.count_passes(blocks, 0) == 4 + 3 * 3 - 1


def test_the_first_block_may_have_other_steps() -> None:
    sampling = Sampling(num_inference_steps=1, first_num_inference_steps=3)
    assert sampling.first_sampler(SCHEDULE).keywords["sigmas"] == SCHEDULE.euler_sigmas(3)  # type: ignore[attr-defined]
    assert sampling.sampler(SCHEDULE).keywords["sigmas"] == SCHEDULE.euler_sigmas(1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("sampling", [Sampling(num_inference_steps=3), Sampling(denoising_step_list=[1000, 400])])
def test_the_cache_is_left_at_the_last_pass(sampling: Sampling) -> None:
    blocks = [range(0, 1), range(1, 4), range(4, 7)]
    last = pytest.approx(told_timesteps(sampling)[-1])
    cached = replace(sampling, context="last_step", num_initial_latents=2)
    assert cached.past_timesteps(SCHEDULE, blocks) == [0, 0, *[last] * 5]
    assert replace(cached, context="clean").past_timesteps(SCHEDULE, blocks) == [0] * 7


def test_the_first_block_is_left_at_its_own_last_pass() -> None:
    sampling = Sampling(3, context="last_step", num_initial_latents=0, first_num_inference_steps=4)
    last, first = (pytest.approx(told_timesteps(Sampling(steps))[-1]) for steps in (3, 4))
    blocks = [range(0, 2), range(2, 4), range(4, 6)]
    assert sampling.past_timesteps(SCHEDULE, blocks) == [first, first, *[last] * 4]
    behind_known = replace(sampling, num_initial_latents=3)
    assert behind_known.past_timesteps(SCHEDULE, blocks) == [0, 0, 0, first, last, last]


def test_a_context_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="must be clean or last_step, got 'noisy'"):
        Sampling(context="noisy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="first_num_inference_steps must be"):
        Sampling(first_num_inference_steps=0)
    with pytest.raises(ValueError, match="counts Euler steps"):
        Sampling(denoising_step_list=[1000, 500], first_num_inference_steps=4)
    for steps in ({"num_inference_steps": 1}, {"first_num_inference_steps": 1}, {"denoising_step_list": [1000]}):
        with pytest.raises(ValueError, match="needs two steps or more"):
            Sampling(context="last_step", **steps)  # type: ignore[arg-type]

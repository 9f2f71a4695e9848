"""Settings of how videos are generated, and the sampler that they describe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from lightning_action.diffusion.flow_matching import FlowMatchSchedule, check_denoising_steps
from lightning_action.diffusion.samplers import Sampler, euler, few_step
from lightning_action.ranges import require_numbers


@dataclass(frozen=True)
class Sampling:
    """Settings of how videos are generated.

    Args:
        num_inference_steps: Number of Euler steps from noise to a clean block.
        denoising_step_list: Timesteps of a few-step (distilled) model, falling from 1000, in place of Euler steps; see
            `few_step` for the source.
        warp_denoising_step: Shift the timesteps of `denoising_step_list` by `timestep_shift`.
        action_guidance_scale: Weight w in `v_null + w (v_action - v_null)`, classifier-free guidance by actions (Ho &
            Salimans 2022); 1 is plain conditioning, at the cost of one pass.
        num_initial_latents: Number of latent frames taken from the batch's video; the rest is generated. 0 starts from
            the prompt.
        seed: Random seed of the noise; each frame of each sample has its own stream.
    """

    num_inference_steps: int = 8
    denoising_step_list: list[float] | None = None
    warp_denoising_step: bool = True
    action_guidance_scale: float = 1.0
    num_initial_latents: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        require_numbers({"num_inference_steps": self.num_inference_steps}, 1, whole=True)
        require_numbers({"num_initial_latents": self.num_initial_latents}, 0, whole=True)
        require_numbers({"sampling.seed": self.seed}, 0, 2**63 - 1, whole=True)
        require_numbers({"action_guidance_scale": self.action_guidance_scale})
        if self.denoising_step_list is not None:
            check_denoising_steps(self.denoising_step_list)

    @property
    def num_steps(self) -> int:
        """Number of passes that denoise a block."""
        return self.num_inference_steps if self.denoising_step_list is None else len(self.denoising_step_list)

    def sampler(self, schedule: FlowMatchSchedule) -> Sampler:
        """Build the sampler that these settings describe."""
        if self.denoising_step_list is None:
            return partial(euler, sigmas=schedule.euler_sigmas(self.num_inference_steps))
        timesteps = schedule.denoising_timesteps(self.denoising_step_list, self.warp_denoising_step)
        return partial(few_step, timesteps=timesteps, schedule=schedule)

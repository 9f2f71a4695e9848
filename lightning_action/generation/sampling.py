"""How videos are generated: settings, and the sampler that they describe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from lightning_action.diffusion.flow_matching import FlowMatchSchedule, check_denoising_steps
from lightning_action.diffusion.samplers import Sampler, euler, few_step
from lightning_action.ranges import require_numbers


@dataclass(frozen=True)
class Sampling:
    """How videos are generated.

    Args:
        num_inference_steps: Euler steps from noise to a clean block.
        denoising_step_list: timesteps of a few-step (distilled) model, falling from 1000; replaces Euler.
        warp_denoising_step: shift the numbers of `denoising_step_list` by `timestep_shift`.
        action_guidance_scale: w in `v_null + w (v_action - v_null)`; 1 is plain conditioning, at the cost of one pass.
        num_initial_latents: latent frames taken from the batch's video; the rest is generated. 0 starts from the
            prompt.
        seed: of the noise; each frame of each sample has its own.
        stream_video: in `predict`, hand the video over block by block, so that `PredictionWriter` puts it on disk while
            it is generated and memory does not grow with its length.
    """

    num_inference_steps: int = 8
    denoising_step_list: list[float] | None = None
    warp_denoising_step: bool = True
    action_guidance_scale: float = 1.0
    num_initial_latents: int = 1
    seed: int = 0
    stream_video: bool = False

    def __post_init__(self) -> None:
        require_numbers({"num_inference_steps": self.num_inference_steps}, 1, whole=True)
        require_numbers({"num_initial_latents": self.num_initial_latents}, 0, whole=True)
        require_numbers({"sampling.seed": self.seed}, 0, 2**63 - 1, whole=True)
        require_numbers({"action_guidance_scale": self.action_guidance_scale})
        if self.denoising_step_list is not None:
            check_denoising_steps(self.denoising_step_list)

    @property
    def num_steps(self) -> int:
        """Passes that denoise a block."""
        return self.num_inference_steps if self.denoising_step_list is None else len(self.denoising_step_list)

    def sampler(self, schedule: FlowMatchSchedule) -> Sampler:
        """The sampler these settings describe."""
        if self.denoising_step_list is None:
            return partial(euler, sigmas=schedule.euler_sigmas(self.num_inference_steps))
        timesteps = schedule.denoising_timesteps(self.denoising_step_list, self.warp_denoising_step)
        return partial(few_step, timesteps=timesteps, schedule=schedule)

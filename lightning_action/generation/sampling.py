"""Settings of how videos are generated, and the sampler that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from lightning_action.diffusion.flow_matching import (
    NUM_TRAIN_TIMESTEPS,
    FlowMatchSchedule,
    check_denoising_steps,
)
from lightning_action.diffusion.guidance import Guidance
from lightning_action.diffusion.samplers import Sampler, euler, few_step
from lightning_action.generation.prompt_switches import PromptSwitch, prompts_by_frame
from lightning_action.ranges import require_numbers

BlockContext = Literal["clean", "last_step"]


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
        prompt_guidance_scale: Weight w in `v_negative + w (v_prompt - v_negative)`, the same by prompts; released
            many-step Wan models need about 5, distilled ones 1. See `diffusion.guidance` for both together.
        negative_prompt: Prompt of what to go away from, where there is guidance by prompts.
        guidance_interval: Lowest and highest timestep, in [0, 1000], at which there is guidance.
        num_initial_latents: Number of latent frames taken from the batch's video; the rest is generated. 0 starts from
            the prompt.
        seed: Random seed of the noise; each frame of each sample has its own stream.
        context: View that later blocks have of a generated one: its `clean` keys and values, which cost a pass, or
            those that the `last_step` of denoising has computed from its noisy input. A model follows the latter well
            if it was trained so: `fit` with the same setting trains so, under teacher forcing, with
            `num_initial_latents` clean.
        first_num_inference_steps: Number of Euler steps of the first block that is generated; None takes as many.
        first_denoising_step_list: Timesteps of the first block that is generated; None takes the same.
        relative_positions: Count positions within what a block sees, so that the sink stays where the window begins; a
            video that is longer than the window otherwise leaves it further behind than any in training. Frames are the
            same until some leave the window, and for ever where there is no sink.
        prompt_switches: Prompts that follow on the first one of every video, each from some latent frame on.
    """

    num_inference_steps: int = 8
    denoising_step_list: list[float] | None = None
    warp_denoising_step: bool = True
    action_guidance_scale: float = 1.0
    prompt_guidance_scale: float = 1.0
    negative_prompt: str = ""
    guidance_interval: tuple[float, float] = (0.0, float(NUM_TRAIN_TIMESTEPS))
    num_initial_latents: int = 1
    seed: int = 0
    context: BlockContext = "clean"
    first_num_inference_steps: int | None = None
    first_denoising_step_list: list[float] | None = None
    relative_positions: bool = False
    prompt_switches: tuple[PromptSwitch, ...] = ()

    def __post_init__(self) -> None:
        require_numbers({"num_inference_steps": self.num_inference_steps}, 1, whole=True)
        if self.first_num_inference_steps is not None:
            require_numbers({"first_num_inference_steps": self.first_num_inference_steps}, 1, whole=True)
        require_numbers({"num_initial_latents": self.num_initial_latents}, 0, whole=True)
        require_numbers({"sampling.seed": self.seed}, 0, 2**63 - 1, whole=True)
        require_numbers({"action_guidance_scale": self.action_guidance_scale})
        require_numbers({"prompt_guidance_scale": self.prompt_guidance_scale})
        low, high = self.guidance_interval
        require_numbers({"guidance_interval[0]": low, "guidance_interval[1]": high}, 0, NUM_TRAIN_TIMESTEPS)
        if low > high:
            raise ValueError(f"guidance_interval goes from the lower timestep to the higher one, got {low}, {high}")
        if self.context not in get_args(BlockContext):
            raise ValueError(f"sampling.context must be clean or last_step, got {self.context!r}")
        if self.denoising_step_list is not None and self.first_num_inference_steps is not None:
            raise ValueError("first_num_inference_steps counts Euler steps: give first_denoising_step_list instead")
        if self.context == "last_step" and 1 in (self.num_steps, self._of_first_block().num_steps):
            raise ValueError("sampling.context last_step needs two steps or more: the input of the first is pure noise")
        prompts_by_frame([self.prompt_switches])
        for steps in (self.denoising_step_list, self.first_denoising_step_list):
            if steps is not None:
                check_denoising_steps(steps)

    @property
    def guidance(self) -> Guidance:
        """Guidance by prompts and actions."""
        return Guidance(self.prompt_guidance_scale, self.action_guidance_scale, self.guidance_interval)

    @property
    def takes_negative_prompt(self) -> bool:
        """True if the negative prompt is asked for."""
        return self.guidance.takes_negative_prompt

    @property
    def num_steps(self) -> int:
        """Number of passes that denoise a block."""
        return self.num_inference_steps if self.denoising_step_list is None else len(self.denoising_step_list)

    @property
    def num_passes(self) -> int:
        """Number of passes that a block costs: those that denoise it, and the one that writes it where it is clean."""
        return self.num_steps + (self.context == "clean")

    def count_passes(self, blocks: Sequence[range], num_initial_latents: int) -> int:
        """Count the passes of a rollout: the steps, and one that writes each block that another follows.

        Args:
            blocks: Latent frames of each block.
            num_initial_latents: Number of latent frames that are given.
        """
        known = [block.stop <= num_initial_latents for block in blocks]
        num_written = sum(is_known or self.context == "clean" for is_known in known[:-1])
        if all(known):
            return num_written
        num_later = len(known) - sum(known) - 1
        return num_written + self._of_first_block().num_steps + num_later * self.num_steps

    def sampler(self, schedule: FlowMatchSchedule) -> Sampler:
        """Build the sampler that these settings describe."""
        if self.denoising_step_list is None:
            return partial(euler, sigmas=schedule.euler_sigmas(self.num_inference_steps))
        timesteps = schedule.denoising_timesteps(self.denoising_step_list, self.warp_denoising_step)
        return partial(few_step, timesteps=timesteps, schedule=schedule)

    def first_sampler(self, schedule: FlowMatchSchedule) -> Sampler:
        """Build the sampler of the first block that is generated."""
        return self._of_first_block().sampler(schedule)

    def past_timesteps(self, schedule: FlowMatchSchedule, blocks: Sequence[range]) -> list[float]:
        """Compute the noise level in [0, 1000] at which a rollout leaves each latent frame in its cache.

        Initial latents are 0, generated ones those of the last pass that denoises them where there is no clean pass.

        Args:
            schedule: Noise levels.
            blocks: Latent frames of each block.
        """
        levels: list[float] = []
        settings = self._of_first_block()
        for block in blocks:
            num_known = min(max(self.num_initial_latents - block.start, 0), len(block))
            level = 0.0 if self.context == "clean" else settings._last_timestep(schedule)
            levels += [0.0] * num_known + [level] * (len(block) - num_known)
            if num_known < len(block):
                settings = self
        return levels

    def _last_timestep(self, schedule: FlowMatchSchedule) -> float:
        if self.denoising_step_list is None:
            return float(schedule.euler_sigmas(self.num_inference_steps)[-2]) * NUM_TRAIN_TIMESTEPS
        return schedule.denoising_timesteps(self.denoising_step_list, self.warp_denoising_step)[-1]

    def _of_first_block(self) -> Sampling:
        if self.first_num_inference_steps is None and self.first_denoising_step_list is None:
            return self
        return replace(
            self,
            num_inference_steps=self.first_num_inference_steps or self.num_inference_steps,
            denoising_step_list=self.first_denoising_step_list or self.denoising_step_list,
            first_num_inference_steps=None,
            first_denoising_step_list=None,
        )

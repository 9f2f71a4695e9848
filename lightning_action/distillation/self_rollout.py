"""Rollouts of a student in training: those of generation, and the exit step once more with gradient.

The student makes a clip as it will make videos, block by block under its own cache: the same `CausalRollout`, without
gradient. What a block's loss goes back through is one step alone, the exit step (Self Forcing, Huang et al. 2025,
arXiv:2506.08009): that step is passed once more, from what it was given then, beside the keys and values that the cache
held then. So a clip in training is a clip in generation, to the bit, and neither the cache nor the clean pass is part
of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_action.diffusion.flow_matching import FlowMatchSchedule, clean_from_velocity
from lightning_action.diffusion.noise import NoiseSource
from lightning_action.diffusion.samplers import Noise, Sampler, Velocity, denoised_input, few_step, hold
from lightning_action.generation.rollout import CausalRollout
from lightning_action.generation.video import VideoGenerator
from lightning_action.generator.model import CausalWanModel
from lightning_action.ranges import require_numbers

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ExitPass:
    """Inputs of the exit step of a block.

    Args:
        frames: Latent frames of the block in the video.
        noisy: Block with noise, `[B, block, C, H, W]`.
        timestep: Noise level of each frame, `[B, block]`; 0 for those that are known.
        past: Keys and values of each past frame that the block sees.
        known: Clean latents of the block's first frames, if there are any.
    """

    frames: range
    noisy: Tensor
    timestep: Tensor
    past: tuple[KeysValues, ...]
    known: Tensor | None


@dataclass(frozen=True)
class SelfRollout:
    """A clip that the student made, and what its gradient needs.

    Args:
        clean: Clean latents, the initial ones first, without gradient, `[B, F, C, H, W]`: the video that is generated.
        exited: The same with what the exit step predicted in place of each block's last prediction; equal to `clean`
            but where blocks are denoised further.
        exits: Exit step of each block that was generated, in order.
    """

    clean: Tensor
    exited: Tensor
    exits: tuple[ExitPass, ...]

    def with_gradient(
        self,
        generator: CausalWanModel,
        text: Tensor,
        schedule: FlowMatchSchedule,
        action_modulation: Tensor | None,
    ) -> Tensor:
        """Pass the exit steps once more, with gradient to the generator and to the modulation.

        Args:
            generator: Student that made the clip.
            text: Encoded prompts, `[B, L, text_dim]`.
            schedule: Noise levels.
            action_modulation: Modulation of all frames of the clip, as in `CausalWanModel.forward`.

        Returns:
            The clip, `[B, F, C, H, W]`, equal to `exited` but for rounding.
        """
        prompt = generator.text_cache(text)
        # Number in the video of the clip's first frame.
        first = self.exits[-1].frames.stop - self.clean.shape[1]
        blocks = [self.clean[:, : self.exits[0].frames.start - first]]
        for step in self.exits:
            here = slice(step.frames.start - first, step.frames.stop - first)
            modulation = None if action_modulation is None else action_modulation[:, here]
            velocity = generator.denoise_after(step.past, step.frames, step.noisy, step.timestep, prompt, modulation)
            predicted = clean_from_velocity(step.noisy, velocity, schedule.sigma_at(step.timestep))
            blocks.append(hold(predicted, step.known))
        return torch.cat(blocks, dim=1)


def exit_probabilities(num_steps: int, of_last: float | None = None) -> Tensor:
    """Return the chance of each of a student's steps to be the exit step, `[num_steps]`.

    Args:
        num_steps: Number of steps.
        of_last: Chance of the last one in [0, 1], the others sharing the rest; None makes all alike.
    """
    if of_last is None or num_steps == 1:
        return torch.full((num_steps,), 1 / num_steps)
    require_numbers({"last_exit_probability": of_last}, 0, 1)
    return torch.tensor([(1 - of_last) / (num_steps - 1)] * (num_steps - 1) + [of_last])


class SelfRollouts:
    """Makes clips with a student as it generates them.

    Args:
        videos: Student, and how it generates. Later blocks see of a block, as its `sampling.context` says, its clean
            keys and values, those of the clean latents that the exit step predicts; or, with `last_step`, those of
            the last step's noisy input, for which every block is denoised to the end wherever the gradient goes.
        timesteps: Timesteps of the student's steps, falling from 1000.
    """

    def __init__(self, videos: VideoGenerator, timesteps: Sequence[float]) -> None:
        self.videos = videos
        self.timesteps = tuple(timesteps)

    @torch.no_grad()
    def begin(self, text: Tensor, noise: NoiseSource, shape: tuple[int, int, int, int]) -> CausalRollout:
        """Begin a rollout of the student, whose blocks are denoised to the end; see `VideoGenerator.begin`."""
        return self.videos.begin(text, noise, shape, sampler=self._sampler(len(self.timesteps)))

    @torch.no_grad()
    def make(
        self,
        session: CausalRollout,
        num_frames: int,
        exit_step: int,
        action_modulation: Tensor | None = None,
        initial: Tensor | None = None,
        for_gradient: bool = True,
    ) -> SelfRollout:
        """Generate the next frames of a rollout without gradient, and keep what the exit step of each block was given.

        Args:
            session: Rollout, fresh or standing after an earlier call.
            num_frames: Latent frames of this call, the initial ones included.
            exit_step: Number of the step that gradients go through, from 0 on.
            action_modulation: Modulation of the frames of this call, as in `CausalWanModel.forward`.
            initial: Clean latents that a fresh rollout starts with, `[B, F0, C, H, W]`.
            for_gradient: True if gradients will be asked for. Without, no keys and values are copied, and no exits
                kept.

        Raises:
            ValueError: The exit step is none of the steps, or the frames are not a whole number of blocks with one to
                generate.
        """
        if not 0 <= exit_step < len(self.timesteps):
            raise ValueError(f"the exit step is one of 0 to {len(self.timesteps) - 1}, got {exit_step}")
        start, num_initial_latents = session.block.start, 0 if initial is None else initial.shape[1]
        if num_initial_latents >= num_frames:
            raise ValueError(
                f"of {num_frames} latent frames {num_initial_latents} are given: there is nothing to generate"
            )
        modulation = None if action_modulation is None else action_modulation.detach()
        clean, exited, exits, kept = [], [], [], dict[int, KeysValues]()
        for block in self.videos.causality.split(num_frames, start):
            here = slice(block.start - start, block.stop - start)
            acts = None if modulation is None else modulation[:, here]
            known = None if initial is None or here.start >= num_initial_latents else initial[:, here]
            if known is not None and known.shape[1] == len(block):
                session.append(known, acts)
                clean.append(known)
                exited.append(known)
                continue
            session.write_pending()
            if for_gradient:
                kept = self._past(session, block, kept)
            latents, at_exit, inputs = self._denoise(session, exit_step, acts, known)
            clean.append(latents)
            exited.append(at_exit)
            if for_gradient:
                exits.append(ExitPass(block, *inputs, tuple(kept.values()), known))
        return SelfRollout(torch.cat(clean, dim=1), torch.cat(exited, dim=1), tuple(exits))

    def _denoise(
        self, session: CausalRollout, exit_step: int, modulation: Tensor | None, known: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Return the next block, what the exit step predicted for it, and what that step was given."""
        passes: list[tuple[Tensor, float, Tensor]] = []
        num_steps = exit_step + 1 if self.videos.sampling.context == "clean" else len(self.timesteps)

        def watched(velocity: Velocity, noise: Noise) -> Tensor:
            def remembered(noisy: Tensor, timestep: float) -> Tensor:
                passes.append((noisy, timestep, velocity(noisy, timestep)))
                return passes[-1][-1]

            return self._sampler(num_steps)(remembered, noise)

        clean = session.next_block(modulation, known, watched)
        noisy, timestep, predicted = passes[exit_step]
        given = denoised_input(noisy, timestep, known)
        level = self.videos.schedule.sigma_at(torch.full_like(given[1], timestep))
        return clean, hold(clean_from_velocity(noisy, predicted, level), known), given

    def _past(self, session: CausalRollout, block: range, kept: dict[int, KeysValues]) -> dict[int, KeysValues]:
        """Keys and values of what a block sees, each frame copied once for all blocks of a clip."""
        frames = [frame for seen in self.videos.causality.past(block) for frame in seen]
        return {frame: kept[frame] if frame in kept else session.cache.of_frame(frame) for frame in frames}

    def _sampler(self, num_steps: int) -> Sampler:
        return partial(few_step, timesteps=self.timesteps[:num_steps], schedule=self.videos.schedule)

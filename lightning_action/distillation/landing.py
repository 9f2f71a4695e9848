"""Students that land, from any noise level, where the teacher's path ends: what their distillations share.

It is done block by block under the past, as Causal-rCM (2026, arXiv:2606.25473) and Causal Forcing do before
distribution matching: from real clips, and no path of the teacher is ever stored.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_action.batch import Batch
from lightning_action.diffusion.flow_matching import NUM_TRAIN_TIMESTEPS, FlowMatchSchedule, clean_from_velocity
from lightning_action.diffusion.flow_matching import per_frame as over_latents
from lightning_action.diffusion.noise import own_noise
from lightning_action.diffusion.objectives import draw_for_blocks, teacher_forcing
from lightning_action.distillation.distilled_module import DistilledModule
from lightning_action.distillation.score import LatentClip, Noised, causal, frames_that_count, modulation_of, with_noise
from lightning_action.losses import with_past_noise
from lightning_action.ranges import require_numbers

_LEVELS_STREAM, _NOISE_STREAM, _PAST_STREAM = range(11, 14)


def path_timesteps(
    schedule: FlowMatchSchedule, steps: Sequence[float], warp: bool, num_between: int
) -> tuple[float, ...]:
    """Timesteps that the teacher's path is cut at: the student's own, and equally many between each and the next.

    Args:
        schedule: Noise levels.
        steps: The student's `denoising_step_list`.
        warp: True if these are shifted, `warp_denoising_step`.
        num_between: Number of levels between two steps, and between the last one and 0.

    Returns:
        Falling timesteps, the student's first one first and 0 last.
    """
    ends = [*steps, 0.0]
    unshifted = [
        high + (low - high) * part / (num_between + 1)
        for high, low in zip(ends, ends[1:], strict=False)
        for part in range(num_between + 1)
    ]
    # The table has whole numbers only; below 1 there is the end alone.
    distinct = list(dict.fromkeys(max(1.0, round(step)) if warp else step for step in unshifted))
    return (*schedule.denoising_timesteps(distinct, warp), 0.0)


def euler_step(noised: Noised, velocity: Tensor, to: Tensor) -> Noised:
    """Follow the path of a velocity to other noise levels `to` `[B, F]`, in one straight step.

    Frames at level 0 stay as they are.
    """
    distance = (to - noised.timestep) / NUM_TRAIN_TIMESTEPS
    return Noised(noised.latents + over_latents(distance, velocity) * velocity, to, noised.noise)


def landing(noised: Noised, velocity: Tensor) -> Tensor:
    """Clean latents that a velocity lands at. At level 0 they are the latents themselves, whatever it is.

    So the boundary condition of consistency models holds by itself.
    """
    return clean_from_velocity(noised.latents, velocity, noised.timestep / NUM_TRAIN_TIMESTEPS)


class LandingDistillation(DistilledModule):
    """Learns to land where the teacher's path ends, from real clips with noise, block by block at a level of its own.

    Blocks see the past with noise on it where `past_noise` says so, as the teacher was trained; latents that a student
    is given (`sampling.num_initial_latents`) are no part of the loss. `loss_weighting` weighs validation losses alone.

    Args:
        args: Arguments of `GenerativeModule`.
        num_between: Number of noise levels between two steps of the student, at which the path is cut too. The levels
            had best be those that the teacher is good at: of its own Euler steps.
        kwargs: Arguments of `DistilledModule` by their names.

    Raises:
        ValueError: A setting asks for what this training does not do.
    """

    def __init__(self, *args: Any, num_between: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require_numbers({"num_between": num_between}, 0, whole=True)
        if self.sampling.context != "clean":
            raise ValueError("this distillation shows the clean past: leave sampling.context at clean")
        if self.objective is not teacher_forcing:
            raise ValueError("this distillation is done under the past alone: leave objective at teacher_forcing")
        if self.action_dropout_prob:
            raise ValueError("this distillation always shows the actions: set action_dropout_prob to 0")
        assert self.sampling.denoising_step_list is not None
        self.levels = path_timesteps(
            self.schedule, self.sampling.denoising_step_list, self.sampling.warp_denoising_step, num_between
        )

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Compute the squared distance of student and aim; what is drawn follows from (seed, epoch, batch, sample).

        Returns:
            `loss`; and for callbacks `loss_per_frame` `[B, F]` at the noise levels `timestep` `[B, F]`, of the frames
            that are not given.
        """
        self._require_trainable(batch, "train")
        clip = self._real_clip(batch, batch_idx)
        places = self._draw_places(batch, batch_idx, clip.clean.shape[1])
        noise = own_noise(clip.clean.shape[1:], self._randoms(batch, _NOISE_STREAM, batch_idx), clip.clean)
        noised = with_noise(clip, self._level_at(places, clip), noise)
        with torch.no_grad():
            aim = self._aim(clip, noised, places)
        modulation = modulation_of(self.conditioning, clip)
        landed = landing(noised, causal(self.generator, clip, noised, clip.text, modulation))
        counts = frames_that_count(clip)
        per_frame = (landed.float() - aim.float()).square().mean(dim=(2, 3, 4))[:, counts]
        loss = per_frame.mean()
        self._require_finite_loss(loss)
        self.log("train/loss", loss, prog_bar=True)
        return {"loss": loss, "loss_per_frame": per_frame.detach(), "timestep": noised.timestep[:, counts]}

    @abstractmethod
    def _aim(self, clip: LatentClip, noised: Noised, places: Tensor) -> Tensor:
        """Clean latents that the student should land at, from a clip at the levels `places` `[B, F]`."""

    def _follow_teacher(self, clip: LatentClip, noised: Noised, places: Tensor) -> Noised:
        """Follow the teacher's path to the levels `places` `[B, F]`, in one Euler step."""
        velocity = self.teacher.guided_velocity(clip, noised, self.teacher_guidance)
        return euler_step(noised, velocity, self._level_at(places, clip))

    def _real_clip(self, batch: Batch, batch_idx: int) -> LatentClip:
        encoded = self._encoded(batch)
        length = encoded.latents.shape[1]
        num_initial_latents = min(self.sampling.num_initial_latents, length - 1)
        clip = self._clip(encoded.latents, encoded.text, batch, num_initial_latents)
        if not self.past_noise:
            return clip
        randoms = self._randoms(batch, _PAST_STREAM, batch_idx)
        return clip._replace(past=with_past_noise(clip.clean, self.past_noise, randoms))

    def _level_at(self, places: Tensor, clip: LatentClip) -> Tensor:
        """Noise levels `[B, F]` at places among `levels`; 0 where latents are given."""
        levels = torch.tensor(self.levels)[places]
        levels[:, : clip.num_initial_latents] = 0
        return levels.to(clip.clean.device)

    def _draw_places(self, batch: Batch, batch_idx: int, num_frames: int) -> Tensor:
        """Draw a level but the last for each block of each sample; its place among `levels`, `[B, F]`, on the CPU."""
        randoms = self._randoms(batch, _LEVELS_STREAM, batch_idx)
        return draw_for_blocks(range(len(self.levels) - 1), self.causality.split(num_frames), randoms)

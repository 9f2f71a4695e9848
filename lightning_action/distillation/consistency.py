"""Causal consistency distillation: a student that lands, from any noise level, where the teacher's path ends.

Consistency distillation is by Song et al. (2023, arXiv:2303.01469, algorithm 2), its guided form for latents by Luo et
al. (2023, arXiv:2310.04378). It is done block by block under the clean past, as Causal-rCM (2026, arXiv:2606.25473) and
Causal Forcing do before distribution matching: from real clips, and no path of the teacher is ever stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_action.batch import Batch
from lightning_action.diffusion.flow_matching import NUM_TRAIN_TIMESTEPS, FlowMatchSchedule, clean_from_velocity
from lightning_action.diffusion.flow_matching import per_frame as over_latents
from lightning_action.distillation.distilled_module import DistilledModule
from lightning_action.distillation.score import Clip, Noised, ScoreNetwork, causal, own_noise, with_noise
from lightning_action.distributed.sharding import is_sharded, local_part
from lightning_action.ranges import require_numbers

_LEVELS_STREAM = 11


def consistency_timesteps(
    schedule: FlowMatchSchedule, steps: Sequence[float], warp: bool, num_between: int
) -> tuple[float, ...]:
    """Timesteps that the teacher's path is cut at: the student's own, and equally many between each and the next.

    Args:
        schedule: Noise levels.
        steps: The student's `denoising_step_list`.
        warp: Whether these are shifted, `warp_denoising_step`.
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


class ActionConsistencyDistillation(DistilledModule):
    """Consistency distillation under actions, from the teacher-forced model, as the start of a few-step student.

    A real clip gets noise, block by block at a level of its own. The teacher goes one Euler step down from there, under
    the clean past, the prompt and the actions. Where the student lands from before the step is drawn to where its
    average, the target, lands from behind it.

    Args:
        args: Arguments of `GenerativeModule`.
        num_between: Number of noise levels between two steps of the student, at which its path is followed too.
        target_decay: Share of the target that each step of the student keeps.
        kwargs: Arguments of `DistilledModule` by their names.
    """

    target: ScoreNetwork

    def __init__(self, *args: Any, num_between: int = 15, target_decay: float = 0.95, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require_numbers({"num_between": num_between}, 0, whole=True)
        require_numbers({"target_decay": target_decay}, 0, 1, without_high=True)
        if self.sampling.context != "clean":
            raise ValueError("consistency distillation shows the clean past: leave sampling.context at clean")
        self.target_decay = target_decay
        assert self.sampling.denoising_step_list is not None
        self.levels = consistency_timesteps(
            self.schedule, self.sampling.denoising_step_list, self.sampling.warp_denoising_step, num_between
        )

    def configure_model(self) -> None:
        """Build the networks, with the target, which starts as the student does."""
        if self._built:
            return
        super().configure_model()
        mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
        generator = self._factories.build_generator(mesh, self.sharding, weights_follow=False)
        projection = self._factories.build_action_projection(generator, self.schema.action_dim, mesh, self.sharding)
        self.target = ScoreNetwork(generator, projection, self.schema, "causal", is_sharded(generator))
        self.target.requires_grad_(False).eval()
        self._move_target(keep=0.0)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Compute the squared distance of student and target; noise follows from (seed, epoch, batch, sample) alone.

        Returns:
            `loss`; and for callbacks `loss_per_frame` `[B, F]` at the noise levels `timestep` `[B, F]`.
        """
        self._require_trainable(batch, "train")
        encoded = self._encoded(batch)
        clip = self._clip(encoded.latents, encoded.text, batch)
        above, below = (levels.to(self.device) for levels in self._draw_levels(batch, batch_idx, clip.clean.shape[1]))
        noise = own_noise(clip.clean.shape[1:], self._randoms(batch, _LEVELS_STREAM + 1, batch_idx), clip.clean)
        noised = with_noise(clip, above, noise)
        aim = self._aim(clip, noised, below)
        velocity = causal(self.generator, clip, noised, clip.text, self._modulation(clip))
        per_frame = (landing(noised, velocity).float() - aim.float()).square().mean(dim=(2, 3, 4))
        loss = per_frame.mean()
        self._require_finite_loss(loss)
        self.log("train/loss", loss, prog_bar=True)
        return {"loss": loss, "loss_per_frame": per_frame.detach(), "timestep": above}

    @torch.no_grad()
    def _aim(self, clip: Clip, noised: Noised, below: Tensor) -> Tensor:
        """Where the target lands from one Euler step of the teacher further down."""
        nearer = euler_step(noised, self.teacher.guided_velocity(clip, noised, self.teacher_guidance), below)
        return landing(nearer, self.target.velocity(clip, nearer))

    def _draw_levels(self, batch: Batch, batch_idx: int, num_frames: int) -> tuple[Tensor, Tensor]:
        """Draw a level for each block of each sample, and take the next one below it; `[B, F]` each, on the CPU."""
        sizes = torch.tensor([len(block) for block in self.causality.split(num_frames)])
        randoms = self._randoms(batch, _LEVELS_STREAM, batch_idx)
        places = torch.stack([torch.randint(len(self.levels) - 1, sizes.shape, generator=each) for each in randoms])
        places = places.repeat_interleave(sizes, dim=1)
        levels = torch.tensor(self.levels)
        return levels[places], levels[places + 1]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and let the target follow: here, and not in a hook behind it, so that checkpoints have both."""
        super().optimizer_step(*args, **kwargs)
        self._move_target(self.target_decay)

    @torch.no_grad()
    def _move_target(self, keep: float) -> None:
        student = nn.ModuleList(part for part in (self.generator, self.action_projection) if part is not None)
        pairs = zip(self.target.parameters(), student.parameters(), strict=True)
        for mine, its in pairs:
            local_part(mine).lerp_(local_part(its), 1 - keep)

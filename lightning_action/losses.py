"""Losses of a batch: of a training step, matched under several actions, and at one noise level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_action.action.conditioning import ActionConditioning, draw_dropped
from lightning_action.batch import (
    Batch,
    has_actions,
    infers_actions,
    other_actions,
    samples_without_action,
    shuffled_actions,
    without_actions,
)
from lightning_action.diffusion.flow_matching import NUM_TRAIN_TIMESTEPS, FlowMatchSchedule, add_noise
from lightning_action.diffusion.noise import own_noise
from lightning_action.diffusion.objectives import (
    Objective,
    Velocities,
    draw_block_levels,
    per_frame_error,
    per_position_error,
)
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.model import CausalWanModel
from lightning_action.generator.prompt import join
from lightning_action.seeding import generator_for

_TRAINING_STREAM, _VALIDATION_STREAM, _PROBE_STREAM, _SHUFFLE_STREAM = range(4)
_NUM_DRAWS = 4


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, and where it comes from.

    Args:
        per_sample: Weighted loss, `[B]`.
        per_frame: Squared error of the velocity, not weighted and without gradient, `[B, F]`.
        timestep: Noise level that it was measured at, `[B, F]` in [0, 1000].
        per_frame_moving: Squared error where something moves, `[B, F]`, NaN in frames in which nothing does; None where
            nobody said what moves.
    """

    per_sample: Tensor
    per_frame: Tensor
    timestep: Tensor
    per_frame_moving: Tensor | None = None


@dataclass(frozen=True)
class Encoded:
    """A batch as the frozen parts see it.

    Args:
        batch: The batch itself, for its actions and `sample_id`.
        latents: Encoded video, `[B, F, C, h, w]`.
        text: Encoded prompts, `[B, L, text_dim]`.
    """

    batch: Batch
    latents: Tensor
    text: Tensor


@dataclass(frozen=True)
class FlowMatchingLosses:
    """Flow-matching losses of a model under actions.

    A sample's noise follows from the seed, its `sample_id` and the place of the batch alone, whatever batch it sits in
    and whatever rank it runs on.

    Args:
        generator: Network that predicts the velocity.
        conditioning: Way from actions to modulation.
        causality: Block size, window and sink.
        schedule: Noise levels and their weights.
        objective: Rule of what is noised, and what is seen.
        weighting: `bell` weighs noise levels as this family does, `uniform` all alike.
        past_noise: Largest deviation of the noise on the past that blocks see in training.
        seed: Random seed of noise and noise levels.
        past_timesteps: Function from blocks to the noise level of each frame that later blocks see, under teacher
            forcing; None shows the past clean.
    """

    generator: CausalWanModel
    conditioning: ActionConditioning
    causality: BlockCausality
    schedule: FlowMatchSchedule
    objective: Objective
    weighting: Literal["bell", "uniform"]
    seed: int
    past_noise: float = 0.0
    past_timesteps: Callable[[Sequence[range]], Sequence[float]] | None = None

    def of_training(
        self,
        encoded: Encoded,
        epoch: int,
        batch_idx: int,
        action_dropout_prob: float,
        prompt_dropout_prob: float = 0.0,
        no_prompt: Tensor | None = None,
    ) -> Loss:
        """Return the loss of a training step, in which samples lose their actions, or their prompts, by chance.

        Args:
            encoded: Batch as the frozen parts see it.
            epoch: Number of the epoch.
            batch_idx: Number of the batch in it.
            action_dropout_prob: Chance of each sample to lose its actions.
            prompt_dropout_prob: Chance of each sample to lose its prompt, whatever becomes of its actions.
            no_prompt: Encoded prompts `[1 or B, L, text_dim]` that stand in place of lost ones; None keeps all.
        """
        randoms = self._randoms(encoded, _TRAINING_STREAM, epoch, batch_idx)
        draw = self._draw(encoded.latents, randoms)
        dropped = draw_dropped(action_dropout_prob, randoms)
        if self.past_noise:
            draw = replace(draw, past=with_past_noise(encoded.latents, self.past_noise, randoms))
        if no_prompt is not None:
            lost = draw_dropped(prompt_dropout_prob, randoms).to(no_prompt.device)
            own, empty = join([encoded.text, no_prompt.expand(len(lost), -1, -1)]).chunk(2)
            encoded = replace(encoded, text=torch.where(lost[:, None, None], empty, own))
        return self._loss(encoded, draw, self._modulation(encoded, dropped))

    @torch.no_grad()
    def matched(
        self,
        encoded: Encoded,
        names: Sequence[str] = ("true", "swapped", "shuffled", "null"),
        moving: Tensor | None = None,
    ) -> dict[str, Loss]:
        """Return losses at the same noise and timesteps, each the mean of several draws.

        Args:
            encoded: Batch as the frozen parts see it.
            names: Actions to measure under: `true`; `swapped`, those of another sample; `shuffled`, their own rows in
                another order; and `null`. Where none act, there is `true` alone.
            moving: Positions of the latents where something moves, `[B, F, h, w]` bool, for `per_frame_moving`.

        Returns:
            Losses by these names; each has as many frames as the video has in all draws.
        """
        batch = encoded.batch
        variants = {"true": batch}
        if has_actions(batch) and self.conditioning.projection is not None:
            others: dict[str, Callable[[], Batch]] = {
                "swapped": lambda: other_actions(batch),
                "shuffled": lambda: shuffled_actions(batch, self._randoms(encoded, _SHUFFLE_STREAM)),
                "null": lambda: without_actions(batch),
            }
            variants |= {name: others[name]() for name in others if name in names}
        randoms = (self._randoms(encoded, _VALIDATION_STREAM, number) for number in range(_NUM_DRAWS))
        draws = [self._draw(encoded.latents, each) for each in randoms]
        losses = {}
        for name, variant in variants.items():
            seen = replace(encoded, batch=variant)
            modulation = self._modulation(seen)
            losses[name] = _mean([self._loss(seen, draw, modulation, moving) for draw in draws])
        return losses

    @torch.no_grad()
    def velocities_at(self, encoded: Encoded, timestep: float, seed: int) -> Velocities:
        """Return what the model predicts with all frames at one noise level in [0, 1000], beside what is true."""
        latents = encoded.latents
        timesteps = torch.full(latents.shape[:2], timestep, device=latents.device)
        randoms = self._randoms(encoded, _PROBE_STREAM, seed)
        noise = own_noise(latents.shape[1:], randoms, latents)
        return self._velocities(encoded, noise, timesteps, self._modulation(encoded), self._past(latents, randoms))

    def _loss(self, encoded: Encoded, draw: _Draw, modulation: Tensor | None, moving: Tensor | None = None) -> Loss:
        velocities = self._velocities(encoded, draw.noise, draw.timestep, modulation, draw.past)
        error = per_frame_error(velocities)
        in_motion = None
        if moving is not None:
            in_motion = torch.where(moving, per_position_error(velocities), torch.nan).nanmean(dim=(2, 3))
        return Loss((draw.weight * error).mean(dim=1), error.detach(), draw.timestep, in_motion)

    def _velocities(
        self,
        encoded: Encoded,
        noise: Tensor,
        timestep: Tensor,
        modulation: Tensor | None,
        past: Tensor | None,
    ) -> Velocities:
        latents, text = encoded.latents, encoded.text
        seen: dict[str, Any] = {} if past is None else {"past": past, "past_timestep": self._past_timestep(latents)}
        return self.objective(self.generator, latents, noise, timestep, text, self.causality, modulation, **seen)

    def _modulation(self, encoded: Encoded, dropped: Tensor | None = None) -> Tensor | None:
        batch = encoded.batch
        absent = samples_without_action(batch)
        if absent is not None:
            dropped = absent if dropped is None else absent | dropped.to(absent.device)
        return self.conditioning.of_known_video(
            batch.get("action"), infers_actions(batch), encoded.latents, encoded.text, self.causality, dropped
        )

    def _draw(self, latents: Tensor, randoms: Sequence[torch.Generator]) -> _Draw:
        timestep, weight = draw_block_levels(self.schedule, latents.shape[1], self.causality, randoms)
        weight = weight if self.weighting == "bell" else torch.ones_like(weight)
        noise = own_noise(latents.shape[1:], randoms, latents)
        return _Draw(noise, timestep.to(latents.device), weight.to(latents.device), self._past(latents, randoms))

    def _past(self, latents: Tensor, randoms: Sequence[torch.Generator]) -> Tensor | None:
        if self.past_timesteps is None:
            return None
        level = self._past_timestep(latents) / NUM_TRAIN_TIMESTEPS
        return add_noise(latents, own_noise(latents.shape[1:], randoms, latents), level)

    def _past_timestep(self, latents: Tensor) -> Tensor:
        if self.past_timesteps is None:
            return torch.zeros(latents.shape[:2], device=latents.device)
        levels = self.past_timesteps(self.causality.split(latents.shape[1]))
        return torch.tensor(levels, device=latents.device).expand(latents.shape[:2])

    def _randoms(self, encoded: Encoded, *numbers: int) -> list[torch.Generator]:
        return [generator_for(self.seed, *numbers, sample) for sample in encoded.batch["sample_id"].tolist()]


@dataclass(frozen=True)
class _Draw:
    noise: Tensor
    timestep: Tensor
    weight: Tensor
    past: Tensor | None


def with_past_noise(latents: Tensor, largest: float, randoms: Sequence[torch.Generator]) -> Tensor:
    """Add noise whose deviation is drawn for each latent frame, from 0 to `largest`.

    It is the noise augmentation of GameNGen (Valevski et al. 2024, arXiv:2408.14837), whose level the model is not told
    here.
    """
    deviation = torch.stack([largest * torch.rand(latents.shape[1], generator=random) for random in randoms])
    return latents + deviation.to(latents)[:, :, None, None, None] * own_noise(latents.shape[1:], randoms, latents)


def _mean(losses: list[Loss]) -> Loss:
    moving = [loss.per_frame_moving for loss in losses if loss.per_frame_moving is not None]
    return Loss(
        torch.stack([loss.per_sample for loss in losses]).mean(dim=0),
        torch.cat([loss.per_frame for loss in losses], dim=1),
        torch.cat([loss.timestep for loss in losses], dim=1),
        torch.cat(moving, dim=1) if moving else None,
    )

"""A batch in, velocities or a video out: the networks, and what tells them what a batch means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_action.action.inferred import for_prompts, inferred_vectors
from lightning_action.action.projection import ActionModulationProjection, drop_actions
from lightning_action.action.schema import ActionSchema
from lightning_action.batch import (
    Batch,
    check_batch,
    first_frames,
    frame_size,
    has_actions,
    num_latents,
    other_actions,
    without_actions,
)
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import frame_noise
from lightning_action.diffusion.objectives import Objective, draw_block_timesteps, per_frame_error, training_visibility
from lightning_action.distributed.sharding import is_sharded
from lightning_action.frozen.holder import FrozenParts, to_unit_range
from lightning_action.generation.clock import BlockClock
from lightning_action.generation.overlap import decode_behind
from lightning_action.generation.rollout import BlockModulation, CausalRollout, rollout
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.cost import training_flops
from lightning_action.generator.model import CausalWanModel
from lightning_action.seeding import generator_for

_TRAINING_STREAM, _VALIDATION_STREAM, _PROBE_STREAM = range(3)
_NUM_LOSS_DRAWS = 4
_NOT_FINITE = "generated latents hold NaN or infinity: check the checkpoint, or generate in float32"


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, and where it comes from.

    Args:
        per_sample: weighted, `[B]`.
        per_frame: squared error of the velocity, not weighted and without gradient, `[B, F]`.
        timestep: that it was measured at, `[B, F]`.
    """

    per_sample: Tensor
    per_frame: Tensor
    timestep: Tensor


@dataclass(frozen=True)
class Generated:
    """What was generated from a batch.

    Args:
        latents: `[B, F, C, h, w]`.
        video: `[B, T, 3, H, W]` in [0, 1], on the CPU.
        seconds: of the blocks, as `BlockClock.seconds` gives them.
    """

    latents: Tensor
    video: Tensor
    seconds: dict[str, Any]


@dataclass(frozen=True)
class WorldModel:
    """Networks, frozen parts and conventions of one model.

    Args:
        generator: the network.
        action_projection: actions to modulation; None for a backbone without actions.
        action_module: infers actions where a batch has none; None for none.
        frozen: text encoder and VAE.
        schema: what an action is.
        causality: block size, window and sink.
        schedule: noise levels.
        objective: what is noised and what is seen in training.
        loss_weighting: `bell` or `uniform`, see `ActionVideoModule`.
        seed: of training noise, validation noise and probes.
        device: where it runs.
        dtype: in which it computes.
    """

    generator: CausalWanModel
    action_projection: ActionModulationProjection | None
    action_module: nn.Module | None
    frozen: FrozenParts
    schema: ActionSchema
    causality: BlockCausality
    schedule: FlowMatchSchedule
    objective: Objective
    loss_weighting: str
    seed: int
    device: torch.device
    dtype: torch.dtype

    def encode_video(self, video: Tensor) -> Tensor:
        """Pixels `[B, T, 3, H, W]` in [-1, 1] to latents `[B, F, C, h, w]`."""
        self.frozen.to(self.device)
        video = video.float() if video.dtype == torch.float64 else video  # as numpy makes it; frozen parts are float32
        return self.frozen.encode_video(video).to(self.dtype)

    def encode_text(self, batch: Batch) -> Tensor:
        """The prompts of a batch, `[B, L, text_dim]`."""
        self.frozen.to(self.device)
        return self.frozen.encode_text(batch["prompt"]).to(self.dtype)

    def training_loss(self, batch: Batch, epoch: int, batch_idx: int, action_dropout_prob: float) -> Loss:
        """The loss of a training step; a sample's noise follows from (seed, epoch, batch_idx, sample_id) alone."""
        randoms = self._randoms(batch, _TRAINING_STREAM, epoch, batch_idx)
        return self._loss(batch, self.encode_video(batch["video"]), randoms, action_dropout_prob)

    def training_flops(self, video: torch.Size) -> float:
        """Floating-point operations of a training step on videos `[B, T, 3, H, W]`, if all weights train."""
        batch_size, num_frames, _, height, width = video
        tokens = self.generator.tokens_per_frame(*self.frozen.vae.latent_shape(height, width)[1:])
        num_latents = 1 + (num_frames - 1) // self.schema.temporal_compression_ratio
        visibility = training_visibility(self.objective, num_latents, self.causality)
        return batch_size * training_flops(self.generator, visibility, tokens).total

    @torch.no_grad()
    def matched_losses(self, batch: Batch) -> dict[str, Loss]:
        """Losses at the same noise and timesteps: `true` actions, those of the `other` sample, and `null`.

        Each is the mean of several draws; of its frames there are as many as of the video in each draw.
        """
        latents = self.encode_video(batch["video"])
        variants = {"true": batch}
        if has_actions(batch) and self.action_projection is not None:
            variants |= {"other": other_actions(batch), "null": without_actions(batch)}

        def average(variant: Batch) -> Loss:
            draws = [self._randoms(batch, _VALIDATION_STREAM, draw) for draw in range(_NUM_LOSS_DRAWS)]
            losses = [self._loss(variant, latents, draw) for draw in draws]
            return Loss(
                torch.stack([loss.per_sample for loss in losses]).mean(dim=0),
                torch.cat([loss.per_frame for loss in losses], dim=1),
                torch.cat([loss.timestep for loss in losses], dim=1),
            )

        return {name: average(variant) for name, variant in variants.items()}

    @torch.no_grad()
    def predict_velocity(self, batch: Batch, timestep: float, seed: int) -> tuple[Tensor, Tensor]:
        """What the model predicts for a batch at one noise level, beside what is true.

        Args:
            batch: `video`, `prompt` and `action`, which may be anything of its shape, or None for the null action.
            timestep: noise level of all frames, in [0, 1000].
            seed: of the noise; each sample has its own.

        Returns:
            Predicted and true velocity, `[B, F, C, h, w]`.
        """
        latents = self.encode_video(batch["video"])
        timesteps = torch.full(latents.shape[:2], timestep, device=latents.device)
        return self._velocities(batch, latents, timesteps, self._randoms(batch, _PROBE_STREAM, seed))

    def _loss(
        self,
        batch: Batch,
        latents: Tensor,
        randoms: Sequence[torch.Generator],
        action_dropout_prob: float = 0.0,
    ) -> Loss:
        timestep = draw_block_timesteps(self.schedule, latents.shape[1], self.causality, randoms).to(latents.device)
        error = per_frame_error(*self._velocities(batch, latents, timestep, randoms, action_dropout_prob))
        weight = self.schedule.weight_at(timestep) if self.loss_weighting == "bell" else torch.ones_like(timestep)
        return Loss((weight * error).mean(dim=1), error.detach(), timestep)

    def _velocities(
        self,
        batch: Batch,
        latents: Tensor,
        timestep: Tensor,
        randoms: Sequence[torch.Generator],
        action_dropout_prob: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        # Drawn on the CPU, so that it is the same on every device.
        noise = torch.stack([torch.randn(latents.shape[1:], generator=random) for random in randoms]).to(latents)
        text = self.encode_text(batch)
        modulation = self._training_modulation(batch, latents, text, randoms, action_dropout_prob)
        return self.objective(self.generator, latents, noise, timestep, text, self.causality, modulation)

    def _randoms(self, batch: Batch, *numbers: int) -> list[torch.Generator]:
        """A generator for each sample, whatever the batch it sits in and the rank it runs on."""
        return [generator_for(self.seed, *numbers, sample) for sample in batch["sample_id"].tolist()]

    def generate(self, batch: Batch, sampling: Sampling, overlap_decoding: bool = False) -> Generated:
        """Generate the videos of a batch; each block is decoded as soon as it exists.

        Args:
            batch: `prompt` (list of B strings), `sample_id` `[B]` (noise belongs to the sample), `action` (None is the
                null action; where the key is missing the action module infers it, if there is one), and `video`
                `[B, T, 3, H, W]` in [-1, 1], of which the first `sampling.num_initial_latents` latent frames are kept.
                Without `video`: `frame_size` `[B, 2]` (H, W). The length follows from the action rows, else from
                `video`, else from `num_latents`.
            sampling: how.
            overlap_decoding: on CUDA, decode a block while the next one is denoised.

        Raises:
            RuntimeError: the model gave values that are not finite.
        """
        clock, blocks = BlockClock(self.device), []
        decode = self.frozen.vae.streaming_decoder()

        def generated() -> Iterator[Tensor]:
            for latents in clock.blocks(self.stream_latents(batch, sampling)):
                blocks.append(latents)
                yield latents

        decoded = (
            decode_behind(generated(), decode)
            if overlap_decoding
            else (clock.decoding(decode, latents) for latents in generated())
        )
        video = torch.cat([to_unit_range(pixels).cpu() for pixels in decoded], dim=1)
        latents = torch.cat(blocks, dim=1)
        if not bool(torch.isfinite(latents).all()):
            raise RuntimeError(_NOT_FINITE)
        return Generated(latents, video, clock.seconds())

    def stream_video(self, batch: Batch, sampling: Sampling, overlap_decoding: bool = False) -> Iterator[Tensor]:
        """As `generate`, but yields each block's pixels, `[B, t, 3, H, W]` in [0, 1] on the CPU, and keeps none."""
        decode = self.frozen.vae.streaming_decoder()
        blocks = self.stream_latents(batch, sampling)
        for pixels in decode_behind(blocks, decode) if overlap_decoding else map(decode, blocks):
            if not bool(torch.isfinite(pixels).all()):
                raise RuntimeError(_NOT_FINITE)
            yield to_unit_range(pixels).cpu()

    def stream_latents(self, batch: Batch, sampling: Sampling) -> Iterator[Tensor]:
        """Generate the clean latents of each block, `[B, block, C, h, w]`, and yield them as soon as they exist."""
        check_batch(batch)
        length = num_latents(batch, self.schema)
        start = first_frames(batch, sampling.num_initial_latents, length, self.schema.temporal_compression_ratio)
        initial = None if start is None else self.encode_video(start)
        text = self.encode_text(batch)
        shape = self.frozen.vae.latent_shape(*frame_size(batch))
        session = CausalRollout(
            self.generator,
            text,
            self.causality,
            sampling.sampler(self.schedule),
            frame_noise(sampling.seed, batch["sample_id"].tolist(), shape, self.device, text.dtype),
            shape,
            length,
            sampling.action_guidance_scale,
        )
        yield from rollout(session, length, self._rollout_modulation(batch, length, text), initial)

    def _training_modulation(
        self,
        batch: Batch,
        latents: Tensor,
        text: Tensor,
        randoms: Sequence[torch.Generator],
        action_dropout_prob: float,
    ) -> Tensor | None:
        if self.action_projection is None:
            return None
        if has_actions(batch):
            vectors, present = self.schema.encode(batch["action"], latents.shape[1])
        elif "action" not in batch and self.action_module is not None:
            vectors, present = inferred_vectors(for_prompts(self.action_module, text), latents, self.causality)
        elif is_sharded(self.generator):
            # Another rank may have actions, and then all have to go through the projection.
            vectors = latents.new_zeros(*latents.shape[:2], self.schema.action_dim)
            present = torch.zeros(latents.shape[:2], dtype=torch.bool, device=latents.device)
        else:
            return None
        return self.action_projection(vectors.to(self.dtype), drop_actions(present, action_dropout_prob, randoms))

    def _rollout_modulation(self, batch: Batch, length: int, text: Tensor) -> Tensor | BlockModulation | None:
        projection = self.action_projection
        if projection is None:
            return None
        if has_actions(batch):
            vectors, present = self.schema.encode(batch["action"].to(self.device), length)
            return projection(vectors.to(self.dtype), present)
        if "action" in batch or self.action_module is None:
            return None
        infer = for_prompts(self.action_module, text)

        def infer_block(block: range, history: list[Tensor]) -> Tensor | None:
            if not history:
                return None
            return projection(infer(torch.cat(history, dim=1))[:, None].expand(-1, len(block), -1))

        return infer_block

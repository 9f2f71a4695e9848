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
from lightning_action.batch import Batch, check_batch, first_frames, frame_size, has_actions, num_latents
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import frame_noise
from lightning_action.diffusion.objectives import Objective, draw_block_timesteps, per_frame_error
from lightning_action.frozen.holder import FrozenParts, to_unit_range
from lightning_action.generator.blocks import BlockCausality
from lightning_action.generator.model import CausalWanModel
from lightning_action.overlap import decode_behind
from lightning_action.rollout import BlockModulation, CausalRollout, rollout
from lightning_action.settings import Sampling
from lightning_action.timing import BlockClock

_NOT_FINITE = "generated latents hold NaN or infinity: check the checkpoint, or generate in float32"


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
    device: torch.device
    dtype: torch.dtype

    def encode_video(self, video: Tensor) -> Tensor:
        """Pixels `[B, T, 3, H, W]` in [-1, 1] to latents `[B, F, C, h, w]`."""
        self.frozen.to(self.device)
        return self.frozen.encode_video(video).to(self.dtype)

    def encode_text(self, batch: Batch) -> Tensor:
        """The prompts of a batch, `[B, L, text_dim]`."""
        self.frozen.to(self.device)
        return self.frozen.encode_text(batch["prompt"]).to(self.dtype)

    def error(
        self, batch: Batch, latents: Tensor, randoms: Sequence[torch.Generator], action_dropout_prob: float
    ) -> tuple[Tensor, Tensor]:
        """Squared error of the velocity at random noise levels.

        Args:
            batch: `prompt` and `action`.
            latents: of its videos, `[B, F, C, h, w]`.
            randoms: a generator for each sample.
            action_dropout_prob: chance that a sample is shown without its actions.

        Returns:
            The error of each frame, and the timesteps it was measured at, `[B, F]` both.
        """
        timestep = draw_block_timesteps(self.schedule, latents.shape[1], self.causality, randoms).to(latents.device)
        return per_frame_error(*self.velocities(batch, latents, timestep, randoms, action_dropout_prob)), timestep

    def velocities(
        self,
        batch: Batch,
        latents: Tensor,
        timestep: Tensor,
        randoms: Sequence[torch.Generator],
        action_dropout_prob: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Predicted and true velocity at given noise levels `[B, F]`; other arguments as in `error`."""
        # Drawn on the CPU, so that it is the same on every device.
        noise = torch.stack([torch.randn(latents.shape[1:], generator=random) for random in randoms]).to(latents)
        text = self.encode_text(batch)
        modulation = self._training_modulation(batch, latents, text, randoms, action_dropout_prob)
        return self.objective(self.generator, latents, noise, timestep, text, self.causality, modulation)

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
        start = first_frames(batch, sampling.num_initial_latents, self.schema.temporal_compression_ratio)
        initial = None if start is None else self.encode_video(start)
        length = num_latents(batch, self.schema)
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

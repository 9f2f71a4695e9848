"""Generation from batches: what a batch says is encoded, cut into blocks, and handed to a `VideoGenerator`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_action.action.conditioning import ActionConditioning
from lightning_action.action.schema import ActionSchema
from lightning_action.batch import (
    Batch,
    first_frames,
    frame_size,
    has_video,
    infers_actions,
    num_latents,
    samples_without_action,
)
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.frozen.holder import FrozenParts
from lightning_action.generation.prompt_switches import require_switchable, switched_prompts
from lightning_action.generation.sampling import Sampling
from lightning_action.generation.video import VideoGenerator
from lightning_action.generator.acceleration import Acceleration
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.model import CausalWanModel


class RolloutStart(NamedTuple):
    """Start of a rollout.

    Args:
        text: Encoded prompts, `[B, L, text_dim]`.
        initial: Latents that are given, `[B, F0, C, h, w]`; None for none.
        shape: Shape of the clip's latents, (F, C, h, w).
    """

    text: Tensor
    initial: Tensor | None
    shape: tuple[int, int, int, int]

    @property
    def num_initial_latents(self) -> int:
        """Number of latents that are given."""
        return 0 if self.initial is None else self.initial.shape[1]


@dataclass(frozen=True)
class BatchGenerator:
    """Frozen parts and settings by which networks generate the videos of batches.

    Args:
        frozen: Text encoder and VAE.
        schema: Meaning of the actions of a batch.
        causality: Block size, window and sink.
        schedule: Noise levels.
        acceleration: Capture of the pass, and kernel of self-attention.
        device: Device that the networks are on.
        dtype: Dtype that they compute in.
    """

    frozen: FrozenParts
    schema: ActionSchema
    causality: BlockCausality
    schedule: FlowMatchSchedule
    acceleration: Acceleration
    device: torch.device
    dtype: torch.dtype

    def latents(
        self, batch: Batch, sampling: Sampling, generator: CausalWanModel, conditioning: ActionConditioning
    ) -> Iterator[Tensor]:
        """Generate the videos of a batch; yields the clean latents of each block, `[B, block, C, h, w]`.

        Args:
            batch: Batch to generate from, see `GenerativeModule.generate`.
            sampling: Settings of how.
            generator: Network that predicts velocities.
            conditioning: Way from actions to its modulation.

        Raises:
            ValueError: The batch does not say what to generate.
        """
        switched = self.switched_prompts(batch, sampling)
        start = self.start_of(batch, sampling)
        switches = {frame: self._encoded(prompts) for frame, prompts in switched.items()}
        modulation = conditioning.of_rollout(
            batch.get("action"),
            infers_actions(batch),
            start.shape[0],
            start.text,
            self.causality,
            samples_without_action(batch),
        )
        negative = self.negative_text(batch, sampling) if sampling.takes_negative_prompt else None
        yield from self.videos(generator, sampling).stream_latents(
            start.text,
            batch["sample_id"].tolist(),
            start.shape,
            modulation,
            start.initial,
            negative_text=negative,
            switches=switches,
        )

    def start_of(self, batch: Batch, sampling: Sampling) -> RolloutStart:
        """Take what the video of a batch is generated from: prompts, and the latents that are given."""
        length = num_latents(batch, self.schema)
        given = first_frames(batch, sampling.num_initial_latents, length, self.schema.temporal_compression_ratio)
        initial = None if given is None else self.frozen.latents_of(given, self.device, self.dtype)
        shape = (length, *self.frozen.vae.latent_shape(*frame_size(batch)))
        return RolloutStart(self.frozen.text_of(batch, self.device, self.dtype), initial, shape)

    def negative_text(self, batch: Batch, sampling: Sampling) -> Tensor:
        """Encode the negative prompt for each sample of a batch, `[B, L, text_dim]`."""
        prompts = [sampling.negative_prompt] * len(batch["sample_id"])
        return self._encoded(prompts) if any(prompts) else self.frozen.empty_text_of(batch, self.device, self.dtype)

    def blocks_and_initial(self, batch: Batch, sampling: Sampling) -> tuple[list[range], int]:
        """Cut the video that is generated from a batch into blocks, and count its initial latents."""
        num_initial_latents = sampling.num_initial_latents if has_video(batch) else 0
        return self.causality.split(num_latents(batch, self.schema)), num_initial_latents

    def switched_prompts(self, batch: Batch, sampling: Sampling) -> dict[int, list[str]]:
        """Return the prompts of all samples by the latent frame from which on they hold.

        Raises:
            ValueError: A prompt begins where no block does.
        """
        prompts = switched_prompts(batch, sampling.prompt_switches)
        require_switchable(prompts, *self.blocks_and_initial(batch, sampling))
        return prompts

    def videos(self, generator: CausalWanModel, sampling: Sampling) -> VideoGenerator:
        """Join a network and its settings to what turns noise into videos."""
        return VideoGenerator(
            generator,
            self.causality,
            sampling,
            self.schedule,
            captures=self.acceleration.capture_pass,
            kernel=self.acceleration.kernel(self.device, generator.head_dim),
        )

    def _encoded(self, prompts: list[str]) -> Tensor:
        return self.frozen.encode_text(prompts, self.device, self.dtype)

"""Checks of whether a batch fits a model, one set for what trains, what generates and `check`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lightning_action.action.conditioning import ActionConditioning
from lightning_action.action.schema import ActionSchema
from lightning_action.batch import (
    Batch,
    check_actions,
    check_batch,
    check_pixels,
    first_frames,
    frame_size,
    has_actions,
    num_latents,
    trained_latents,
)
from lightning_action.frozen.interfaces import VideoCodec
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.model import CausalWanModel


@dataclass(frozen=True)
class BatchChecks:
    """Demands of a model on a batch.

    Args:
        generator: Network that the batch is for; it does not run.
        conditioning: Way from actions to modulation.
        schema: Meaning of its actions.
        causality: Cut of its video into blocks.
        vae: Codec of its video; it does not run.
        num_initial_latents: Latent frames that a generated video begins with.
    """

    generator: CausalWanModel
    conditioning: ActionConditioning
    schema: ActionSchema
    causality: BlockCausality
    vae: VideoCodec
    num_initial_latents: int

    def of(self, batch: Batch, trains: bool) -> list[Callable[[], object]]:
        """List what is to be asked of a batch; each raises a ValueError that says what was expected and what came.

        Args:
            batch: Batch of any origin.
            trains: True if the batch is one to train on and to measure with, and not one to generate from.

        Raises:
            ValueError: The batch has no samples, or no length, of which anything could be asked.
        """
        check_batch(batch)
        num_frames = latent_frames(self.schema, batch, trains)
        checks: list[Callable[[], object]] = [
            partial(check_pixels, batch),
            partial(self.causality.split, num_frames),
            partial(_check_generator, self.generator, self.vae, batch),
        ]
        acts = self.conditioning.projection is not None
        if acts:
            infers = self.conditioning.action_module is not None
            checks.append(partial(check_actions, batch, self.schema, num_frames, infers))
        if not trains or (acts and has_actions(batch)):
            ratio = self.vae.temporal_compression_ratio
            checks.append(partial(first_frames, batch, self.num_initial_latents, num_frames, ratio))
        return checks


def latent_frames(schema: ActionSchema, batch: Batch, trains: bool) -> int:
    """Count latent frames of the video of a training batch, or those that are generated from another.

    Raises:
        ValueError: The batch does not say how many, or its frames or rows are for no whole number of them.
    """
    if not trains:
        return num_latents(batch, schema)
    return trained_latents(batch, schema.temporal_compression_ratio)


def _check_generator(generator: CausalWanModel, vae: VideoCodec, batch: Batch) -> None:
    """Frames are whole patches, and latents have the channels that the generator takes and gives."""
    latent_shape = vae.latent_shape(*frame_size(batch))
    if "latents" in batch and batch["latents"].shape[2:] != latent_shape:
        raise ValueError(
            f"`latents` of frames of {' x '.join(map(str, frame_size(batch)))} are [B, F, "
            f"{', '.join(map(str, latent_shape))}] with {type(vae).__name__}, got {list(batch['latents'].shape)}"
        )
    generator.tokens_per_frame(*latent_shape[1:])
    takes_channels = generator.in_dim > generator.out_dim == latent_shape[0]
    if generator.image_dim is not None or takes_channels:
        raise ValueError(
            "the generator wants an image condition, which no batch carries (in_dim "
            f"{generator.in_dim}, out_dim {generator.out_dim}, image_dim {generator.image_dim}): generate with "
            "ActionCausalInferencePipeline, which takes it as `image`"
        )
    if generator.in_dim != latent_shape[0]:
        raise ValueError(
            f"the generator takes in_dim = {generator.in_dim} channels, the VAE's latents have {latent_shape[0]}"
        )
    if generator.out_dim != latent_shape[0]:
        raise ValueError(
            f"the generator gives out_dim = {generator.out_dim} channels, the VAE's latents have {latent_shape[0]}"
        )

"""Score networks of distillation: what denoises a student's clip, seeing its actions. Teacher and critic are two.

A score is a generator with its own action projection. It predicts clean latents from a clip with noise, in one of two
ways, which are functions: `bidirectional`, every frame seeing every frame, as in DMD and Self Forcing; or `causal`,
each block seeing the clip's own clean past, as a teacher-forced model was trained.

Teacher and critic are the real and the fake score of DMD2 (Yin et al. 2024, arXiv:2405.14867).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_action.action.conditioning import ActionConditioning
from lightning_action.action.projection import ActionModulationProjection
from lightning_action.action.schema import ActionSchema
from lightning_action.batch import Batch, samples_without_action
from lightning_action.diffusion.flow_matching import NUM_TRAIN_TIMESTEPS, add_noise, clean_from_velocity
from lightning_action.diffusion.guidance import NO_GUIDANCE, Guidance
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.model import CausalWanModel


class LatentClip(NamedTuple):
    """A clip, and what it was made under.

    Args:
        clean: Clean latents, `[B, F, C, H, W]`.
        text: Encoded prompts, `[B, L, text_dim]`.
        batch: Batch of its actions.
        causality: Block size, window and sink.
        num_initial_latents: Number of its first frames that were given: no noise is put on them.
        negative_text: Encoded negative prompts, for guidance by prompts.
        past: Latents that later blocks see in place of `clean`, with noise on them; None for `clean`.
    """

    clean: Tensor
    text: Tensor
    batch: Batch
    causality: BlockCausality
    num_initial_latents: int = 0
    negative_text: Tensor | None = None
    past: Tensor | None = None


class Noised(NamedTuple):
    """A clip with noise.

    Args:
        latents: Latents with noise, `[B, F, C, H, W]`.
        timestep: Noise level of each frame in [0, 1000], `[B, F]`.
        noise: The noise.
    """

    latents: Tensor
    timestep: Tensor
    noise: Tensor


Sight = Literal["causal", "bidirectional"]
Velocity = Callable[[CausalWanModel, LatentClip, Noised, Tensor, Tensor | None], Tensor]


def bidirectional(
    generator: CausalWanModel, clip: LatentClip, noised: Noised, text: Tensor, modulation: Tensor | None
) -> Tensor:
    """Predict the velocity with every frame seeing every frame."""
    return generator(noised.latents, noised.timestep, text, modulation)


def causal(
    generator: CausalWanModel, clip: LatentClip, noised: Noised, text: Tensor, modulation: Tensor | None
) -> Tensor:
    """Predict the velocity of each block given the clip's own past."""
    past = clip.clean if clip.past is None else clip.past
    return generator.teacher_forcing(past, noised.latents, noised.timestep, text, clip.causality, modulation)


SIGHTS: dict[str, Velocity] = {"bidirectional": bidirectional, "causal": causal}


def groups_of(sight: Sight, clip: LatentClip) -> list[range]:
    """Frames of a clip that share a noise level: those of a block where it sees its past alone, else all."""
    num_frames = clip.clean.shape[1]
    return clip.causality.split(num_frames) if sight == "causal" else [range(num_frames)]


def with_noise(clip: LatentClip, levels: Tensor, noise: Tensor) -> Noised:
    """Put noise on a clip, but for the frames that were given, which stay clean at level 0.

    Args:
        clip: The clip.
        levels: Noise level of each frame in [0, 1000], `[B, F]`.
        noise: Noise of the clip's shape.
    """
    timestep = levels.clone()
    timestep[:, : clip.num_initial_latents] = 0
    return Noised(add_noise(clip.clean, noise, timestep / NUM_TRAIN_TIMESTEPS), timestep, noise)


class ScoreNetwork(nn.Module):
    """A generator and its action projection, that predict what is clean in clips with noise.

    Args:
        generator: Network that predicts velocities.
        action_projection: Actions to modulation; None where there are no actions.
        schema: Meaning of an action.
        sight: Sight of its frames, `causal` or `bidirectional`.
        on_all_ranks: True if batches without actions go through the projection all the same, see `ActionConditioning`.
        blind: True if it predicts without the actions, whoever asks; what is generated with `conditioning` sees them.
    """

    def __init__(
        self,
        generator: CausalWanModel,
        action_projection: ActionModulationProjection | None,
        schema: ActionSchema,
        sight: Sight = "causal",
        on_all_ranks: bool = False,
        blind: bool = False,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.action_projection = action_projection
        self.conditioning = ActionConditioning(schema, action_projection, None, on_all_ranks=on_all_ranks)
        self.sight = sight
        self.blind = blind

    def velocity(
        self, clip: LatentClip, noised: Noised, takes_action: bool = True, takes_prompt: bool = True
    ) -> Tensor:
        """Predict the velocity of a clip with noise, `[B, F, C, H, W]`, under its actions and prompts or without."""
        text = clip.text
        if not takes_prompt:
            if clip.negative_text is None:
                raise ValueError("guidance by prompts needs negative_text, the encoded negative prompts")
            text = clip.negative_text
        modulation = modulation_of(self.conditioning, clip) if takes_action and not self.blind else None
        return SIGHTS[self.sight](self.generator, clip, noised, text, modulation)

    def clean(
        self, clip: LatentClip, noised: Noised, guidance: Guidance = NO_GUIDANCE, takes_action: bool = True
    ) -> Tensor:
        """Predict the clean latents of a clip with noise, with guidance whatever the noise level.

        Args:
            clip: The clip.
            noised: The same with noise.
            guidance: Weights of guidance by prompts and actions.
            takes_action: True if the actions are shown; there is no guidance by them otherwise.
        """
        velocity = self.guided_velocity(clip, noised, guidance) if takes_action else self.velocity(clip, noised, False)
        return clean_from_velocity(noised.latents, velocity, noised.timestep / NUM_TRAIN_TIMESTEPS)

    def guided_velocity(self, clip: LatentClip, noised: Noised, guidance: Guidance) -> Tensor:
        """Predict the velocity with guidance, see `diffusion.guidance`."""
        branches = guidance.branches
        return guidance.push([self.velocity(clip, noised, each.takes_action, each.takes_prompt) for each in branches])


def modulation_of(conditioning: ActionConditioning, clip: LatentClip) -> Tensor | None:
    """Compute the modulation of a clip's actions; None for none."""
    action, absent = clip.batch.get("action"), samples_without_action(clip.batch)
    return conditioning.of_known_video(action, False, clip.clean, clip.text, clip.causality, absent)


def denoising_loss(velocity: Tensor, clip: LatentClip, noised: Noised) -> Tensor:
    """Flow-matching loss of a critic on the student's clip: mean squared error of the velocity, in float32.

    Args:
        velocity: Velocity that the critic predicts.
        clip: The clip.
        noised: The same with noise.
    """
    error = velocity.float() - (noised.noise.float() - clip.clean.float())
    return error[:, frames_that_count(clip)].square().mean()


def frames_that_count(clip: LatentClip) -> Tensor:
    """Mark the frames of a clip that are not given, `[F]` bool."""
    return torch.arange(clip.clean.shape[1], device=clip.clean.device) >= clip.num_initial_latents

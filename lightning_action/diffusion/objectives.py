"""Training objectives as functions of what is noised, what is seen, and what is compared.

Each returns the predicted and the true velocity, `[B, F, C, H, W]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_action.diffusion.flow_matching import NUM_TRAIN_TIMESTEPS, FlowMatchSchedule, add_noise
from lightning_action.generator import causality as seen_in
from lightning_action.generator.causality import BlockCausality, Visibility
from lightning_action.generator.image import NO_IMAGE, ImageCondition
from lightning_action.generator.model import CausalWanModel


class Velocities(NamedTuple):
    """Velocity that a model predicts, and the true one, `noise - clean`; `[B, F, C, H, W]` each."""

    predicted: Tensor
    true: Tensor


Objective = Callable[..., Velocities]


def teacher_forcing(
    generator: CausalWanModel,
    clean: Tensor,
    noise: Tensor,
    timestep: Tensor,
    text: Tensor,
    causality: BlockCausality,
    action_modulation: Tensor | None,
    image: ImageCondition = NO_IMAGE,
    past: Tensor | None = None,
    past_timestep: Tensor | None = None,
) -> Velocities:
    """Denoise each block given the clean past: what it will see through the cache, were its own past perfect.

    Teacher forcing of video diffusion, as compared with other ways by Huang et al. (2025, arXiv:2506.08009).

    Args:
        generator: Network that is trained.
        clean: Latents without noise, `[B, F, C, H, W]`.
        noise: Noise of the same shape.
        timestep: Noise level of each frame in [0, 1000], `[B, F]`.
        text: Prompts as encoded, `[B, L, text_dim]`.
        causality: Block size, window and sink.
        action_modulation: Modulation as in `CausalWanModel.forward`.
        image: Condition as in `CausalWanModel.forward`.
        past: Latents that blocks see in place of `clean`.
        past_timestep: Noise levels that these are passed at, `[B, F]`; None for 0.
    """
    noisy = add_noise(clean, noise, timestep / NUM_TRAIN_TIMESTEPS)
    velocity = generator.teacher_forcing(
        clean if past is None else past, noisy, timestep, text, causality, action_modulation, image, past_timestep
    )
    return Velocities(velocity, noise - clean)


def diffusion_forcing(
    generator: CausalWanModel,
    clean: Tensor,
    noise: Tensor,
    timestep: Tensor,
    text: Tensor,
    causality: BlockCausality,
    action_modulation: Tensor | None,
    image: ImageCondition = NO_IMAGE,
) -> Velocities:
    """Denoise each block given the noisy past, every block at a noise level of its own.

    Diffusion forcing (Chen et al. 2024, arXiv:2407.01392), block by block as in CausVid (Yin et al. 2024,
    arXiv:2412.07772). Arguments are those of `teacher_forcing`.
    """
    noisy = add_noise(clean, noise, timestep / NUM_TRAIN_TIMESTEPS)
    velocity = generator.block_causal(noisy, timestep, text, causality, action_modulation, image)
    return Velocities(velocity, noise - clean)


def training_visibility(objective: Objective, num_frames: int, causality: BlockCausality) -> tuple[Visibility, ...]:
    """Return which frame sees which in the pass of an objective over `num_frames` latent frames."""
    sees = seen_in.teacher_forcing if objective is teacher_forcing else seen_in.block_causal
    return sees(num_frames, causality)


OBJECTIVES: dict[str, Objective] = {"teacher_forcing": teacher_forcing, "diffusion_forcing": diffusion_forcing}


def per_frame_error(velocities: Velocities) -> Tensor:
    """Mean squared error of each latent frame, `[B, F]`, in float32."""
    return (velocities.predicted.float() - velocities.true.float()).square().mean(dim=(2, 3, 4))


def per_position_error(velocities: Velocities) -> Tensor:
    """Mean squared error of each position of each latent frame, over channels, `[B, F, H, W]`, in float32."""
    return (velocities.predicted.float() - velocities.true.float()).square().mean(dim=2)


def draw_block_levels(
    schedule: FlowMatchSchedule, num_frames: int, causality: BlockCausality, randoms: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Draw an entry of the schedule's table for each block, uniformly; the frames of a block share it.

    A level of its own for each block is that of diffusion forcing (Chen et al. 2024, arXiv:2407.01392), which has one
    for each frame.

    Args:
        schedule: Schedule that holds the table of noise levels.
        num_frames: Number F of latent frames.
        causality: Division of the frames into blocks.
        randoms: Random generators on the CPU, one for each of B samples.

    Returns:
        Timesteps in [0, 1000] and loss weights, `[B, F]` each, on the CPU.
    """
    chosen = draw_for_blocks(range(len(schedule.timesteps)), causality.split(num_frames), randoms)
    return schedule.timesteps[chosen], schedule.weights[chosen]


def draw_for_blocks(among: range, blocks: Sequence[range], randoms: Sequence[torch.Generator]) -> Tensor:
    """Draw a whole number for each block, uniformly; the frames of a block share it.

    Args:
        among: Numbers to draw from, one after another.
        blocks: Frames of each block, in order and without gaps.
        randoms: Random generators on the CPU, one for each of B samples.

    Returns:
        Numbers `[B, F]`, int64, on the CPU.
    """
    sizes = torch.tensor([len(block) for block in blocks])
    drawn = [torch.randint(among.start, among.stop, sizes.shape, generator=random) for random in randoms]
    return torch.stack(drawn).repeat_interleave(sizes, dim=1)

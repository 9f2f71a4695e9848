"""Samplers as functions: from noise to a clean block, given the velocity of a noisy block.

Each takes `velocity(noisy, timestep)`, with timestep a number in [0, 1000], and `noise(step)`, fresh noise of the
block's shape. Frames of the block that are known are held: `denoised_input` is what a network is given then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_action.diffusion.flow_matching import (
    NUM_TRAIN_TIMESTEPS,
    FlowMatchSchedule,
    add_noise,
    clean_from_velocity,
)

Velocity = Callable[[Tensor, float], Tensor]
Noise = Callable[[int], Tensor]
Sampler = Callable[[Velocity, Noise], Tensor]


def few_step(velocity: Velocity, noise: Noise, timesteps: Sequence[float], schedule: FlowMatchSchedule) -> Tensor:
    """Predict the clean block, noise it again to the next timestep with fresh noise, and so on.

    Multistep sampling of consistency models (Song et al. 2023, arXiv:2303.01469, algorithm 1), which DMD2 (Yin et al.
    2024, arXiv:2405.14867), CausVid and Self Forcing use for distilled models.
    """
    sigmas = schedule.sigma_at(torch.tensor(timesteps)).tolist()
    noisy = noise(0)
    for step, (timestep, sigma) in enumerate(zip(timesteps, sigmas, strict=True)):
        clean = clean_from_velocity(noisy, velocity(noisy, timestep), _level(noisy, sigma))
        if step + 1 < len(sigmas):
            noisy = add_noise(clean, noise(step + 1), _level(noisy, sigmas[step + 1]))
    return clean


def euler(velocity: Velocity, noise: Noise, sigmas: Sequence[float]) -> Tensor:
    """Follow the velocity from sigma 1 to 0 in straight steps.

    Euler's method on the probability-flow ODE (Song et al. 2020, arXiv:2011.13456, section 4.3), as rectified flow
    samples (Liu et al. 2022, arXiv:2209.03003).
    """
    sample = noise(0)
    for sigma, next_sigma in zip(sigmas, sigmas[1:], strict=False):
        sample = sample + (next_sigma - sigma) * velocity(sample, sigma * NUM_TRAIN_TIMESTEPS)
    return sample


def denoised_input(noisy: Tensor, timestep: float, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the block that a pass of denoising is given, with known frames held, and the level of each frame."""
    timesteps = torch.full(noisy.shape[:2], timestep, device=noisy.device)
    if known is not None:
        timesteps[:, : known.shape[1]] = 0
    return hold(noisy, known), timesteps


def hold(latents: Tensor, known: Tensor | None) -> Tensor:
    """The latents with their first frames replaced by the known ones."""
    return latents if known is None else torch.cat([known, latents[:, known.shape[1] :]], dim=1)


def _level(like: Tensor, sigma: float) -> Tensor:
    return torch.full(like.shape[:2], sigma, device=like.device)

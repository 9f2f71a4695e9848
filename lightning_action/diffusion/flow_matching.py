"""Flow matching on a straight line between data and noise: Lipman et al. (2022, arXiv:2210.02747).

The line between the two is also that of rectified flow, Liu et al. (2022, arXiv:2209.03003).

`noisy = (1 - sigma) clean + sigma noise`, `velocity = noise - clean`, `timestep = 1000 sigma`: 0 is data, 1000 is
noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_action.ranges import require_numbers

NUM_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class FlowMatchSchedule:
    """The shifted table of noise levels that this family trains and samples with.

    `sigma_i = shift s_i / (1 + (shift - 1) s_i)` with `s_i` from 1 down to 1/1000 in 1000 steps; `timestep_i = 1000
    sigma_i`. The shift is that of Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206, section 5.3.2): videos of
    more pixels need more noise to lose as much of what they show.

    Args:
        shift: Strength of the shift, above 0; larger puts more of the table near pure noise. 1 is no shift, 5 is usual
            for 480p Wan.

    Raises:
        ValueError: The shift is not positive.
    """

    shift: float = 5.0

    def __post_init__(self) -> None:
        require_numbers({"timestep_shift": self.shift}, 0, without_low=True)

    @cached_property
    def sigmas(self) -> Tensor:
        """Noise levels `[1000]`, falling from 1, the final 0 left out."""
        linear = torch.linspace(1, 0, NUM_TRAIN_TIMESTEPS + 1, dtype=torch.float64)[:-1]
        return (self.shift * linear / (1 + (self.shift - 1) * linear)).float()

    @cached_property
    def timesteps(self) -> Tensor:
        """Timesteps `[1000]`, falling from 1000."""
        return self.sigmas * NUM_TRAIN_TIMESTEPS

    @cached_property
    def weights(self) -> Tensor:
        """Loss weights `[1000]`: a Gaussian around timestep 500, lowered to 0 at its least, with mean 1.

        The training code of DiffSynth-Studio for Wan (`FlowMatchScheduler`) and that of CausVid and Self Forcing, which
        took it over, weight the loss so.
        """
        bell = torch.exp(-2 * ((self.timesteps - NUM_TRAIN_TIMESTEPS / 2) / NUM_TRAIN_TIMESTEPS) ** 2)
        lowered = bell - bell.min()
        return lowered * (NUM_TRAIN_TIMESTEPS / lowered.sum())

    def nearest(self, timestep: Tensor) -> Tensor:
        """Index of the table entry nearest to each timestep; same shape, int64."""
        rising = self.timesteps.flip(0).to(timestep.device)
        timestep = timestep.float()
        right = torch.searchsorted(rising, timestep.contiguous()).clamp(1, NUM_TRAIN_TIMESTEPS - 1)
        left_is_nearer = (timestep - rising[right - 1]) <= (rising[right] - timestep)
        return NUM_TRAIN_TIMESTEPS - 1 - torch.where(left_is_nearer, right - 1, right)

    def sigma_at(self, timestep: Tensor) -> Tensor:
        """Sigma of the nearest table entry, as the published models were trained; same shape as `timestep`."""
        return self.sigmas.to(timestep.device)[self.nearest(timestep)]

    def denoising_timesteps(self, denoising_step_list: Sequence[float], warp_denoising_step: bool) -> tuple[float, ...]:
        """Timesteps of a few-step sampler.

        Args:
            denoising_step_list: Falling steps, each in [1, 1000], for example 1000, 750, 500, 250.
            warp_denoising_step: Read the steps as numbers of the unshifted schedule and shift them.

        Raises:
            ValueError: The list is empty, does not fall, or leaves [1, 1000].
        """
        steps = check_denoising_steps(denoising_step_list)
        if not warp_denoising_step:
            return tuple(float(step) for step in steps)
        return tuple(float(self.timesteps[NUM_TRAIN_TIMESTEPS - round(step)]) for step in steps)

    def euler_sigmas(self, num_inference_steps: int) -> tuple[float, ...]:
        """Return `num_inference_steps + 1` shifted noise levels from 1 to 0, for an ODE sampler."""
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        linear = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
        return tuple((self.shift * linear / (1 + (self.shift - 1) * linear)).tolist())


def check_denoising_steps(denoising_step_list: Sequence[float]) -> list[float]:
    """Return the steps of a few-step sampler as a list.

    Raises:
        ValueError: The list is empty, does not fall, or leaves [1, 1000].
    """
    steps = list(denoising_step_list)
    falling = all(a > b for a, b in zip(steps, steps[1:], strict=False))
    if not steps or not falling or not 1 <= steps[-1] <= steps[0] <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(
            f"denoising_step_list must fall and lie in [1, {NUM_TRAIN_TIMESTEPS}], got {steps}; leave a trailing 0 "
            "out, the last step always ends at the clean prediction"
        )
    return steps


def per_frame(values: Tensor, like: Tensor) -> Tensor:
    """Shape `[B, F]` values to multiply latents `[B, F, C, H, W]`, in their type."""
    return values[..., None, None, None].to(like.dtype)


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Bring latents `[B, F, C, H, W]` to noise level `sigma` `[B, F]`."""
    sigma = per_frame(sigma, clean)
    return (1 - sigma) * clean + sigma * noise


def clean_from_velocity(noisy: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """Predict the clean latents that `velocity` points to, from latents at noise level `sigma` `[B, F]`."""
    return noisy - per_frame(sigma, noisy) * velocity

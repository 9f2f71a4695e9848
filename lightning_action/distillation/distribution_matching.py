"""Distribution matching distillation as functions of tensors.

The gradient is that of DMD (Yin et al. 2023, arXiv:2311.18828, equations 7 and 8), on rollouts of the student itself as
in Self Forcing (Huang et al. 2025, arXiv:2506.08009): the student's samples move from where the critic, a model of what
the student makes, would denoise them to, towards where the teacher would.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.objectives import draw_for_blocks

# Share of the table at either end that is left out: there one of the two scores says nothing.
_LEFT_OUT = 0.02


def draw_score_levels(
    schedule: FlowMatchSchedule, groups: Sequence[range], randoms: Sequence[torch.Generator]
) -> Tensor:
    """Draw the noise level of each group of frames, uniformly from the schedule's table without its two ends.

    Args:
        schedule: Schedule that holds the table of noise levels.
        groups: Frames that share a level, in order and without gaps.
        randoms: Random generators on the CPU, one for each of B samples.

    Returns:
        Timesteps in [0, 1000], `[B, F]`, on the CPU.
    """
    count = len(schedule.timesteps)
    among = range(round(_LEFT_OUT * count), round((1 - _LEFT_OUT) * count))
    return schedule.timesteps[draw_for_blocks(among, groups, randoms)]


def matching_gradient(sample: Tensor, real: Tensor, fake: Tensor, groups: Sequence[range], counts: Tensor) -> Tensor:
    """Compute the normalised gradient of the divergence of the student's distribution from the teacher's.

    `(fake - real) / mean |sample - real|`, with the mean over the frames of a group that share a noise level and
    count, of each sample on its own: so that no level weighs more than another (equation 8 of DMD).

    Args:
        sample: Clean latents that the student made, `[B, F, C, H, W]`.
        real: Clean latents that the teacher predicts from the same with noise.
        fake: Clean latents that the critic predicts from the same.
        groups: Frames that share a level, in order and without gaps.
        counts: Frames that count, `[F]` bool; the others were given, and nothing is changed in them.

    Returns:
        Gradient `[B, F, C, H, W]`, in float64.
    """
    sample, real, fake = sample.detach().double(), real.double(), fake.double()
    distance = (sample - real).abs().mean(dim=(2, 3, 4), keepdim=True)
    scale = torch.ones_like(distance)
    for group in groups:
        here = slice(group.start, group.stop)
        if counts[here].any():
            scale[:, here] = distance[:, here][:, counts[here]].mean(dim=1, keepdim=True)
    # Where the teacher finds nothing to change, the critic's share alone would be divided by nothing.
    return (fake - real) / scale.clamp_min(torch.finfo(torch.float32).eps)


def matching_loss(sample: Tensor, gradient: Tensor, counts: Tensor) -> Tensor:
    """Return half the squared distance to `sample - gradient`, whose gradient is `gradient` over the number of values.

    Args:
        sample: Clean latents that the student made, with gradient, `[B, F, C, H, W]`.
        gradient: Result of `matching_gradient`.
        counts: Frames that count, `[F]` bool; the others were given, or lost already.
    """
    aim = (sample.detach().double() - gradient)[:, counts]
    return (sample.double()[:, counts] - aim).square().mean() / 2


def score_gap(real: Tensor, fake: Tensor, counts: Tensor) -> Tensor:
    """Mean absolute difference of what teacher and critic predict, over the frames that count; of shape `[]`.

    The figure is this project's own: how far teacher and critic disagree.
    """
    return (real.double() - fake.double())[:, counts].abs().mean()

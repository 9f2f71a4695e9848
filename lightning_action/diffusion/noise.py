"""Random numbers that belong to a frame: the same video for any block size of a call, batch, rank or streaming."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_action.seeding import generator_for

NoiseSource = Callable[[range, int], Tensor]


def frame_noise(
    seed: int,
    samples: Sequence[int],
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> NoiseSource:
    """Draw the noise of latent frame i at denoising step k from (seed, sample, i, k) alone.

    Args:
        seed: Random seed of the run.
        samples: Numbers that tell the videos of the batch apart.
        shape: Shape of one latent frame, (C, H, W).
        device: Device of the result; the numbers are drawn on the CPU in float32, so they are the same everywhere.
        dtype: Dtype of the result.

    Returns:
        A function of (frames, step) that gives noise `[B, frames, C, H, W]`.
    """

    def noise(frames: range, step: int) -> Tensor:
        randoms = (generator_for(seed, sample, frame, step) for sample in samples for frame in frames)
        drawn = torch.stack([torch.randn(*shape, generator=random, dtype=torch.float32) for random in randoms])
        together = drawn.unflatten(0, (len(samples), len(frames)))
        if torch.device(device).type == "cuda":
            # Otherwise the copy would wait for all that the device has to do before it.
            together = together.pin_memory()
        return together.to(device, dtype, non_blocking=True)

    return noise


def starting_from(start: Tensor, later: NoiseSource) -> NoiseSource:
    """Give the noise `start`, `[B, F, C, H, W]`, at the first step, and that of `later` at the steps after."""

    def noise(frames: range, step: int) -> Tensor:
        return start[:, frames.start : frames.stop] if step == 0 else later(frames, step)

    return noise


def own_noise(shape: Sequence[int], randoms: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Draw noise `[B, *shape]` on the CPU, each sample's by its own generator, for the device and dtype of `like`."""
    return torch.stack([torch.randn(*shape, generator=random) for random in randoms]).to(like)

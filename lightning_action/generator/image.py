"""Conditions that an image-to-video model sees beside the noisy latents, as in Wan (2025, arXiv:2503.20314)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ImageCondition:
    """The image condition of a batch of videos; a model without one takes none.

    Args:
        channels: Channels that are joined to the noisy latents, `[B, F, in_dim - out_dim, H, W]`; see
            `mask_and_latents`.
        embeds: Hidden states of CLIP for the image, `[B, 257, image_dim]`; those of first and last frame, one after the
            other, `[B, 514, image_dim]`.
    """

    channels: Tensor | None = None
    embeds: Tensor | None = None

    def of_frames(self, frames: range) -> Tensor | None:
        """The channels of some latent frames.

        Raises:
            ValueError: The condition is of a shorter video.
        """
        if self.channels is None:
            return None
        if frames.stop > self.channels.shape[1]:
            raise ValueError(
                f"the image condition has channels for {self.channels.shape[1]} latent frames, the video goes on to "
                f"{frames.stop}: give channels for the whole video"
            )
        return self.channels[:, frames.start : frames.stop]

    def to(self, like: Tensor) -> ImageCondition:
        """Move to the device and type of `like`."""
        return self._each(lambda part: part.to(like))

    def twice_in_time(self) -> ImageCondition:
        """Repeat the channels for the sequence `[clean | noisy]`, whose halves show the same video and image."""
        channels = None if self.channels is None else torch.cat([self.channels, self.channels], dim=1)
        return ImageCondition(channels, self.embeds)

    def repeated(self, times: int) -> ImageCondition:
        """Repeat everything along the batch, for branches of guidance that show the same image."""
        return self._each(lambda part: torch.cat([part] * times))

    def select(self, videos: Sequence[int]) -> ImageCondition:
        """Take what some videos see; one may be there more than once."""
        return self._each(lambda part: part[list(videos)])

    def _each(self, change: Callable[[Tensor], Tensor]) -> ImageCondition:
        return ImageCondition(*(None if part is None else change(part) for part in (self.channels, self.embeds)))


NO_IMAGE = ImageCondition()


def mask_and_latents(latents: Tensor, num_initial_latents: int, num_mask_channels: int = 4) -> Tensor:
    """The channels of Wan's image-to-video models: a mask that is 1 in initial latents, then the latents.

    Args:
        latents: Latents of a video whose unknown pixel frames are 0 (mid-grey), `[B, F, C, H, W]`.
        num_initial_latents: Number of latent frames at the start that are given.
        num_mask_channels: Number of mask channels, one for each pixel frame of a latent frame.

    Returns:
        `[B, F, num_mask_channels + C, H, W]`.
    """
    batch_size, num_frames, _, height, width = latents.shape
    mask = latents.new_zeros(batch_size, num_frames, num_mask_channels, height, width)
    # Latent frame 0 stands for one pixel frame alone, and Wan repeats its mask over all mask channels.
    mask[:, :num_initial_latents] = 1
    return torch.cat([mask, latents], dim=2)


def join_channels(latents: Tensor, image_channels: Tensor | None, in_dim: int) -> Tensor:
    """Join latents `[B, F, C, H, W]` and the channels of an image condition to the `in_dim` that a generator takes.

    Raises:
        ValueError: The channels of both together are not `in_dim`.
    """
    needed = in_dim - latents.shape[2]
    came = 0 if image_channels is None else image_channels.shape[2]
    if needed != came:
        raise ValueError(
            f"this generator takes {in_dim} channels, {latents.shape[2]} of them latents: expected image channels "
            f"[B, F, {needed}, H, W] beside them, got {came} channels"
        )
    return latents if image_channels is None else torch.cat([latents, image_channels], dim=2)


class ImageEmbedding(nn.Module):
    """Map from CLIP's hidden states to tokens that cross-attention sees.

    Args:
        image_dim: Number of channels of the hidden states.
        dim: Width of the generator.
        num_positions: Number of tokens with a learned position, those of first and last frame together; None for one
            image.
    """

    def __init__(self, image_dim: int, dim: int, num_positions: int | None = None) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(image_dim),
            nn.Linear(image_dim, image_dim),
            nn.GELU(),
            nn.Linear(image_dim, dim),
            nn.LayerNorm(dim),
        )
        self.emb_pos = None if num_positions is None else nn.Parameter(torch.zeros(1, num_positions, image_dim))

    def forward(self, embeds: Tensor) -> Tensor:
        """Map hidden states `[B, tokens, image_dim]` to `[B, tokens, D]`."""
        return self.proj(embeds if self.emb_pos is None else embeds + self.emb_pos)

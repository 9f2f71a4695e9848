"""Text encoder and VAE in one plain object, out of sight of everything that walks over modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_action.frozen.interfaces import Movable, TextEncoder, VideoCodec


class FrozenParts:
    """Holds the frozen networks in eval mode and without gradient.

    It is no `nn.Module`: what it holds appears in no checkpoint, EMA, optimizer, sharding or precision cast.

    Args:
        text_encoder: Encoder of prompts.
        vae: Codec from pixels to latents and back.
    """

    def __init__(self, text_encoder: TextEncoder, vae: VideoCodec) -> None:
        self.text_encoder = text_encoder
        self.vae = vae
        self._device = torch.device("cpu")
        for part in (text_encoder, vae):
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)

    def load(self) -> None:
        """Read the weights of both parts. Raises as `FrozenPart.load`."""
        self.text_encoder.load()
        self.vae.load()

    def to(self, device: torch.device | str) -> None:
        """Move the networks; `"cpu"` parks them while they are not needed."""
        self._device = torch.device(device)
        for part in (self.text_encoder, self.vae):
            move(part, self._device)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts as `[B, L, text_dim]`."""
        return self.text_encoder.encode(prompts).to(self._device)

    @torch.no_grad()
    def encode_video(self, video: Tensor) -> Tensor:
        """Encode pixels `[B, T, 3, H, W]` in [-1, 1] as latents `[B, F, C, h, w]`.

        Raises:
            ValueError: The pixels or the latents hold a value that is not finite.
        """
        latents = self.vae.encode(video.to(self._device))
        if not bool(torch.isfinite(latents).all()):
            source = "the video" if not bool(torch.isfinite(video).all()) else "the latents of a finite video"
            raise ValueError(f"{source} hold NaN or infinity: check the data set or the VAE's precision")
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents `[B, F, C, h, w]` to pixels `[B, T, 3, H, W]` in [-1, 1]."""
        return self.vae.decode(latents)


def move(part: TextEncoder | VideoCodec, device: torch.device) -> None:
    """Move a part that has weights; the others compute wherever their input is."""
    if isinstance(part, Movable):
        part.to(device)


def to_unit_range(video: Tensor) -> Tensor:
    """Map pixels from [-1, 1] to [0, 1]."""
    return (video * 0.5 + 0.5).clamp(0, 1)

"""Text encoder and VAE in one plain object, out of sight of everything that walks over modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_action.frozen.interfaces import CodecStream, Movable, TextEncoder, VideoCodec


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
        for part in (text_encoder, vae):
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)

    def load(self) -> None:
        """Read the weights of both parts. Raises as `FrozenPart.load`."""
        self.text_encoder.load()
        self.vae.load()

    def park(self) -> None:
        """Move the networks to main memory, where they wait until they are needed."""
        for part in (self.text_encoder, self.vae):
            _move(part, "cpu")

    @torch.no_grad()
    def encode_text(
        self, prompts: Sequence[str], device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32
    ) -> Tensor:
        """Encode prompts as `[B, L, text_dim]`, on a device and in a dtype; None is that of the text encoder."""
        _move(self.text_encoder, device)
        return self.text_encoder.encode(prompts).to(device, dtype)

    @torch.no_grad()
    def encode_video(
        self, video: Tensor, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Encode pixels `[B, T, 3, H, W]` in [-1, 1] as latents `[B, F, C, h, w]`, on a device and in a dtype.

        Raises:
            ValueError: The pixels or the latents hold a value that is not finite.
        """
        _move(self.vae, device)
        return self.encode_next(self.vae.encode, video, device, dtype)

    @torch.no_grad()
    def encode_next(
        self, encode: Callable[[Tensor], Tensor], pixels: Tensor, device: torch.device | str, dtype: torch.dtype
    ) -> Tensor:
        """Encode what comes next of a video by a function such as that of `encoder`. Raises as `encode_video`."""
        latents = encode(_on(device, pixels))
        if not bool(torch.isfinite(latents).all()):
            source = "the video" if not bool(torch.isfinite(pixels).all()) else "the latents of a finite video"
            raise ValueError(f"{source} hold NaN or infinity: check the data set or the VAE's precision")
        # A product may round differently where its factors lie otherwise in memory, and a codec may leave them so.
        return latents.to(dtype).contiguous()

    def text_of(self, batch: Mapping[str, Any], device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Return the prompts of a batch, given as `text` or encoded. Raises as `encode_text`."""
        given: Tensor | None = batch.get("text")
        return self.encode_text(batch["prompt"], device, dtype) if given is None else given.to(device, dtype)

    def empty_text_of(self, batch: Mapping[str, Any], device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Return empty prompts for a batch, given as `empty_text` or encoded. Raises as `encode_text`."""
        given: Tensor | None = batch.get("empty_text")
        prompts = [""] * len(batch["sample_id"])
        return self.encode_text(prompts, device, dtype) if given is None else given.to(device, dtype)

    def latents_of(self, batch: Mapping[str, Any], device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Return the latents of a batch, given as `latents` or encoded. Raises as `encode_video`."""
        given: Tensor | None = batch.get("latents")
        return self.encode_video(batch["video"], device, dtype) if given is None else given.to(device, dtype)

    @torch.no_grad()
    def encode_parts(self, parts: Iterable[Tensor], device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """Encode a long video that comes in parts, see `VideoCodec.encode_parts`; latents are float32.

        Raises:
            ValueError: The latents hold a value that is not finite.
        """
        _move(self.vae, device)
        for latents in self.vae.encode_parts(_on(device, part) for part in parts):
            if not bool(torch.isfinite(latents).all()):
                raise ValueError("latents hold NaN or infinity: check the video, or the VAE's precision")
            yield latents.float()

    def encoder(self, device: torch.device | str = "cpu") -> CodecStream:
        """Return a function that encodes one video on a device, for `encode_next`."""
        _move(self.vae, device)
        return self.vae.streaming_encoder()

    def decoder(self, device: torch.device | str = "cpu") -> CodecStream:
        """Return a function that decodes one video on a device: the next latents to their pixels in [-1, 1]."""
        _move(self.vae, device)
        return self.vae.streaming_decoder()


def _on(device: torch.device | str, video: Tensor) -> Tensor:
    """Numpy makes float64, and the VAE is float32."""
    return video.to(device, torch.float32 if video.dtype == torch.float64 else video.dtype)


def _move(part: TextEncoder | VideoCodec, device: torch.device | str) -> None:
    """Move a part that has weights; the others compute wherever their input is."""
    if isinstance(part, Movable):
        part.to(torch.device(device))

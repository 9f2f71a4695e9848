"""A linear video codec with the geometry of a causal video VAE, fitted to the training data in seconds."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from lightning_action.frozen.interfaces import CodecStream, FittedCodec, Memory


class LinearVideoCodec(FittedCodec):
    """Principal components of video patches: the first frame alone, then groups of `temporal_compression_ratio` frames.

    It is causal in time, `T = 1 + r (F - 1)` pixel frames to F latent frames, with the interface of the real video
    VAEs. Each channel is divided by the square root of its deviation: full whitening makes details as loud as
    positions, which the generator then learns about three times more slowly. Principal components are those of Pearson
    (1901, doi:10.1080/14786440109462720); to whiten by half is this project's own.

    Args:
        latent_dim: Number of latent channels C.
        patch_size: Number of pixel rows, and of columns, of one latent position.
        temporal_compression_ratio: Number r of pixel frames of one latent frame.
    """

    def __init__(self, latent_dim: int = 16, patch_size: int = 4, temporal_compression_ratio: int = 4) -> None:
        super().__init__()
        self.latent_dim, self.patch_size = latent_dim, patch_size
        self.temporal_compression_ratio = temporal_compression_ratio
        frame_dim = 3 * patch_size**2
        self.first = _LinearMap(frame_dim, latent_dim)
        self.later = _LinearMap(frame_dim * temporal_compression_ratio, latent_dim)

    @property
    def spatial_compression_ratio(self) -> int:  # type: ignore[override]
        """Number of pixel rows, and of columns, of one latent position."""
        return self.patch_size

    @property
    def fitted(self) -> bool:
        """Flag that says whether `fit` was called or fitted tensors were loaded."""
        return bool(self.first.basis.abs().sum() > 0)

    @torch.no_grad()
    def fit(self, video: Tensor) -> None:
        """Fit to training videos `[B, T, 3, H, W]` in [-1, 1].

        Raises:
            ValueError: The videos have a single frame, or hold a value that is not finite.
        """
        first, later = self._patches(video)
        if not later.numel():
            raise ValueError(
                f"the codec cannot be fitted to videos of one frame: expected 1 + {self.temporal_compression_ratio} n"
            )
        if not bool(torch.isfinite(video).all()):
            raise ValueError("the training videos hold NaN or infinity: check the data set")
        self.first.fit(first.flatten(0, -2))
        self.later.fit(later.flatten(0, -2))

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Encode pixels `[B, T, 3, H, W]` in [-1, 1] as latents `[B, F, C, H / p, W / p]`.

        Raises:
            ValueError: T is not 1 + r (F - 1), or the frame is not a whole number of patches.
        """
        self._require_fitted()
        first, later = self._patches(video)
        latents = torch.cat([self.first.encode(first), self.later.encode(later)], dim=1)
        return rearrange(latents, "b f h w c -> b f c h w")

    def streaming_decoder(self) -> CodecStream:
        """Return a function that decodes a video block by block; each call takes the next latents of the same video."""
        self._require_fitted()
        return CodecStream(self._decode_next)

    @torch.no_grad()
    def _decode_next(self, latents: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        patches = rearrange(latents, "b f c h w -> b f h w c")
        parts = []
        if memory is None:
            parts.append(self._pixels(self.first.decode(patches[:, :1]), 1))
            patches = patches[:, 1:]
        # Frame by frame: a matrix product of another height may round differently, and no split may show.
        for frame in patches.split(1, dim=1):
            parts.append(self._pixels(self.later.decode(frame), self.temporal_compression_ratio))
        return torch.cat(parts, dim=1).clamp(-1, 1), {}

    def _patches(self, video: Tensor) -> tuple[Tensor, Tensor]:
        self.require_video(video)
        ratio, patch = self.temporal_compression_ratio, self.patch_size
        pattern = "b (f r) c (h p) (w q) -> b f h w (r c p q)"
        first = rearrange(video[:, :1], pattern, r=1, p=patch, q=patch)
        later = rearrange(video[:, 1:], pattern, r=ratio, p=patch, q=patch)
        return first, later

    def _pixels(self, patches: Tensor, ratio: int) -> Tensor:
        pattern = "b f h w (r c p q) -> b (f r) c (h p) (w q)"
        return rearrange(patches, pattern, r=ratio, c=3, p=self.patch_size, q=self.patch_size)


class _LinearMap(nn.Module):
    """Centres patches, projects them on principal components, and scales."""

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, num_values: int, num_components: int) -> None:
        super().__init__()
        if num_components > num_values:
            raise ValueError(f"latent_dim {num_components} is more than a patch has values, {num_values}")
        self.register_buffer("mean", torch.zeros(num_values))
        self.register_buffer("basis", torch.zeros(num_values, num_components))
        self.register_buffer("scale", torch.ones(num_components))

    def fit(self, patches: Tensor) -> None:
        """Compute the principal components of `[N, num_values]`, in float64."""
        patches = patches.double()
        mean = patches.mean(dim=0)
        centred = patches - mean
        variance, vectors = torch.linalg.eigh(centred.T @ centred / len(patches))
        keep = torch.arange(len(variance) - 1, len(variance) - 1 - self.scale.numel(), -1)
        deviation = variance[keep].clamp_min(1e-8).sqrt()
        self.mean.copy_(mean)
        self.basis.copy_(vectors[:, keep])
        self.scale.copy_(deviation.sqrt())

    def encode(self, patches: Tensor) -> Tensor:
        return (patches - self.mean) @ self.basis / self.scale

    def decode(self, components: Tensor) -> Tensor:
        return (components * self.scale) @ self.basis.T + self.mean

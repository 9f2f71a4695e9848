"""Base of the codecs of Wan's latents: their geometry, and weights that are read when they are needed."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_action.frozen.interfaces import VideoCodec
from lightning_action.frozen.model_files import locate, stamp


class WanCodec(VideoCodec):
    """Codec from pixels to the normalised latents that Wan's generators know, and back.

    Args:
        path: File or folder of the weights, or the folder of a release that holds them; None looks in the folder that
            the environment variable `LIGHTNING_ACTION_WEIGHTS` names.
        latent_dim: Number of latent channels C: 16 for Wan 2.1, 48 for Wan 2.2.
        spatial_compression_ratio: Number of pixel rows, and of columns, of one latent position: 8 for Wan 2.1, 16 for
            Wan 2.2.
        dtype: Precision of weights and computation; results are float32.
    """

    temporal_compression_ratio = 4
    release_names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        path: str | None = None,
        latent_dim: int = 16,
        spatial_compression_ratio: int = 8,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        self.path = path
        self.latent_dim = latent_dim
        self.spatial_compression_ratio = spatial_compression_ratio
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._device = torch.device("cpu")
        self._model: Any = None
        # It is public, because records of predictions say it.
        self.files: list[list[str | int]] = []

    @torch.inference_mode(False)
    def load(self) -> None:
        if self._model is None:
            names = sorted(self.release_names, key=self._is_of_other_version)
            path = locate(self.path, names, f"the weights of {type(self).__name__}")
            self.files = stamp(path)
            self._model = self._read(path).eval().requires_grad_(False).to(self._device)

    @torch.inference_mode(False)
    def to(self, device: torch.device) -> None:
        """Encode and decode on `device` from now on."""
        self._device = device
        if self._model is not None:
            self._model.to(device)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents `[B, F, C, h, w]` to pixels `[B, 1 + 4 (F - 1), 3, H, W]` in [-1, 1]."""
        return self.streaming_decoder()(latents)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Compute (C, h, w) of a latent frame for frames of `height` x `width`, multiples of the compression ratio."""
        ratio = self.spatial_compression_ratio
        if height % ratio or width % ratio:
            raise ValueError(f"expected frames with sides of multiples of {ratio}, got {height} x {width}")
        return self.latent_dim, height // ratio, width // ratio

    def _is_of_other_version(self, name: str) -> bool:
        """Tell whether a name in a release is that of Wan 2.2's file and the latents are Wan 2.1's, or vice versa."""
        versions = {"2.1": 16, "2.2": 48}
        said = [channels for version, channels in versions.items() if version in name.replace("_", ".")]
        return bool(said) and said[0] != self.latent_dim

    @abstractmethod
    def _read(self, path: Path) -> torch.nn.Module:
        """Load the network in a file or folder, in `self._dtype`."""

    def _require_video(self, video: Tensor) -> None:
        """Refuse pixels that have no latents. diffusers drops what is beyond 1 + 4 n frames without a word."""
        if video.ndim != 5 or video.shape[2] != 3 or not video.is_floating_point():
            raise ValueError(
                f"expected videos of floats [B, T, 3, H, W] in [-1, 1], got {video.dtype} {list(video.shape)}"
            )
        num_frames, _, height, width = video.shape[1:]
        if num_frames < 1 or (num_frames - 1) % self.temporal_compression_ratio:
            raise ValueError(
                f"a video of {num_frames} frames cannot be encoded: expected 1 + {self.temporal_compression_ratio} n"
            )
        self.latent_shape(height, width)

    def _require_latents(self, latents: Tensor) -> None:
        """Refuse latents of another model."""
        if latents.ndim != 5 or latents.shape[2] != self.latent_dim:
            raise ValueError(f"expected latents [B, F, {self.latent_dim}, h, w], got {list(latents.shape)}")

    def _require_geometry(self, latent_dim: int, spatial: int, temporal: int, path: Path) -> None:
        expected = (self.latent_dim, self.spatial_compression_ratio, self.temporal_compression_ratio)
        if (latent_dim, spatial, temporal) != expected:
            raise ValueError(
                "latent_dim, spatial_compression_ratio and temporal_compression_ratio are configured as "
                f"{expected}, those of {path} are {(latent_dim, spatial, temporal)}: correct one or the other"
            )

"""Base of the codecs of Wan's latents: their geometry, and weights that are read when they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from lightning_action.frozen.interfaces import VideoCodec
from lightning_action.frozen.model_files import PartInFiles


class WanCodec(PartInFiles, VideoCodec):
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

    def __init__(
        self,
        path: str | None = None,
        latent_dim: int = 16,
        spatial_compression_ratio: int = 8,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        super().__init__(path, dtype)
        self.latent_dim = latent_dim
        self.spatial_compression_ratio = spatial_compression_ratio

    def _preferred_names(self) -> tuple[str, ...]:
        return tuple(sorted(self.release_names, key=self._is_of_other_version))

    def _is_of_other_version(self, name: str) -> bool:
        """Tell whether a name in a release is that of Wan 2.2's file and the latents are Wan 2.1's, or vice versa."""
        versions = {"2.1": 16, "2.2": 48}
        said = [channels for version, channels in versions.items() if version in name.replace("_", ".")]
        return bool(said) and said[0] != self.latent_dim

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

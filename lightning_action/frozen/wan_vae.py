"""The causal video VAE of Wan 2.1 and 2.2: diffusers' `AutoencoderKLWan`, with normalised latents and streaming."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from lightning_action.frozen.interfaces import StreamingDecoder, VideoCodec
from lightning_action.frozen.model_files import config_beside, locate
from lightning_action.frozen.wan_vae_format import config_of, is_original, original_layout, to_diffusers_name
from lightning_action.weights import check_fits, read_tensors

_RELEASE_NAMES = ("vae", "Wan2.1_VAE.pth", "Wan2.2_VAE.pth")


class WanVideoVAE(VideoCodec):
    """Wan's VAE; latents are `(z - mean) / std` per channel, as the generators were trained on.

    Reads a diffusers folder, one file with diffusers' names, and the original `Wan2.1_VAE.pth` and `Wan2.2_VAE.pth`.

    Args:
        path: such a file or folder, or the folder of a release that holds one; None looks in the folder that the
            environment variable `LIGHTNING_ACTION_WEIGHTS` names.
        latent_dim: latent channels C: 16 for Wan 2.1, 48 for Wan 2.2.
        spatial_compression_ratio: pixel rows and columns of one latent position: 8 for Wan 2.1, 16 for Wan 2.2.
        dtype: precision of weights and computation; what comes out is float32.
    """

    temporal_compression_ratio = 4

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

    def load(self) -> None:
        if self._model is not None:
            return
        path = locate(self.path, _RELEASE_NAMES, "the Wan VAE")
        model = _read(path, self._dtype)
        self._require_geometry(model.config, path)
        self._model = model.to(self._device)

    def to(self, device: torch.device) -> None:
        """Move the weights to `device`; what is encoded and decoded follows."""
        self._device = device
        if self._model is not None:
            self._model.to(device)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Pixels `[B, 1 + 4 n, 3, H, W]` in [-1, 1] to normalised latents `[B, 1 + n, C, h, w]`: means, not samples.

        Raises:
            ValueError: another number of frames, or sides that are not multiples of the compression ratio.
        """
        num_frames, _, height, width = video.shape[1:]
        # diffusers drops what is beyond 1 + 4 n without a word.
        if (num_frames - 1) % self.temporal_compression_ratio:
            raise ValueError(f"a video of {num_frames} frames cannot be encoded: expected 1 + 4 n frames")
        self.latent_shape(height, width)
        self.load()
        pixels = rearrange(video.to(self._device, self._dtype), "b t c h w -> b c t h w")
        means = self._model.encode(pixels).latent_dist.mode()
        mean, deviation = self._statistics()
        return (rearrange(means, "b c f h w -> b f c h w").float() - mean) / deviation

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents `[B, F, C, h, w]` to pixels `[B, 1 + 4 (F - 1), 3, H, W]` in [-1, 1]."""
        return self.streaming_decoder()(latents)

    def streaming_decoder(self) -> StreamingDecoder:
        """A function that decodes one video; each call takes the video's next latents and gives their pixel frames.

        diffusers has no public interface for this, but its decoder takes the cache as an argument: a list with a place
        for each causal convolution.
        """
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

        self.load()
        model = self._model
        mean, deviation = self._statistics()
        cache: list[Tensor | str | None] = [
            None for part in model.decoder.modules() if isinstance(part, WanCausalConv3d)
        ]
        started = False

        @torch.no_grad()
        def decode_next(latents: Tensor) -> Tensor:
            nonlocal started
            latents = (latents.to(self._device).float() * deviation + mean).to(self._dtype)
            frames = []
            for latent in rearrange(latents, "b f c h w -> b c f h w").split(1, dim=2):
                hidden = model.post_quant_conv(latent)
                frames.append(model.decoder(hidden, feat_cache=cache, feat_idx=[0], first_chunk=not started))
                started = True
            size = model.config.patch_size or 1
            pixels = rearrange(torch.cat(frames, dim=2), "b (c q p) t h w -> b t c (h p) (w q)", p=size, q=size)
            return pixels.float().clamp(-1, 1)

        return decode_next

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of a latent frame for pixel frames of `height` x `width`, multiples of the compression ratio."""
        ratio = self.spatial_compression_ratio
        if height % ratio or width % ratio:
            raise ValueError(f"expected frames with sides of multiples of {ratio}, got {height} x {width}")
        return self.latent_dim, height // ratio, width // ratio

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents, `[C, 1, 1]`."""
        config = self._model.config
        values = torch.tensor([config.latents_mean, config.latents_std], device=self._device)
        mean, deviation = values[..., None, None]
        return mean, deviation

    def _require_geometry(self, config: Any, path: Path) -> None:
        expected = (self.latent_dim, self.spatial_compression_ratio, self.temporal_compression_ratio)
        spatial = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
        found = (config.z_dim, spatial, 2 ** sum(config.temperal_downsample))
        if found != expected:
            raise ValueError(
                "latent_dim, spatial_compression_ratio and temporal_compression_ratio are configured as "
                f"{expected}, those of the VAE in {path} are {found}: correct the configuration or the path"
            )


def _read(path: Path, dtype: torch.dtype) -> Any:
    """The `AutoencoderKLWan` in a file or folder."""
    from diffusers import AutoencoderKLWan

    stored = read_tensors(path)
    names = {name: name for name in stored}
    if is_original(names):
        layout = original_layout(names)
        names = {to_diffusers_name(name, layout): name for name in names}
    tensors = {name: stored[original].to(dtype) for name, original in names.items()}
    try:
        config = config_beside(path, "_class_name", "AutoencoderKLWan") or config_of(tensors)
    except KeyError as error:
        raise ValueError(f"{path} holds no Wan VAE: it has no tensor {error}") from error
    with torch.device("meta"):
        model = AutoencoderKLWan.from_config(config)
    check_fits(model, tensors, str(path))
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)

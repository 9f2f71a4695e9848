"""The causal video VAE of Wan 2.1 and 2.2 (Wan 2025, arXiv:2503.20314): diffusers' `AutoencoderKLWan`, streaming."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from lightning_action.frozen.interfaces import CodecStream, Memory, frozen_pass
from lightning_action.frozen.model_files import wan_extra
from lightning_action.frozen.wan_codec import WanCodec
from lightning_action.frozen.wan_vae_format import config_of, is_original, original_layout, to_diffusers_name
from lightning_action.weights.fit import load_strictly
from lightning_action.weights.names import inside
from lightning_action.weights.release import config_beside
from lightning_action.weights.tensor_files import LazyTensors, read_tensors

# The first tensors of diffusers' files and of original ones.
_FIRST = ("encoder.conv_in.weight", "encoder.conv1.weight")


class WanVideoVAE(WanCodec):
    """Wan's own VAE; latents are `(z - mean) / deviation` of each channel, as the generators were trained on.

    It reads a diffusers folder, one file with diffusers' names, and the original `Wan2.1_VAE.pth` and `Wan2.2_VAE.pth`.
    """

    release_names = ("vae", "Wan2.1_VAE.pth", "Wan2.2_VAE.pth")

    @property
    def num_parameters_released(self) -> int:
        """Number of parameters of Wan 2.1's VAE, or of Wan 2.2's with its 48 channels."""
        return 704_688_668 if self.latent_dim == 48 else 126_892_531

    def encode(self, video: Tensor) -> Tensor:
        """Encode pixels `[B, 1 + 4 n, 3, H, W]` in [-1, 1] as normalised latents `[B, 1 + n, C, h, w]`, means.

        Raises:
            ValueError: The number of frames is not 1 + r (F - 1), or a side is no multiple of the compression ratio.
        """
        self.require_video(video)
        self.load()
        pixels = rearrange(video.to(self._device, self._dtype), "b t c h w -> b c t h w")
        with frozen_pass(self._device):
            means = self._model.encode(pixels).latent_dist.mode()
        return self._normalized(means)

    def encode_parts(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode a long video that comes in parts of 1 + 4 n, then 4 n pixel frames; yield the latents of each."""
        yield from map(self.streaming_encoder(), parts)

    def _encode_next(self, pixels: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        # As for decoding, diffusers has no public interface for this, but its encoder takes the cache as an argument.
        model, size = self._model, self._model.config.patch_size or 1
        numbers, cache = self.frames_of_latents(pixels, is_first=memory is None), _cache(model.encoder, memory)
        pattern = "b t c (h p) (w q) -> b (c q p) t h w"
        pixels = rearrange(pixels.to(self._device, self._dtype), pattern, p=size, q=size).contiguous()
        with frozen_pass(self._device):
            groups = pixels.split(numbers, dim=2)
            hidden = [model.encoder(group, feat_cache=cache, feat_idx=[0]) for group in groups]
            moments = model.quant_conv(torch.cat(hidden, dim=2))
        return self._normalized(moments.chunk(2, dim=1)[0]), dict(enumerate(cache))

    def streaming_decoder(self) -> CodecStream:
        """Return a function that decodes one video: each call takes the next latents and gives their pixel frames.

        diffusers has no public interface for this, but its decoder takes the cache as an argument: a list with a place
        for each causal convolution, whose entries it replaces and does not change.
        """
        self.load()
        return CodecStream(self._decode_next)

    def _decode_next(self, latents: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        self._require_latents(latents)
        model, cache, started = self._model, _cache(self._model.decoder, memory), memory is not None
        mean, deviation = self._statistics()
        latents = (latents.to(self._device).float() * deviation + mean).to(self._dtype)
        frames = []
        with frozen_pass(self._device):
            for latent in rearrange(latents, "b f c h w -> b c f h w").split(1, dim=2):
                hidden = model.post_quant_conv(latent)
                frames.append(model.decoder(hidden, feat_cache=cache, feat_idx=[0], first_chunk=not started))
                started = True
        size = model.config.patch_size or 1
        pixels = rearrange(torch.cat(frames, dim=2), "b (c q p) t h w -> b t c (h p) (w q)", p=size, q=size)
        return pixels.float().clamp(-1, 1), dict(enumerate(cache))

    def _normalized(self, means: Tensor) -> Tensor:
        mean, deviation = self._statistics()
        return (rearrange(means, "b c f h w -> b f c h w").float() - mean) / deviation

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents, `[C, 1, 1]` each."""
        config = self._model.config
        mean, deviation = torch.tensor([config.latents_mean, config.latents_std], device=self._device)[..., None, None]
        return mean, deviation

    def _read(self, path: Path) -> Any:
        with wan_extra():
            from diffusers import AutoencoderKLWan

        stored = inside(read_tensors(path).entries, _FIRST, str(path))
        entries = dict(stored)
        if is_original(stored):
            layout = original_layout(stored)
            entries = {to_diffusers_name(name, layout): entry for name, entry in stored.items()}
        try:
            config = config_beside(path, "_class_name", "AutoencoderKLWan") or config_of(entries)
        except KeyError as error:
            raise ValueError(f"{path} holds no Wan VAE: it has no tensor {error}") from error
        with torch.device("meta"):
            model = AutoencoderKLWan.from_config(config)
        for part in model.children():  # `to` of the whole warns of a list of modules that is empty
            part.to(self._dtype)
        spatial = 2 ** (len(model.config.dim_mult) - 1) * (model.config.patch_size or 1)
        self._require_geometry(model.config.z_dim, spatial, 2 ** sum(model.config.temperal_downsample), path)
        load_strictly(model, LazyTensors(entries), str(path))
        return model


def _cache(network: torch.nn.Module, memory: Memory | None) -> list[Any]:
    """Make the cache of the encoder or the decoder from what it held: a place for each causal convolution."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    if memory is not None:
        return list(memory.values())
    return [None for part in network.modules() if isinstance(part, WanCausalConv3d)]

"""The tiny video autoencoder TAEHV (github.com/madebyollin/taehv), a stand-in for Wan's VAE at a part of its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_action.frozen.interfaces import CodecStream, Memory, frozen_pass
from lightning_action.frozen.wan_codec import WanCodec
from lightning_action.weights.fit import Shaped, load_strictly
from lightning_action.weights.names import inside
from lightning_action.weights.tensor_files import LazyTensors, checkpoints_in, find_weights, read_tensors

_NUM_STAGES = 3
# Latent frames that go through the network together: more would take memory, and save little time.
_MOST_AT_ONCE = 4
_GIVES_CHANNELS = "decoder.1.weight"


class TinyWanVAE(WanCodec):
    """TAEHV: much faster than Wan's own VAE, and less true to detail. Train on latents of the latter.

    It reads `taew2_1.pth` (Wan 2.1) and `taew2_2.pth` (Wan 2.2), or safetensors files with the same names in them. A
    file may hold the decoder alone.
    """

    release_names = ("taew2_1.pth", "taew2_1.safetensors", "taew2_2.pth", "taew2_2.safetensors")

    def encode(self, video: Tensor) -> Tensor:
        """Encode pixels `[B, 1 + 4 n, 3, H, W]` in [-1, 1] as normalised latents `[B, 1 + n, C, h, w]`.

        A latent frame takes four pixel frames from its first on, so the last frame of the video is shown four times.

        Raises:
            ValueError: The number of frames is not 1 + r (F - 1), a side is no multiple of the compression ratio, or
                the file has no encoder.
        """
        self.require_video(video)
        self.load()
        model: TinyAutoencoder = self._model
        if model.encoder is None:
            raise ValueError("these weights hold a decoder alone: give a file with `encoder.` tensors, or another VAE")
        padded = torch.cat([video, video[:, -1:].expand(-1, self.temporal_compression_ratio - 1, -1, -1, -1)], dim=1)
        pixels = (padded.to(self._device, self._dtype) + 1) / 2
        seen: dict[int, Tensor] = {}
        num_frames = self.temporal_compression_ratio * _MOST_AT_ONCE
        groups = functional.pixel_unshuffle(pixels, model.patch_size).split(num_frames, dim=1)
        with frozen_pass(self._device):
            return torch.cat([_run(model.encoder, group, seen) for group in groups], dim=1).float().contiguous()

    def streaming_decoder(self) -> CodecStream:
        self.load()
        return CodecStream(self._decode_next)

    def _decode_next(self, latents: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        model: TinyAutoencoder = self._model
        self._require_latents(latents)
        seen = dict(memory or {})
        num_skipped = 0 if seen else self.temporal_compression_ratio - 1
        groups = latents.to(self._device, self._dtype).split(_MOST_AT_ONCE, dim=1)
        with frozen_pass(self._device):
            frames = torch.cat([_run(model.decoder, group, seen) for group in groups], dim=1)
        pixels = functional.pixel_shuffle(frames[:, num_skipped:], model.patch_size).contiguous()
        return pixels.float().clamp(0, 1) * 2 - 1, seen

    def _read(self, path: Path) -> nn.Module:
        if path.is_dir():
            path = self._file_in(path)
        tensors = LazyTensors(inside(read_tensors(path).entries, (_GIVES_CHANNELS,), str(path)))
        try:
            with torch.device("meta"):
                model = TinyAutoencoder(tensors.entries).to(self._dtype)
        except KeyError as error:
            raise ValueError(f"{path} holds no tiny autoencoder: it has no tensor {error}") from error
        self._require_geometry(model.latent_dim, model.spatial_ratio, model.temporal_ratio, path)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        load_strictly(model, tensors, str(path))
        return model

    def _file_in(self, folder: Path) -> Path:
        """Find the one decoder of a folder whose latents have the configured channels; else leave all to choose."""
        files = checkpoints_in(folder)
        fitting = [
            file
            for file in files
            for name, entry in read_tensors(file).entries.items()
            if f".{name}".endswith(f".{_GIVES_CHANNELS}") and entry.shape[1] == self.latent_dim
        ]
        return fitting[0] if len(fitting) == 1 else find_weights(folder)


class TinyAutoencoder(nn.Module):
    """Build the network of the sizes that its tensors show; layers stand where the file counts them.

    `_GrowTime` also does the upsampling that the file counts before it: behind its convolution of single pixels, which
    then has a quarter of them to do, it gives the same.
    """

    def __init__(self, tensors: Mapping[str, Shaped]) -> None:
        super().__init__()
        self.decoder = _decoder(tensors)
        self.encoder = _encoder(tensors) if "encoder.0.weight" in tensors else None
        pixel_channels = tensors[f"decoder.{len(self.decoder) - 1}.weight"].shape[0]
        self.patch_size = round((pixel_channels / 3) ** 0.5)
        self.latent_dim = tensors["decoder.1.weight"].shape[1]
        self.spatial_ratio = 2**_NUM_STAGES * self.patch_size
        self.temporal_ratio = math.prod(layer.stride for layer in self.decoder if isinstance(layer, _GrowTime))


def _decoder(tensors: Mapping[str, Shaped]) -> nn.Sequential:
    width, latent_dim = tensors["decoder.1.weight"].shape[:2]
    layers: list[nn.Module] = [_Squash(), _convolution(latent_dim, width), nn.ReLU()]
    for _ in range(_NUM_STAGES):
        layers += [_MemoryBlock(width), _MemoryBlock(width), _MemoryBlock(width), nn.Identity()]
        layers += [_GrowTime(width, tensors[f"decoder.{len(layers)}.conv.weight"].shape[0] // width)]
        next_width = tensors[f"decoder.{len(layers)}.weight"].shape[0]
        layers += [_convolution(width, next_width, bias=False)]
        width = next_width
    pixel_channels = tensors[f"decoder.{len(layers) + 1}.weight"].shape[0]
    return nn.Sequential(*layers, nn.ReLU(), _convolution(width, pixel_channels))


def _encoder(tensors: Mapping[str, Shaped]) -> nn.Sequential:
    width, pixel_channels = tensors["encoder.0.weight"].shape[:2]
    layers: list[nn.Module] = [_convolution(pixel_channels, width), nn.ReLU()]
    for _ in range(_NUM_STAGES):
        layers += [_PoolTime(width, tensors[f"encoder.{len(layers)}.conv.weight"].shape[1] // width)]
        layers += [_convolution(width, width, stride=2, bias=False)]
        layers += [_MemoryBlock(width), _MemoryBlock(width), _MemoryBlock(width)]
    latent_dim = tensors[f"encoder.{len(layers)}.weight"].shape[0]
    return nn.Sequential(*layers, _convolution(width, latent_dim))


def _run(layers: nn.Sequential, frames: Tensor, seen: dict[int, Tensor]) -> Tensor:
    """Take frames `[B, T, C, H, W]` through the layers, the channels of a pixel side by side in memory.

    Args:
        layers: Layers of the encoder or the decoder.
        frames: Frames that come next in the video.
        seen: Last input of each memory block, empty at the start of the video; it is brought up to date.
    """
    batch_size = len(frames)
    frames = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    for index, layer in enumerate(layers):
        if isinstance(layer, _MemoryBlock):
            video = _channels_last(frames).unflatten(0, (batch_size, -1))
            before = seen[index] if index in seen else torch.zeros_like(video[:, :1])
            seen[index] = video[:, -1:].clone()
            frames = layer(frames, _channels_first(torch.cat([before, video[:, :-1]], dim=1).flatten(0, 1)))
        else:
            frames = layer(frames)
    return frames.unflatten(0, (batch_size, -1))


def _channels_last(frames: Tensor) -> Tensor:
    """View frames `[N, C, H, W]` as they lie in memory, `[N, H, W, C]`: what joins and splits them keeps the order."""
    return frames.permute(0, 2, 3, 1)


def _channels_first(frames: Tensor) -> Tensor:
    """View frames `[N, H, W, C]` as layers take them, `[N, C, H, W]`."""
    return frames.permute(0, 3, 1, 2)


def _convolution(num_inputs: int, num_outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(num_inputs, num_outputs, 3, stride=stride, padding=1, bias=bias)


class _Squash(nn.Module):
    """Bounds latents to (-3, 3)."""

    def forward(self, frames: Tensor) -> Tensor:
        return 3 * torch.tanh(frames / 3)


class _MemoryBlock(nn.Module):
    """A residual block that sees each frame and the one before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _convolution(2 * width, width), nn.ReLU(), _convolution(width, width), nn.ReLU(), _convolution(width, width)
        )

    def forward(self, frames: Tensor, previous: Tensor) -> Tensor:
        return functional.relu(self.conv(torch.cat([frames, previous], dim=1)) + frames)


class _GrowTime(nn.Module):
    """Turns each frame into `stride` frames of twice the height and width."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        grown = _channels_last(self.conv(frames)).unflatten(3, (self.stride, -1)).movedim(3, 1).contiguous()
        return functional.interpolate(_channels_first(grown.flatten(0, 1)), scale_factor=2)


class _PoolTime(nn.Module):
    """Turns each `stride` frames into one."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        together = _channels_last(frames).unflatten(0, (-1, self.stride)).movedim(1, 3)
        return self.conv(_channels_first(together.flatten(3, 4)))

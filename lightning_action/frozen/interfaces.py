"""Interfaces that text encoders and video VAEs must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_action.weights.fingerprint import checksum, fingerprint
from lightning_action.weights.fit import load_strictly

StreamingDecoder = Callable[[Tensor], Tensor]
Memory = Mapping[int, Any]


class CodecStream:
    """One batch of videos on its way through a codec: each call takes what comes next, and remembers what it must.

    Args:
        step: Function of what comes next and of the memory of what came before, None at the start. It gives the result
            and the memory for the next call, and changes neither argument.
        memory: Memory to go on from; tensors in it have the batch in front.
    """

    def __init__(self, step: Callable[[Tensor, Memory | None], tuple[Tensor, Memory]], memory: Memory | None = None):
        self._step, self._memory = step, memory

    def __call__(self, x: Tensor) -> Tensor:
        """Take the next latents, or the next pixels, of the videos."""
        result, self._memory = self._step(x, self._memory)
        return result

    @property
    def memory(self) -> Memory | None:
        """Past, as far as it changes what comes; empty where only the start does, None before the start."""
        return self._memory

    def copy(self) -> CodecStream:
        """Return a stream that goes on from here by itself."""
        return CodecStream(self._step, self._memory)

    def select(self, videos: Sequence[int]) -> CodecStream:
        """Return a stream that goes on from here by itself with some of the videos; one may be there more than once."""
        memory = self._memory
        if memory is not None:
            memory = {key: value[list(videos)] if isinstance(value, Tensor) else value for key, value in memory.items()}
        return CodecStream(self._step, memory)


class FrozenPart:
    """A part whose weights lie in files. Its constructor reads none, so that a configuration can be checked without."""

    @property
    def num_parameters_released(self) -> int | None:
        """Parameters of the released network that is meant by the configuration; None where no files are read."""
        return None

    def load(self) -> None:
        """Read the weights, once; a part without files has nothing to do.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, or holds another network.
        """

    def checksum(self) -> str:
        """Compute SHA-256 over every bit of the weights, as they are computed with. Raises as `load`."""
        self.load()
        return checksum(self._weights())

    def _weights(self) -> Mapping[str, Tensor]:
        return self.state_dict() if isinstance(self, nn.Module) else {}


class TextEncoder(FrozenPart, ABC):
    """Encoder of prompts as vectors."""

    def tokenizer_checksums(self) -> Mapping[str, str]:
        """Compute SHA-256 of each file of its tokenizer, as `load` found it; none where there are no files."""
        return {}

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts as `[B, L, text_dim]`, zero past each prompt's end."""


class VideoCodec(FrozenPart, ABC):
    """Codec from pixels in [-1, 1] to latents, causal in time: `T = 1 + r (F - 1)` pixel frames, F latent frames."""

    latent_dim: int
    spatial_compression_ratio: int
    temporal_compression_ratio: int

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """Encode pixels `[B, T, 3, H, W]` as latents `[B, F, C, h, w]`."""

    def encode_parts(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode a long video that comes in parts of 1 + r n, then r n pixel frames; yield the latents of each.

        A codec that does not override this waits for all parts, and holds the whole video in memory.
        """
        yield self.encode(torch.cat(list(parts), dim=1))

    def streaming_encoder(self) -> CodecStream:
        """Return a function that encodes one video: each call takes the next pixels, as in `encode_parts`.

        That of a codec that does not override `_encode_next` takes a single part.
        """
        self.load()
        return CodecStream(self._encode_next)

    def _encode_next(self, pixels: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        if memory is not None:
            raise ValueError(
                f"{type(self).__name__} cannot encode a video part by part: give it whole, or use another codec"
            )
        return self.encode(pixels), {}

    def identity(self) -> str:
        """Name the class of the codec, with a fingerprint of its weights: what latents made by it depend on.

        Raises:
            FileNotFoundError: Weights that have not been read yet are missing.
        """
        self.load()
        return f"{type(self).__name__} {fingerprint(self._weights())[:16]}"

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents `[B, F, C, h, w]` to pixels `[B, T, 3, H, W]`."""
        return self.streaming_decoder()(latents)

    @abstractmethod
    def streaming_decoder(self) -> CodecStream:
        """Return a function that decodes one video: each call takes the next latents and gives their pixel frames."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Compute (C, h, w) of a latent frame for pixel frames of `height` x `width`.

        Raises:
            ValueError: A side is no multiple of the compression ratio.
        """
        ratio = self.spatial_compression_ratio
        if height % ratio or width % ratio:
            raise ValueError(f"expected frames with sides of multiples of {ratio}, got {height} x {width}")
        return self.latent_dim, height // ratio, width // ratio

    def require_video(self, video: Tensor) -> None:
        """Refuse pixels that have no latents. diffusers drops what is beyond 1 + 4 n frames without a word.

        Raises:
            ValueError: Shape, dtype, or number of frames is not what the codec takes.
        """
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

    def frames_of_latents(self, part: Tensor, is_first: bool) -> list[int]:
        """Say how many pixel frames each latent frame of a part of a video stands for, see `encode_parts`.

        Raises:
            ValueError: Shape, dtype, or number of frames is not what the codec takes.
        """
        ratio = self.temporal_compression_ratio
        self.require_video(part if is_first else part[:, ratio - 1 :])
        return [1] * is_first + [ratio] * ((part.shape[1] - is_first) // ratio)


class FittedCodec(nn.Module, VideoCodec):
    """A codec that is fitted to the training data, and therefore saved with the run.

    What is here is for one whose fit is the state of a module, and that encodes each latent frame by itself; one with a
    memory has its own `encode_parts` and `_encode_next`.
    """

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Flag that says whether the codec is fitted and can be used."""

    @abstractmethod
    def fit(self, video: Tensor) -> None:
        """Fit to training videos `[B, T, 3, H, W]`."""

    def fitted_tensors(self) -> dict[str, Tensor]:
        """Return all that `fit` has found."""
        return dict(self.state_dict())

    def load_fitted_tensors(self, tensors: Mapping[str, Any], source: str) -> None:
        """Take the tensors of another codec's `fitted_tensors`; `source` names it in errors.

        Raises:
            ValueError: The other codec has other sizes.
        """
        load_strictly(self, tensors, source)

    def _weights(self) -> Mapping[str, Tensor]:
        return self.fitted_tensors()

    def encode_parts(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode a long video that comes in parts, of which each is encoded by itself."""
        yield from map(self.streaming_encoder(), parts)

    def _encode_next(self, pixels: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        self.frames_of_latents(pixels, is_first=memory is None)
        if memory is None:
            return self.encode(pixels), {}
        return self.encode(torch.cat([pixels[:, :1], pixels], dim=1))[:, 1:], {}

    def _require_fitted(self) -> None:
        if not self.fitted:
            raise RuntimeError(
                "the codec is not fitted: call fit(video) with training videos, or load a run's checkpoint"
            )


@runtime_checkable
class CodecVideos(Protocol):
    """A DataModule that offers training videos to fit a codec to."""

    def codec_videos(self) -> Tensor:
        """Return videos `[N, T, 3, H, W]` in [-1, 1]."""
        ...


@runtime_checkable
class EncodedData(Protocol):
    """A DataModule whose batches hold `latents` and `text`, which frozen parts have made before."""

    def codec_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the codec, if it was fitted to data; else none."""
        ...

    def require_made_by(self, vae: VideoCodec, text_encoder: TextEncoder, schema: Any) -> None:
        """Refuse parts that would have made others.

        Args:
            vae: VAE of the model.
            text_encoder: Text encoder of the model.
            schema: Meaning of the model's actions; None for a model without.

        Raises:
            ValueError: Other parts made the data; the message says which.
        """
        ...


@runtime_checkable
class Movable(Protocol):
    """Object that can stand on another device: an `nn.Module`, or a part that decides itself what it moves."""

    def to(self, device: torch.device, /) -> object:
        """Compute on `device` from now on."""
        ...


@contextmanager
def frozen_pass(device: torch.device) -> Iterator[None]:
    """Compute without gradient, and in the network's own precision also where the trainer's autocast is on."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield

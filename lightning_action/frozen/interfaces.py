"""Interfaces that text encoders and video VAEs must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

StreamingDecoder = Callable[[Tensor], Tensor]


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


class TextEncoder(FrozenPart, ABC):
    """Encoder of prompts as vectors."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts as `[B, L, text_dim]`, zero past each prompt's end."""


class VideoCodec(FrozenPart, ABC):
    """Codec from pixels in [-1, 1] to latents, causal in time: `T = 1 + r (F - 1)` pixel frames, F latent frames."""

    temporal_compression_ratio: int

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """Encode pixels `[B, T, 3, H, W]` as latents `[B, F, C, h, w]`."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents `[B, F, C, h, w]` to pixels `[B, T, 3, H, W]`."""

    @abstractmethod
    def streaming_decoder(self) -> StreamingDecoder:
        """Return a function that decodes one video: each call takes the next latents and gives their pixel frames."""

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Compute (C, h, w) of a latent frame for pixel frames of `height` x `width`."""


class FittedCodec(VideoCodec):
    """A codec that is fitted to the training data, and therefore saved with the run."""

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Flag that says whether the codec is fitted and can be used."""

    @abstractmethod
    def fit(self, video: Tensor) -> None:
        """Fit to training videos `[B, T, 3, H, W]`."""

    @abstractmethod
    def fitted_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that `load_fitted_tensors` takes."""

    @abstractmethod
    def load_fitted_tensors(self, tensors: Mapping[str, Any], source: str) -> None:
        """Take the tensors of another codec of the same sizes; `source` names it in errors."""


@runtime_checkable
class CodecVideos(Protocol):
    """A DataModule that offers training videos to fit a codec to."""

    def codec_videos(self) -> Tensor:
        """Return videos `[N, T, 3, H, W]` in [-1, 1]."""
        ...


@runtime_checkable
class Movable(Protocol):
    """Anything that can stand on another device: an `nn.Module`, or a part that decides itself what it moves."""

    def to(self, device: torch.device, /) -> object:
        """Compute on `device` from now on."""
        ...


@contextmanager
def frozen_pass(device: torch.device) -> Iterator[None]:
    """Compute without gradient, and in the network's own precision also where the trainer's autocast is on."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield

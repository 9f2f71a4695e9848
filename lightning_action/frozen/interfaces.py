"""What a text encoder and a video VAE must offer."""

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
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or holds another network.
        """


class TextEncoder(FrozenPart, ABC):
    """Prompts to vectors."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """`[B, L, text_dim]`, zero past each prompt's end."""


class VideoCodec(FrozenPart, ABC):
    """Pixels in [-1, 1] to latents and back, causal in time: `T = 1 + r (F - 1)` pixel frames, F latent frames."""

    temporal_compression_ratio: int

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """`[B, T, 3, H, W]` to `[B, F, C, h, w]`."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """`[B, F, C, h, w]` to `[B, T, 3, H, W]`."""

    @abstractmethod
    def streaming_decoder(self) -> StreamingDecoder:
        """A function that decodes one video; each call takes the video's next latents and gives their pixel frames."""

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of a latent frame for pixel frames of `height` x `width`."""


class FittedCodec(VideoCodec):
    """A codec that is fitted to the training data, and therefore saved with the run."""

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether it can be used."""

    @abstractmethod
    def fit(self, video: Tensor) -> None:
        """Fit to training videos `[B, T, 3, H, W]`."""

    @abstractmethod
    def fitted_tensors(self) -> dict[str, Tensor]:
        """What `load_fitted_tensors` takes."""

    @abstractmethod
    def load_fitted_tensors(self, tensors: Mapping[str, Any], source: str) -> None:
        """Take what another codec of the same sizes was fitted to; `source` names it in errors."""


@runtime_checkable
class CodecVideos(Protocol):
    """A DataModule that offers training videos to fit a codec to."""

    def codec_videos(self) -> Tensor:
        """`[N, T, 3, H, W]` in [-1, 1]."""
        ...


@runtime_checkable
class Movable(Protocol):
    """Anything that can stand on another device: an `nn.Module`, or a part that decides itself what it moves."""

    def to(self, device: torch.device, /) -> object:
        """Compute on `device` from now on."""
        ...


@contextmanager
def frozen_pass(device: torch.device) -> Iterator[None]:
    """Without gradient, and in the network's own precision also where the trainer's autocast is on."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield

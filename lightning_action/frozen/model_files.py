"""Parts whose networks are read from files, when they are first needed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_action.frozen.interfaces import FrozenPart
from lightning_action.weights.release import locate, stamp


@contextmanager
def wan_extra() -> Iterator[None]:
    """Surround imports of diffusers, transformers and ftfy, and say how to install what is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: install the extra that brings it, `lightning_action[wan]`") from error


class PartInFiles(FrozenPart):
    """A frozen part that reads its network once, and computes in one dtype on the device that it was last moved to.

    Args:
        path: File or folder of the weights, or the folder of a release that holds them; None looks in the folder that
            the environment variable `LIGHTNING_ACTION_WEIGHTS` names.
        dtype: Name of the dtype of weights and computation.
    """

    release_names: ClassVar[tuple[str, ...]]

    def __init__(self, path: str | None, dtype: str) -> None:
        self.path = path
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._device = torch.device("cpu")
        self._model: Any = None
        # It is public, because records of predictions say it.
        self.files: list[list[str | int]] = []

    @torch.inference_mode(False)
    def load(self) -> None:
        if self._model is None:
            path = locate(self.path, self._preferred_names(), f"the weights of {type(self).__name__}")
            files = stamp(path)
            self._model = self._read(path).eval().requires_grad_(False)
            self.files = files
            self.to(self._device)

    @torch.inference_mode(False)
    def to(self, device: torch.device) -> None:
        """Compute on `device` from now on."""
        self._device = device
        if self._model is not None:
            self._model.to(device)

    def _weights(self) -> Mapping[str, Tensor]:
        return dict(self._model.state_dict())

    def _preferred_names(self) -> tuple[str, ...]:
        return self.release_names

    @abstractmethod
    def _read(self, path: Path) -> torch.nn.Module:
        """Load the network in a file or folder, in `self._dtype`."""

"""Safetensors files, whole or absent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_action.atomic import replacing
from lightning_action.weights.file_kinds import FileKind, kind_of
from lightning_action.weights.values import require_finite


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a file.

    Raises:
        FileNotFoundError: The path names no file.
        ValueError: The file is not a whole safetensors file.
    """
    return _read(path)[0]


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the strings stored beside the tensors. Raises as `read_safetensors`."""
    return _read(path)[1]


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file in one step: it is either whole or not there.

    Raises:
        ValueError: A tensor holds NaN or infinity.
    """
    require_finite(
        tensors, f"what was to be written to {path}", "nothing was written, go back to an earlier checkpoint"
    )
    with replacing(Path(path)) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, temporary, metadata)
        temporary.chmod(mode)  # what `save_file` makes, nobody else may read


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: give the path of a .safetensors file")
    kind = kind_of(path)
    if kind is not FileKind.SAFETENSORS:
        raise ValueError(f"{path} is {kind.value}: expected {FileKind.SAFETENSORS.value}")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): fetch or write it again") from error

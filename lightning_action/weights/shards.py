"""A folder of weights as Wan and diffusers release them: one file, or shards with an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

from lightning_action.weights.safetensors_files import write_safetensors
from lightning_action.weights.tensor_files import LazyTensors

_STEM = "diffusion_pytorch_model"


def write_shards(
    folder: Path, tensors: LazyTensors, metadata: Mapping[str, str], max_shard_bytes: int | None = None
) -> None:
    """Write `diffusion_pytorch_model.safetensors`, or several files and their index.

    Args:
        folder: Folder to write into, which must exist.
        tensors: Tensors, which are read as they are written, one file at a time.
        metadata: Strings that go into every file. `read_tensors` refuses shards that disagree in it, so say there whose
            they are.
        max_shard_bytes: Size at which a new file begins; None writes one.
    """
    shards = _shards(tensors, max_shard_bytes)
    files = {_file_name(number, len(shards)): names for number, names in enumerate(shards, start=1)}
    for file, names in files.items():
        write_safetensors(folder / file, {name: tensors[name] for name in names}, dict(metadata))
    if len(files) > 1:
        weight_map = {name: file for file, names in files.items() for name in names}
        index = {
            "metadata": {"total_size": sum(_num_bytes(tensors, name) for name in tensors)},
            "weight_map": weight_map,
        }
        (folder / f"{_STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _shards(tensors: LazyTensors, max_shard_bytes: int | None) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name in tensors:
        size = _num_bytes(tensors, name)
        if max_shard_bytes is not None and shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _num_bytes(tensors: LazyTensors, name: str) -> int:
    entry = tensors.entries[name]
    return prod(entry.shape) * entry.dtype.itemsize


def _file_name(number: int, of: int) -> str:
    return f"{_STEM}.safetensors" if of == 1 else f"{_STEM}-{number:05}-of-{of:05}.safetensors"

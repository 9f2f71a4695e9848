"""Every kind of file that holds tensors, as one mapping from names to tensors that are read when they are asked for."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_action.weights.names import few
from lightning_action.weights.safetensors_files import read_metadata, read_safetensors

# The pages of a mapped file that were touched stay in memory as long as the mapping does, so it is renewed this often.
_REMAP_BYTES = 2**26
_PICKLES = (".pt", ".pth", ".ckpt", ".bin")


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose shape is known and whose values are read when `read` is called."""

    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each read whenever it is asked for, so that a copy of them all is never held.

    Args:
        entries: what is read. Shapes can be looked at there at no cost.
    """

    def __init__(self, entries: Mapping[str, LazyTensor]) -> None:
        self.entries = entries

    def __getitem__(self, name: str) -> Tensor:
        return self.entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def below(self, name: str) -> LazyTensors:
        """Those of a part: `below("head")` has as `modulation` what is `head.modulation` here."""
        entries = self.entries.items()
        return LazyTensors({n.removeprefix(f"{name}."): entry for n, entry in entries if n.startswith(f"{name}.")})

    def __contains__(self, name: object) -> bool:
        return name in self.entries


def as_lazy(tensors: Mapping[str, Tensor]) -> LazyTensors:
    """Tensors that are in memory already."""
    return LazyTensors(
        {name: LazyTensor(t.shape, t.dtype, partial(tensors.__getitem__, name)) for name, t in tensors.items()}
    )


def read_tensors(path: str | Path) -> LazyTensors:
    """The tensors of a checkpoint under their names in the file, read lazily.

    Args:
        path: a `.safetensors` file; an index of shards (`*.safetensors.index.json`); a file of `torch.save`, which is
            read without running code from it, and whose nested dictionaries become dotted names
            (`generator.model.head.modulation`); or a folder with one of these.

    Raises:
        FileNotFoundError: there is nothing at that path, or a shard is missing.
        ValueError: a file is not whole or holds more than tensors, shards do not belong together, or a folder leaves
            open which of its files is meant.
    """
    path = find_weights(Path(path))
    if path.suffix == ".json":
        return _read_shards(path)
    return _read_file(path)


def read_values(file: Path) -> dict[str, Any]:
    """What a file of `find_weights` holds besides tensors: the strings of a header, or the plain values of a pickle.

    Raises:
        ValueError: it is not whole.
    """
    if file.suffix == ".json":
        file = file.parent / min(_weight_map(file).values())
    if file.suffix == ".safetensors":
        return dict(read_metadata(file))
    return {name: value for name, value in flattened(load_pickle(file)) if not isinstance(value, Tensor)}


def find_weights(path: Path) -> Path:
    """The file that a path means: itself, or the one checkpoint in a folder. Raises as `read_tensors`."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"no weights at {path}: give the path of a checkpoint file or of a folder with one")
    if any(path.glob("*.distcp")):
        raise ValueError(
            f"{path} is a sharded checkpoint: make a file of its generator with `python main.py export --config "
            f"config_fit.yaml --ckpt_path {path} --format wan --output generator.safetensors`; --ema takes averages"
        )
    for patterns in (("*.safetensors.index.json",), ("*.safetensors",), tuple(f"*{suffix}" for suffix in _PICKLES)):
        found = sorted(file for pattern in patterns for file in path.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"{path} holds {len(found)} checkpoints ({few([file.name for file in found])}) and no single index: "
                "give the path of one of them"
            )
    if (path / "transformer").is_dir():
        return find_weights(path / "transformer")
    held = few(sorted(child.name for child in path.iterdir()))
    raise FileNotFoundError(
        f"no checkpoint in {path}: expected a .safetensors file, an index of shards, or a .pt file; it holds "
        f"{held or 'nothing'}"
    )


class _MappedFile:
    def __init__(self, path: Path, open_file: Callable[[Path], dict[str, Tensor]]) -> None:
        self._path, self._open, self._modified = path, open_file, path.stat().st_mtime_ns
        self._tensors, self._handed_out = open_file(path), 0

    @property
    def entries(self) -> dict[str, LazyTensor]:
        return {name: LazyTensor(t.shape, t.dtype, partial(self._read, name)) for name, t in self._tensors.items()}

    def _read(self, name: str) -> Tensor:
        if self._handed_out > _REMAP_BYTES:
            del self._tensors
            if self._path.stat().st_mtime_ns != self._modified:
                raise RuntimeError(f"{self._path} changed while it was read: load it again when it is complete")
            self._tensors, self._handed_out = self._open(self._path), 0
        tensor = self._tensors[name]
        self._handed_out += tensor.nbytes
        return tensor


def _read_file(path: Path) -> LazyTensors:
    entries = _MappedFile(path, read_safetensors if path.suffix == ".safetensors" else _map_pickle).entries
    if not entries:
        raise ValueError(f"{path} holds no tensors by name: expected a state dict, or dictionaries that hold one")
    return LazyTensors(entries)


def load_pickle(path: Path) -> Any:
    """What a file of `torch.save` holds, mapped where it can be, if that is tensors and plain values alone.

    Raises:
        ValueError: it is not whole, or holds objects that run code when they are loaded.
    """
    try:
        # Only archives of the present format can be mapped; older files are read as a whole.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # torch's own message advises to turn its protection off.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        asks = f", it asks for {refused[1]}" if refused else ""
        raise ValueError(
            f"{path} cannot be read as tensors and plain values alone{asks}: it is cut off, or holds objects that run "
            "code when they are loaded. If you trust it, save its state dict alone"
        ) from error
    except Exception as error:  # torch reads what is left of a broken file as it comes, and fails in any way
        raise ValueError(
            f"{path} is not a whole checkpoint ({type(error).__name__}: {error}): fetch or write it again"
        ) from error


def _map_pickle(path: Path) -> dict[str, Tensor]:
    return {name: value for name, value in flattened(load_pickle(path)) if isinstance(value, Tensor)}


def flattened(content: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What nested dictionaries hold, under dotted names; nothing of what is no dictionary."""
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_shards(index: Path) -> LazyTensors:
    """The tensors of all shards, after a check that they are those that the index lists."""
    weight_map = _weight_map(index)
    entries: dict[str, LazyTensor] = {}
    metadata: dict[str, dict[str, str]] = {}
    for shard in sorted(set(weight_map.values())):
        path = index.parent / shard
        if not path.is_file():
            raise FileNotFoundError(f"shard {shard} of {index} is missing: fetch it, or write the checkpoint again")
        held = _MappedFile(path, read_safetensors).entries
        listed = {name for name, of in weight_map.items() if of == shard}
        if listed != held.keys():
            odd = sorted(listed ^ held.keys())
            raise ValueError(
                f"shard {shard} holds other tensors than {index} lists for it (first of {len(odd)}: {odd[0]}): are "
                "these shards of one checkpoint?"
            )
        entries |= held
        metadata[shard] = read_metadata(path)
    others = [name for name, told in metadata.items() if told != metadata[shard]]
    if others:
        raise ValueError(
            f"the shards of {index} are of several checkpoints: {few(others)} say {metadata[others[0]]} of themselves, "
            f"{shard} says {metadata[shard]}: fetch those of one"
        )
    return LazyTensors(entries)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is no index of shards: expected JSON with `weight_map`") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} lists no tensors in its `weight_map`")
    return weight_map

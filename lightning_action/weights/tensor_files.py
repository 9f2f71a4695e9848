"""Every kind of file that holds tensors, as one mapping from names to tensors that are read when they are asked for."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from lightning_action.weights.file_kinds import FileKind, kind_of
from lightning_action.weights.names import below, few
from lightning_action.weights.safetensors_files import read_metadata, read_safetensors
from lightning_action.weights.values import PLAIN_REMEDY

# The pages of a mapped file that were touched stay in memory as long as the mapping does, so it is renewed this often.
_REMAP_BYTES = 2**26
# Patterns of the files in a folder that may be a checkpoint, the preferred kind first.
_SUFFIXES = ((".safetensors", ".sft"), (".pt", ".pth", ".ckpt", ".bin"), (".gguf",))
# `model.safetensors.index.json`, with a variant (`fp16`) before the last suffix.
_INDEX = re.compile(r"(?P<stem>.+)(?P<suffix>\.[^.]+)\.index(\.(?P<variant>[^.]+))?\.json", re.IGNORECASE)
# Folders of a generator in a release; some releases have two, for high and for low noise.
_GENERATOR_FOLDERS = ("transformer", "transformer_*", "*high_noise*", "*low_noise*")
# Packages whose classes stand in files of quantized weights.
_QUANTIZERS = ("torchao.", "bitsandbytes.", "optimum.", "quanto.")


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose shape is known and whose values are read when `read` is called.

    `subclass` is the class of one that is more than a plain tensor, such as those of torchao; else empty.
    """

    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]
    subclass: str = ""


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each read whenever it is asked for, so that a copy of them all is never held.

    Args:
        entries: Tensors by name, not read yet. Shapes can be looked at there at no cost.
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
        """Return the tensors of a part: `below("head")` has as `modulation` what is `head.modulation` here."""
        return LazyTensors(below(self.entries, f"{name}."))

    def __contains__(self, name: object) -> bool:
        return name in self.entries


def as_lazy(tensors: Mapping[str, Tensor]) -> LazyTensors:
    """Wrap tensors that are in memory already."""
    return LazyTensors(
        {name: LazyTensor(t.shape, t.dtype, partial(tensors.__getitem__, name)) for name, t in tensors.items()}
    )


def read_tensors(path: str | Path) -> LazyTensors:
    """Read the tensors of a checkpoint under their names in the file, read lazily.

    Args:
        path: Path of a safetensors file; of an index of shards (`*.index.json`); of a file of `torch.save`, which is
            read without running code from it, and whose nested dictionaries become dotted names
            (`generator.model.head.modulation`); or of a folder with one of these. First bytes tell what a file is.

    Raises:
        FileNotFoundError: The path names no file or folder, or a shard is missing.
        ValueError: A file is not whole, is of another kind or holds more than tensors, shards do not belong together or
            lie outside the folder of their index, or a folder leaves open which of its files is meant.
    """
    path = find_weights(Path(path))
    if kind_of(path) is FileKind.INDEX:
        return _read_shards(path)
    entries = _mapped(path)
    if not entries:
        raise ValueError(f"{path} holds no tensors by name: expected a state dict, or dictionaries that hold one")
    return LazyTensors(entries)


def read_values(file: Path) -> dict[str, Any]:
    """Read what a file of `find_weights` holds besides tensors: strings of a header, or plain values of a pickle.

    Raises:
        ValueError: The file is not whole.
    """
    if has_header(file):
        return dict(read_header(file))
    file = _first_shard(file)
    return {name: value for name, value in flattened(load_pickle(file)) if not isinstance(value, Tensor)}


def read_header(path: str | Path) -> dict[str, str]:
    """Read the strings that a safetensors file, or the shards of an index, say of themselves; none in other files."""
    path = find_weights(Path(path))
    return read_metadata(_first_shard(path)) if has_header(path) else {}


def has_header(file: Path) -> bool:
    """Tell whether it is a safetensors file, or an index of such shards."""
    return kind_of(_first_shard(file)) is FileKind.SAFETENSORS


def _first_shard(file: Path) -> Path:
    return _shard_path(file, min(_weight_map(file).values())) if kind_of(file) is FileKind.INDEX else file


def find_weights(path: Path) -> Path:
    """Find the file that a path means: itself, or the one checkpoint in a folder. Raises as `read_tensors`."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"no weights at {path}: give the path of a checkpoint file or of a folder with one")
    if any(path.glob("*.distcp")):
        raise ValueError(
            f"{path} is a sharded checkpoint: make a file of its generator with `python main.py export --config "
            f"config_fit.yaml --ckpt_path {path} --format wan --output generator.safetensors`; --ema takes averages. "
            "torch's `dcp_to_torch_save` makes one, too"
        )
    found = checkpoints_in(path)
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{path} holds {len(found)} checkpoints ({few([file.name for file in found])}) and no single index: "
            "give the path of one of them"
        )
    folders = sorted({folder for name in _GENERATOR_FOLDERS for folder in path.glob(name) if _has_checkpoint(folder)})
    if len(folders) == 1:
        return find_weights(folders[0])
    if folders:
        raise ValueError(
            f"{path} holds {len(folders)} generators ({few([folder.name for folder in folders])}), such as experts for "
            f"high and for low noise: choose one by the path of its folder, for example {folders[0]}"
        )
    held = few(sorted(child.name for child in path.iterdir()))
    raise FileNotFoundError(
        f"no checkpoint in {path}: expected a .safetensors file, an index of shards, or a .pt file; it holds "
        f"{held or 'nothing'}"
    )


def _has_checkpoint(folder: Path) -> bool:
    return folder.is_dir() and bool(checkpoints_in(folder))


def checkpoints_in(folder: Path) -> list[Path]:
    """List the checkpoints of the preferred kind in a folder: indices, or files that are no shard of one.

    Of a checkpoint that is there in several variants (`model.safetensors` and `model.fp16.safetensors`) it is the one
    without.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    indices = {file: match for file in files if (match := _INDEX.fullmatch(file.name))}
    shards = {shard for index in indices for shard in _weight_map(index).values()}
    names = {file.name for file in files}
    for suffixes in _SUFFIXES:
        whole = [file for file in files if file.suffix.lower() in suffixes and file.name not in shards]
        whole = [file for file in whole if f"{Path(file.stem).stem}{file.suffix}" not in names - {file.name}]
        of_kind = {index: match for index, match in indices.items() if match["suffix"].lower() in suffixes}
        plain = [index for index, match in of_kind.items() if match["variant"] is None]
        if plain or (of_kind and not any(f"{m['stem']}{m['suffix']}" in names for m in of_kind.values())):
            return plain or list(of_kind)
        if whole:
            return whole
    return []


class _MappedFile:
    def __init__(self, path: Path, open_file: Callable[[Path], dict[str, Tensor]]) -> None:
        self._path, self._open, self._modified = path, open_file, path.stat().st_mtime_ns
        self._tensors, self._handed_out = open_file(path), 0

    @property
    def entries(self) -> dict[str, LazyTensor]:
        return {
            name: LazyTensor(t.shape, t.dtype, partial(self._read, name), _subclass(t))
            for name, t in self._tensors.items()
        }

    def _read(self, name: str) -> Tensor:
        if self._handed_out > _REMAP_BYTES:
            del self._tensors
            if self._path.stat().st_mtime_ns != self._modified:
                raise RuntimeError(f"{self._path} changed while it was read: load it again when it is complete")
            self._tensors, self._handed_out = self._open(self._path), 0
        tensor = self._tensors[name]
        self._handed_out += tensor.nbytes
        return tensor


def _mapped(path: Path) -> dict[str, LazyTensor]:
    is_safetensors = kind_of(path) is FileKind.SAFETENSORS
    return _MappedFile(path, read_safetensors if is_safetensors else _map_pickle).entries


def _subclass(tensor: Tensor) -> str:
    plain = type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
    return "" if plain else f"{type(tensor).__module__}.{type(tensor).__qualname__}"


def load_pickle(path: Path) -> Any:
    """Read what a file of `torch.save` holds, mapped where it can be, if that is tensors and plain values alone.

    Raises:
        ValueError: The file is not whole, or holds objects that run code when they are loaded.
    """
    try:
        # torch takes the name's word for what the file is, unless it is given the file itself.
        if path.suffix.lower() == ".safetensors":
            return torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
        # Only archives of the present format can be mapped; older files are read as a whole.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # torch's own message advises to turn its protection off.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused and refused[1].startswith(_QUANTIZERS):
            raise ValueError(f"{path} is quantized (it holds {refused[1]}): {PLAIN_REMEDY}") from error
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
    tensors = {name: value for name, value in flattened(load_pickle(path)) if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.is_nested or tensor.layout != torch.strided:
            kind = "without values, on the meta device" if tensor.is_meta else "sparse or nested"
            raise ValueError(f"{name} in {path} is a tensor {kind}: save it as an ordinary one, with its values")
    return tensors


def flattened(content: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten what nested dictionaries hold, under dotted names; nothing of what is no dictionary."""
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_shards(index: Path) -> LazyTensors:
    """Join the tensors of all shards, after a check that they are those that the index lists."""
    weight_map = _weight_map(index)
    entries: dict[str, LazyTensor] = {}
    metadata: dict[str, dict[str, str]] = {}
    for shard in sorted(set(weight_map.values())):
        path = _shard_path(index, shard)
        held = _mapped(path)
        listed = {name for name, of in weight_map.items() if of == shard}
        if listed != held.keys():
            odd = sorted(listed ^ held.keys())
            raise ValueError(
                f"shard {shard} holds other tensors than {index} lists for it (first of {len(odd)}: {odd[0]}): are "
                "these shards of one checkpoint?"
            )
        entries |= held
        metadata[shard] = read_metadata(path) if kind_of(path) is FileKind.SAFETENSORS else {}
    others = [name for name, told in metadata.items() if told != metadata[shard]]
    if others:
        raise ValueError(
            f"the shards of {index} are of several checkpoints: {few(others)} say {metadata[others[0]]} of themselves, "
            f"{shard} says {metadata[shard]}: fetch those of one"
        )
    return LazyTensors(entries)


def _shard_path(index: Path, shard: str) -> Path:
    """Find a shard: in the folder of its index, or as that in the folder that a link leads to."""
    path = index.parent / shard
    if not path.is_file():
        raise FileNotFoundError(f"shard {shard} of {index} is missing: fetch it, or write the checkpoint again")
    # In the cache of Hugging Face's hub, index and shards are links into one folder.
    if not any(path.resolve().is_relative_to(folder) for folder in (index.parent.resolve(), index.resolve().parent)):
        raise ValueError(
            f"shard {shard} of {index} is a link to {path.resolve()}, out of the folder of the index: put the shards "
            "beside their index"
        )
    return path


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of shards: expected JSON with `weight_map`") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} lists no tensors in its `weight_map`")
    outside = [shard for shard in weight_map.values() if not isinstance(shard, str) or not _is_inside(shard)]
    if outside:
        raise ValueError(
            f"{index} points to {outside[0]!r}: expected the names of files in its own folder. Files outside are not "
            "read, correct the index or fetch it again"
        )
    return weight_map


def _is_inside(name: str) -> bool:
    """Tell whether a name stays below its folder, on any system."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not set(name) & set("\\:\0")

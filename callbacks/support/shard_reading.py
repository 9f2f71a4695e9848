"""Folders of torch's distributed checkpoints, read without running code from them."""

from __future__ import annotations

import io
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import metadata as format_of_metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed

_METADATA_FILE = ".metadata"
_PATHS = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}


class _Refused(pickle.UnpicklingError):
    pass


def _memory_format(kind: object, name: str) -> Any:
    """Look up what Python 3.11.0 to 3.11.3 pickle as `getattr` of an enumeration and a name, and nothing else."""
    if kind is not format_of_metadata._MEM_FORMAT_ENCODING:
        raise _Refused("builtins.getattr")
    return format_of_metadata._MEM_FORMAT_ENCODING[name]


# Classes that torch writes into `.metadata`, by the names under which pickle asks for it.
_KNOWN: dict[tuple[str, str], Any] = {
    **{
        (format_of_metadata.__name__, name): getattr(format_of_metadata, name)
        for name in (
            *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
            *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
        )
    },
    (_StorageInfo.__module__, "_StorageInfo"): _StorageInfo,
    ("builtins", "getattr"): _memory_format,
    ("collections", "OrderedDict"): OrderedDict,
    # The module is another one since Python 3.13.
    **{(module, name): path for module in ("pathlib", "pathlib._local") for name, path in _PATHS.items()},
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    **{("torch", name): kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)},
}


def load_shards(state: dict[str, Any], folder: str | Path, no_dist: bool = False) -> None:
    """Fill a state, in place, from a folder of shards; what is no tensor there may be plain values alone.

    Args:
        state: State as nested dictionaries of tensors, sharded or whole, and of values.
        folder: Folder of the checkpoint.
        no_dist: True if this process reads alone, although others may be there.

    Raises:
        FileNotFoundError: `folder` is no folder of shards.
        ValueError: The folder is not whole, holds objects that run code when loaded, or does not fit the state.
    """
    reader = _Reader(folder, read_shard_metadata(folder))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # that is what `no_dist` asks for
            load_distributed(state, storage_reader=reader, planner=_Planner(), no_dist=no_dist)
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        if isinstance(cause, pickle.UnpicklingError):
            # torch's own message advises to turn its protection off.
            raise ValueError(
                f"{folder} holds no plain tensor where one is expected: it is damaged, or would run code when it is "
                "loaded"
            ) from error
        raise ValueError(f"{folder} cannot be read ({type(cause).__name__}: {cause})") from error


def read_shard_metadata(folder: str | Path) -> Metadata:
    """Read the metadata of a folder of shards.

    Raises:
        FileNotFoundError: The folder has no `.metadata`.
        ValueError: The file `.metadata` is not whole, asks for something that torch does not write, or points outside
            the folder.
    """
    path = Path(folder) / _METADATA_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no whole checkpoint: it has no {_METADATA_FILE}")
    try:
        metadata = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except _Refused as error:
        raise ValueError(
            f"{path} asks for {error}, which torch does not write there: it would run code when it is loaded. Take "
            "the checkpoint from somebody you trust"
        ) from error
    except Exception as error:  # pickle reads what is left of a broken file as it comes, and fails in any way
        raise ValueError(f"{path} is not whole ({type(error).__name__}: {error}): copy the folder again") from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise ValueError(f"{path} is not the metadata of a checkpoint, but {type(metadata).__name__}")
    for info in metadata.storage_data.values():
        if not isinstance(info, _StorageInfo) or not _is_file_name(info.relative_path):
            raise ValueError(f"{path} points outside its folder, or at nothing: {info}")
    return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise _Refused(f"{module}.{name}")
        return _KNOWN[module, name]


class _Reader(FileSystemReader):
    """Reads with metadata that was read already, where torch would unpickle it."""

    def __init__(self, folder: str | Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return self._metadata


class _Planner(DefaultLoadPlanner):
    """Takes plain values, where torch would unpickle anything."""

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        for name, value in self.state_dict.items():
            found = self.metadata.state_dict_metadata.get(name)
            if isinstance(value, Tensor) and isinstance(found, BytesStorageMetadata):
                raise ValueError(f"{name} is no tensor there")
        return super().create_local_plan()

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        try:
            content = torch.load(value, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{name} is no plain value: it would run code when it is loaded") from error
        # What the base class reads without protection is what was just written here.
        plain = io.BytesIO()
        torch.save(content, plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


def _is_file_name(path: object) -> bool:
    return isinstance(path, str) and path not in ("", ".", "..") and not {"/", "\\", "\0"} & set(path)

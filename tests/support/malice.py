"""Files that run code where they are read without care; each touches a file that tells so."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex


class Touches:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def poison_metadata(folder: Path, marker: Path) -> None:
    """All of `.metadata`."""
    (folder / ".metadata").write_bytes(pickle.dumps(Touches(marker)))


def poison_metadata_inside(folder: Path, marker: Path) -> None:
    """Somewhere in `.metadata`, which otherwise is what it was."""
    metadata = FileSystemReader(folder).read_metadata()
    metadata.planner_data = Touches(marker)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def poison_tensors(folder: Path, marker: Path, prefix: str = "") -> None:
    """Every tensor whose name begins so is said to be an object that lies in a file of its own."""
    metadata = FileSystemReader(folder).read_metadata()
    torch.save(Touches(marker), folder / "__9_0.distcp")
    info = next(iter(metadata.storage_data.values()))
    info = type(info)("__9_0.distcp", 0, (folder / "__9_0.distcp").stat().st_size)
    poisoned = [name for name in metadata.state_dict_metadata if name.startswith(prefix)]
    metadata.storage_data |= {MetadataIndex(name): info for name in poisoned}
    metadata.state_dict_metadata |= dict.fromkeys(poisoned, BytesStorageMetadata())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


POISONS = [poison_metadata, poison_metadata_inside, poison_tensors]

"""Records of written predictions: which are whole, and what they were made from."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from .files import TEMPORARY, write_bytes

Record: TypeAlias = dict[str, Any]
"""The content of a sample's json; see `PredictionWriter`."""


class FolderClaim:
    """The right of one prediction to write into a folder; it ends with the process, however that ends.

    What predictions that were killed have left half written there is removed.

    Raises:
        MisconfigurationException: Another prediction has the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._file = self._path.open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise MisconfigurationException(
                f"another prediction is writing to {folder}: wait for it, or give another folder"
            ) from error
        except OSError:
            return  # on file systems without locks nothing says that nobody else writes there
        for left in folder.glob(TEMPORARY):
            left.unlink()

    def release(self) -> None:
        """Let others write."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def whole_records(folder: Path) -> list[Record]:
    """The records of all samples in a folder whose files are there and have the sizes that the record says."""
    records = []
    for path in sorted(folder.glob("[0-9]*.json")):
        # A file that a failing machine has cut off is no record.
        with suppress(ValueError):
            records.append(read_record(path))
    return [record for record in records if _is_whole(folder, record)]


def read_record(path: Path) -> Record:
    """A record, as it was written by `write_record`."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_record(path: Path, record: Record) -> None:
    """Write a record with a line for each entry, to be read by people; the file is replaced as a whole."""
    # `indent` would give every number of the action rows a line of its own.
    lines = [f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in record.items()]
    write_bytes(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Content of a dict after it was written to a file and read again; tensors become lists.

    Raises:
        TypeError: JSON cannot hold the value.
    """
    lists = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in content.items()}
    return json.loads(json.dumps(lists))


def identify_checkpoint(path: str | Path | None) -> dict[str, Any] | None:
    """Marks that tell a checkpoint, a file or a folder, from others: `path`, `bytes`, and `modified` (ns since 1970).

    None for no checkpoint, and for one that is not on this machine's disks, of which nothing is known.
    """
    if path is None or not Path(path).exists():
        return None
    absolute = Path(path).resolve()
    stats = [file.stat() for file in (absolute, *absolute.rglob("*")) if file.is_file()]
    return {
        "path": str(absolute),
        "bytes": sum(stat.st_size for stat in stats),
        "modified": max((stat.st_mtime_ns for stat in stats), default=0),
    }


def _is_whole(folder: Path, record: Record) -> bool:
    files = {kind: folder / name for kind, name in record["files"].items()}
    # Records of earlier versions know no sizes.
    sizes = record.get("sizes", {})
    return all(file.is_file() and file.stat().st_size == sizes.get(kind) for kind, file in files.items())

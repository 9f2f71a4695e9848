"""Files of networks as they are released: where they lie, and what stands beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RELEASE_VARIABLE = "LIGHTNING_ACTION_WEIGHTS"


def find_release_file(names: Sequence[str], what: str) -> Path:
    """Find the first of `names` in the folder that the environment variable `LIGHTNING_ACTION_WEIGHTS` names.

    Args:
        names: Names of files or folders relative to that folder, the preferred one first.
        what: Description of them for the message.

    Raises:
        FileNotFoundError: The variable is not set, is no folder, or none of the names is there.
    """
    folder = os.environ.get(RELEASE_VARIABLE)
    if not folder:
        raise FileNotFoundError(
            f"no path was given for {what}: give one, or set {RELEASE_VARIABLE} to the folder of an unpacked Wan "
            f"release, which holds {' or '.join(names)}"
        )
    for name in names:
        path = Path(folder) / name
        if path.exists():
            return path
    raise FileNotFoundError(
        f"found no {' or '.join(names)} ({what}) in {folder!r}, which {RELEASE_VARIABLE} names: correct it, or give "
        "the path itself"
    )


def locate(path: str | None, names: Sequence[str], what: str) -> Path:
    """Find the files of a network.

    Args:
        path: File or folder of the network, or the folder of a release that has it under one of `names`; None takes the
            folder that the environment variable `LIGHTNING_ACTION_WEIGHTS` names.
        names: Names of its files and folders in a release, the preferred one first.
        what: Description of the network for the message.

    Raises:
        FileNotFoundError: No path was given, and no file was found.
    """
    if path is None:
        return find_release_file(names, what)
    return next((Path(path) / name for name in names if (Path(path) / name).exists()), Path(path))


def stamp(path: Path) -> list[list[str | int]]:
    """Describe a file, or the files of a folder, so that changed ones are told from them without reading any.

    A description is name, size in bytes and time of change in ns.
    """
    files = [file for file in (path, *sorted(path.rglob("*"))) if file.is_file()]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def config_beside(weights: Path, key: str, value: str) -> dict[str, Any] | None:
    """Read `config.json` in the folder of `weights`; None without one, or if its `key` is not `value`.

    Raises:
        ValueError: The file is no JSON object.
    """
    path = (weights if weights.is_dir() else weights.parent) / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): fetch it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds {config!r} where a network's sizes are expected: fetch it again")
    return config if config.get(key) == value else None

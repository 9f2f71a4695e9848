"""Files of networks that diffusers and transformers read as well: where they lie and what their tensors are called."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_action.weights.release import find_release_file


@contextmanager
def wan_extra() -> Iterator[None]:
    """Surround imports of diffusers, transformers and ftfy, and say how to install what is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: install the extra that brings it, `lightning_action[wan]`") from error


def locate(path: str | None, names: Sequence[str], what: str) -> Path:
    """Find the files of a network.

    Args:
        path: File or folder of the network, or the folder of a release that has it under one of `names`; None takes the
            folder that the environment variable `LIGHTNING_ACTION_WEIGHTS` names.
        names: Names of its files and folders in a release, the preferred one first.
        what: Description of the network for the message.

    Raises:
        FileNotFoundError: No path was given, and none was found.
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


def renamed(name: str, rows: Iterable[tuple[str, str]]) -> str:
    """Rename what begins with the first of a row, so that it begins with the second; keep all other names."""
    for old, new in rows:
        if name.startswith(old):
            return new + name[len(old) :]
    return name

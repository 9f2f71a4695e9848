"""Files that are whole or absent."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def replacing(path: Path, move: Callable[[Path, Path], None] | None = None) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends, and vanishes if it fails.

    Args:
        path: of a file; a folder there is an error, and stays.
        move: from the temporary path to `path`, in place of `os.replace`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by `tempfile`, whose files nobody else may read.
    temporary = path.with_name(f".{path.name}-{uuid4().hex}")
    try:
        yield temporary
        (move or os.replace)(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def move_into_place(temporary: Path, path: Path) -> None:
    """Replace what stands at `path`; where folders are involved that takes two steps, so the old one is set aside."""
    old = set_aside(path)
    if path.is_dir() or (path.exists() and temporary.is_dir()):
        remove(old)
        os.replace(path, old)
    os.replace(temporary, path)
    remove(old)


def set_aside(path: Path) -> Path:
    """Where `move_into_place` leaves what stood at `path`, if it is killed between its two steps."""
    return path.with_name(f".{path.name}-old")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_new_folder(path: Path) -> None:
    """Refuse a folder that holds something already.

    Raises:
        FileExistsError: it does, or `path` is a file.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FileExistsError(f"{path} is there already: give the path of a new folder, or empty it")


@contextmanager
def creating_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes it when the block ends, and vanishes if it fails.

    Raises:
        FileExistsError: as `require_new_folder`, unless what is there is to be overwritten.
    """
    if not overwrite:
        require_new_folder(path)
    temporary = path.with_name(f".{path.name}-{uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        (move_into_place if overwrite else os.replace)(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""Files that are whole or absent."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def replacing(path: Path, move: Callable[[Path, Path], None] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends, and vanishes if it fails.

    What processes that were killed have left there is removed.

    Args:
        path: Path of a file; a folder there is an error, and stays.
        move: Function that moves the temporary path to `path`, in place of `os.replace`.

    Raises:
        OSError: The disk is full, or no larger file is allowed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    # Not by `tempfile`, whose files nobody else may read.
    temporary = path.with_name(f".{path.name}-{uuid4().hex}")
    temporary.touch()
    try:
        with _claimed(temporary), naming_the_disk(path, temporary):
            yield temporary
            (move or os.replace)(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming_the_disk(path: Path, temporary: Path) -> Iterator[None]:
    """Say which disk is full, where a library only says that a number of bytes is not what it should be.

    Args:
        path: Path that is to be written.
        temporary: Place where it is written first, a file or a folder.

    Raises:
        OSError: The block failed, and not one byte more can be written to the folder.
    """
    try:
        yield
    except Exception as error:
        if not temporary.exists():
            raise
        try:
            _write_more(temporary)
        except OSError as cause:
            disk = next(folder for folder in path.resolve().parents if folder.is_mount())
            free = shutil.disk_usage(disk).free / 2**20
            raise OSError(
                f"cannot write {path}: {cause.strerror} ({free:.0f} MiB are free on the disk at {disk}). Nothing was "
                "replaced; make room, or write elsewhere"
            ) from error
        raise


def _write_more(path: Path) -> None:
    """Add a mebibyte to a file, or to a new file in a folder: so much may be left where no more fits."""
    with (path / ".more" if path.is_dir() else path).open("ab") as file:
        file.write(bytes(2**20))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _claimed(temporary: Path) -> Iterator[None]:
    """Mark it as being written by a process that lives: the lock ends with it, however it ends."""
    with _opened(temporary) as descriptor:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_abandoned(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}-*"):
        if re.fullmatch("[0-9a-f]{32}", left.name.rpartition("-")[2]):
            # Somebody may still write it, or be faster; and where there are no locks, nothing says that nobody does.
            with suppress(OSError), _opened(left) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(left)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def move_into_place(temporary: Path, path: Path) -> None:
    """Replace what stands at `path`; where folders are involved that takes two steps, so the old one is set aside."""
    old = set_aside(path)
    if path.is_dir() or (path.exists() and temporary.is_dir()):
        remove(old)
        os.replace(path, old)
    os.replace(temporary, path)
    remove(old)


def set_aside(path: Path) -> Path:
    """Return the place where `move_into_place` leaves what stood at `path`, if it is killed between its two steps."""
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
        FileExistsError: The folder holds something, or `path` is a file.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FileExistsError(f"{path} is there already: give the path of a new folder, or empty it")


def require_writable(folder: Path, option: str) -> None:
    """See that a file can be written in a folder, or where it would be made; nothing is left.

    Args:
        folder: The folder.
        option: Name of the option that gives it, for the error.

    Raises:
        OSError: The folder, or the one where it would be made, takes no file.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise type(error)(
            f"cannot write to {str(folder)!r} ({error.strerror}): give a folder that you may write to with {option}"
        ) from error


@contextmanager
def creating_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes it when the block ends, and vanishes if it fails.

    Raises:
        FileExistsError: The folder holds something that is not to be overwritten, or `path` is a file.
        OSError: The disk is full, or no larger file is allowed.
    """
    if not overwrite:
        require_new_folder(path)
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name}-{uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        with _claimed(temporary), naming_the_disk(path, temporary):
            yield temporary
            (move_into_place if overwrite else os.replace)(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

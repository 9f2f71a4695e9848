"""Files that are whole or absent, and the folders they go into."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from lightning.fabric.utilities.exceptions import MisconfigurationException

TEMPORARY = ".*-" + "[0-9a-f]" * 32 + ".*"
"""Matches the names of what `replacing` gives, which a process that is killed leaves behind."""


def make_folder(folder: Path, owner: str) -> None:
    """Create a folder, if needed, and make sure that files can be written into it.

    Raises:
        MisconfigurationException: The folder cannot be made or written into; the message names its `owner`, a callback
            and its argument, and says why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise MisconfigurationException(f"{owner} must be a folder that can be written to: {error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, which takes the place of `path` if all goes well and vanishes if not."""
    # It lies in the same folder, or the replacement would not be atomic. Nobody else may read those of `tempfile`.
    temporary = path.with_name(f".{path.stem}-{uuid4().hex}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, which is replaced as a whole."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)

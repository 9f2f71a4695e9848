"""Files of a folder on local disk, or copied there from any address that fsspec knows."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path, PurePosixPath
from typing import Any

from lightning_action.atomic import replacing


class LocalFolder:
    """A folder whose files are on local disk once they are asked for.

    Copies are whole or absent, and processes that want the same file copy it once.

    Args:
        address: Path of a folder, or an address such as `s3://bucket/folder`, which fsspec reads.
        cache_dir: Folder that remote files are copied to; None takes `lightning_action` in the user's cache.
        version: Bytes that tell the folder from one that stood at the same address before: its copies lie apart.

    Raises:
        FileNotFoundError: The path names no folder.
    """

    def __init__(self, address: str, cache_dir: str | None = None, version: bytes = b"") -> None:
        self.address = address.rstrip("/") or "/"
        self.is_remote = "://" in address and not address.startswith("file://")
        if self.is_remote:
            key = hashlib.sha256(self.address.encode() + version).hexdigest()[:16]
            self.root = (_default_cache() if cache_dir is None else Path(cache_dir).expanduser()) / key
        else:
            self.root = Path(address.removeprefix("file://")).expanduser()
            if not self.root.is_dir():
                raise FileNotFoundError(f"no folder at {self.root}: give the folder that holds the data")

    def read(self, relative: str) -> bytes:
        """Read a file as it is now at its address; nothing is copied. Raises as `path`."""
        if not self.is_remote:
            return self.path(relative).read_bytes()
        self._require_inside(relative)
        system, root = self._system()
        try:
            content: bytes = system.cat_file(f"{root}/{relative}")
        except FileNotFoundError as error:
            raise self._missing(relative) from error
        return content

    def exists(self, relative: str) -> bool:
        """Tell whether the folder has a file."""
        if (self.root / relative).is_file() or not self.is_remote:
            return (self.root / relative).is_file()
        system, root = self._system()
        return bool(system.isfile(f"{root}/{relative}"))

    def path(self, relative: str) -> Path:
        """Return a file's place on local disk, where it is copied if it is remote and not yet there.

        Raises:
            FileNotFoundError: The folder has no such file.
            ValueError: The path leads out of the folder.
        """
        self._require_inside(relative)
        path = self.root / relative
        if not path.is_file():
            if not self.is_remote:
                raise self._missing(relative)
            self._copy(relative, path)
        return path

    def list(self, pattern: str) -> list[str]:
        """Return the files that match a glob pattern, relative to the folder, in order."""
        if not self.is_remote:
            files = (path for path in self.root.glob(pattern) if path.is_file())
            return sorted(path.relative_to(self.root).as_posix() for path in files)
        system, root = self._system()
        found = system.glob(f"{root}/{pattern}", detail=True)
        return sorted(os.path.relpath(name, root) for name, info in found.items() if info["type"] == "file")

    def _copy(self, relative: str, path: Path) -> None:
        system, root = self._system()
        if not system.isfile(f"{root}/{relative}"):
            raise self._missing(relative)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():
                with replacing(path) as temporary:
                    system.get_file(f"{root}/{relative}", str(temporary))

    def _require_inside(self, relative: str) -> None:
        parts = PurePosixPath(relative)
        if parts.is_absolute() or ".." in parts.parts or "\\" in relative or not parts.parts:
            raise ValueError(f"{relative!r} leads out of the data set {self.address}: its index is broken or forged")

    def _missing(self, relative: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"the data set {self.address} has no file {relative}: copy it again, or correct what names it"
        )

    def _system(self) -> tuple[Any, str]:
        """Connect; fsspec keeps connections itself, for each process its own."""
        import fsspec

        system, root = fsspec.url_to_fs(self.address)
        return system, root


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lightning_action"

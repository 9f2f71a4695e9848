"""Files of a data set on local disk, or copied there from any address that fsspec knows."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath

from lightning_action.atomic import replacing


class LocalFolder:
    """A folder whose files are on local disk once they are asked for.

    Args:
        address: Path of a folder, or an address such as `s3://bucket/folder`, which fsspec reads.
        cache_dir: Folder that remote files are copied to, each once; None takes `~/.cache/lightning_action`.

    Raises:
        FileNotFoundError: There is no such folder.
    """

    def __init__(self, address: str, cache_dir: str | None = None) -> None:
        self.address = address.rstrip("/") or "/"
        self.is_remote = "://" in address and not address.startswith("file://")
        if self.is_remote:
            cache = Path(cache_dir or Path.home() / ".cache" / "lightning_action").expanduser()
            self.root = cache / hashlib.sha256(self.address.encode()).hexdigest()[:16]
        else:
            self.root = Path(address.removeprefix("file://")).expanduser()
            if not self.root.is_dir():
                raise FileNotFoundError(f"no folder at {self.root}: give the folder that holds the data set")

    def path(self, relative: str) -> Path:
        """Return a file's place on local disk, where it is copied if it is remote and not yet there.

        Raises:
            FileNotFoundError: The folder has no such file.
            ValueError: The path leads out of the folder.
        """
        parts = PurePosixPath(relative)
        if parts.is_absolute() or ".." in parts.parts or "\\" in relative or not parts.parts:
            raise ValueError(f"{relative!r} leads out of the data set {self.address}: its index is broken or forged")
        path = self.root / parts
        if self.is_remote and not path.is_file():
            self._copy(relative, path)
        if not path.is_file():
            raise FileNotFoundError(f"the data set {self.address} has no file {relative}")
        return path

    def list(self, pattern: str) -> list[str]:
        """Return the files that match a glob pattern, relative to the folder, in order."""
        if not self.is_remote:
            files = (path for path in self.root.glob(pattern) if path.is_file())
            return sorted(path.relative_to(self.root).as_posix() for path in files)
        import fsspec

        system, root = fsspec.url_to_fs(self.address)
        found = system.glob(f"{root}/{pattern}", detail=True)
        return sorted(os.path.relpath(name, root) for name, info in found.items() if info["type"] == "file")

    def _copy(self, relative: str, path: Path) -> None:
        import fsspec

        system, root = fsspec.url_to_fs(self.address)
        if not system.isfile(f"{root}/{relative}"):
            raise FileNotFoundError(f"the data set {self.address} has no file {relative}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            system.get_file(f"{root}/{relative}", str(temporary))

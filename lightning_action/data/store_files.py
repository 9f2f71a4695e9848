"""Files of a store on local disk, or copied there from an address when they are first read."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import Any

from lightning_action.atomic import replacing


class StoreFiles:
    """Finds files of a store by their names.

    Copies are whole or absent, and processes that want the same file copy it once. They lie in a folder of their own
    for each index, so that a store that was written anew is not mixed up with the one before.

    Args:
        address: Folder of the store, or an address that fsspec knows (`s3://...`, `https://...`).
        index: Name of the file that says what the store is.
        cache_dir: Folder that is copied to; None is `lightning_action` in the user's cache.
    """

    def __init__(self, address: str, index: str, cache_dir: str | None = None) -> None:
        self.address = address.rstrip("/")
        self._index_name = index
        self._is_remote = "://" in address
        self._cache = _default_cache() if cache_dir is None else Path(cache_dir)
        self._folder = Path(address)

    def read_index(self) -> bytes:
        """Read the index, which decides where copies go.

        Raises:
            FileNotFoundError: There is none.
        """
        try:
            if not self._is_remote:
                return (self._folder / self._index_name).read_bytes()
            filesystem, root = self._filesystem()
            content: bytes = filesystem.cat_file(f"{root}/{self._index_name}")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(
                f"no {self._index_name} in {self.address!r}: give the folder that `encode` wrote, and let it end"
            ) from error
        self._folder = self._cache / hashlib.sha256(self.address.encode() + content).hexdigest()[:16]
        return content

    def exists(self, name: str) -> bool:
        """Tell whether the store has a file."""
        if not self._is_remote or (self._folder / name).exists():
            return (self._folder / name).exists()
        filesystem, root = self._filesystem()
        return bool(filesystem.exists(f"{root}/{name}"))

    def local(self, name: str) -> Path:
        """Return the local path of a file, which is copied first if it has to be.

        Raises:
            FileNotFoundError: The store has no such file.
        """
        path = self._folder / name
        if self._is_remote and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_name(f".{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    self._copy(name, path)
        if not path.exists():
            raise FileNotFoundError(f"the store {self.address!r} has no {name}, which its index names: copy it again")
        return path

    def _copy(self, name: str, path: Path) -> None:
        filesystem, root = self._filesystem()
        if not filesystem.exists(f"{root}/{name}"):
            return
        with replacing(path) as temporary:
            filesystem.get_file(f"{root}/{name}", str(temporary))

    def _filesystem(self) -> tuple[Any, str]:
        """Connect anew in each process: a connection does not survive a fork."""
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(self.address, skip_instance_cache=True)
        return filesystem, root


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lightning_action" / "latents"

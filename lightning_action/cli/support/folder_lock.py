"""A folder that one process at a time writes to."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class FolderLock:
    """Held by a process until it releases it or ends, however it ends.

    Args:
        folder: Folder that is locked; it is created when it is.
        remedy: Advice to another process, for its error.
    """

    def __init__(self, folder: Path, remedy: str = "give another folder with --trainer.default_root_dir") -> None:
        self._path = folder / ".lock"
        self._remedy = remedy
        self._file: TextIOWrapper | None = None

    def acquire(self) -> None:
        """Create the folder, and take it.

        Raises:
            BlockingIOError: Another process has the lock.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while self._file is None:
            file = self._path.open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip()
                file.close()
                raise BlockingIOError(
                    f"{self._path.parent} is being written to by {holder or 'another process'}: wait for it, end it, "
                    f"or {self._remedy}"
                ) from error
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                warnings.warn(
                    f"{self._path.parent} cannot be locked ({error.strerror}): see that one fit writes there",
                    stacklevel=2,
                )
            # The one before may have removed the file between these two steps.
            if self._path.exists() and os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                self._file = file
            else:
                file.close()
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
        self._file.flush()

    def release(self) -> None:
        """Give the folder back; nothing of the lock stays there."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

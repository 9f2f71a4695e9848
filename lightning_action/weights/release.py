"""Places of the parts of an unpacked Wan release."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

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

"""Faults of a recording: refused, or passed over with a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

OnFault = Literal["refuse", "skip"]


class Faults:
    """Collects what is wrong with episodes.

    Args:
        on_fault: Way to deal with a broken episode: `refuse` raises at the first one, `skip` goes on without it.
    """

    def __init__(self, on_fault: OnFault) -> None:
        if on_fault not in ("refuse", "skip"):
            raise ValueError(f"expected bad_episodes refuse or skip, got {on_fault!r}")
        self.on_fault = on_fault
        self.found: list[str] = []

    @contextmanager
    def of(self, episode: str) -> Iterator[None]:
        """Take a ValueError or a missing file inside the block for a fault of an episode."""
        try:
            yield
        except (ValueError, FileNotFoundError) as error:
            why = f"{episode}: {error}"
            if self.on_fault == "refuse":
                raise ValueError(f"{why}. Mend the data, or pass over such episodes with bad_episodes: skip") from error
            self.found.append(why)

    def summary(self, num_episodes: int) -> str:
        """Say in one line how many of the episodes were passed over, and why the first ones."""
        shown = "; ".join(self.found[:5]) + ("; ..." if len(self.found) > 5 else "")
        return f"passed over {len(self.found)} of {num_episodes} episodes: {shown}"


@contextmanager
def reading(file: object) -> Iterator[None]:
    """Name a file in whatever its parser meets.

    Raises:
        ValueError: The block raised; the message has the file and what was wrong.
    """
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # broken files raise whatever their parser meets
        what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{file} cannot be read: {what}") from error

"""What is wrong with a recording: refused, or passed over with a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
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

    def of(self, episode: str) -> AbstractContextManager[None]:
        """Take a ValueError or a missing file inside the block for a fault of an episode."""
        return _Fault(episode, self._deal_with)

    def summary(self, num_episodes: int) -> str:
        """Say in one line how many of the episodes were passed over, and why the first ones."""
        shown = "; ".join(self.found[:5]) + ("; ..." if len(self.found) > 5 else "")
        return f"passed over {len(self.found)} of {num_episodes} episodes: {shown}"

    def _deal_with(self, message: str, error: BaseException) -> None:
        if self.on_fault == "refuse":
            raise ValueError(f"{message}. Mend the data, or pass over such episodes with bad_episodes: skip") from error
        self.found.append(message)


class _Fault(AbstractContextManager[None]):
    def __init__(self, episode: str, deal_with: Callable[[str, BaseException], None]) -> None:
        self.episode, self.deal_with = episode, deal_with

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, ValueError | FileNotFoundError):
            return False
        self.deal_with(f"{self.episode}: {error}", error)
        return True


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

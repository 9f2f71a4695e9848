"""A DataLoader that resumes in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler


class ResumableSampler(DistributedSampler[Any]):
    """A `DistributedSampler` whose next pass may begin later than its first sample."""

    start = 0

    def __iter__(self) -> Iterator[Any]:
        start, self.start = self.start, 0
        return islice(super().__iter__(), start, None)


class ResumableDataLoader(DataLoader[Any]):
    """Remembers how many batches of the epoch it has given out; Lightning saves and restores that with a checkpoint.

    Without it a run resumed in mid-epoch sees the beginning of the epoch again. The sampler is a `ResumableSampler`.
    """

    sampler: ResumableSampler
    batch_size: int
    _num_given = 0
    _resume_after = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._num_given, self._resume_after = self._resume_after, 0
        self.sampler.start = self._num_given * self.batch_size
        for batch in super().__iter__():
            self._num_given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Batches of the running epoch so far."""
        return {"num_given": self._num_given % max(len(self), 1)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next pass begin after that many batches."""
        self._resume_after = state_dict["num_given"]

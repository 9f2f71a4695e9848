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
    """Remembers the epoch and how many of its batches it has given out; Lightning saves that with a checkpoint.

    Without it a run resumed in mid-epoch sees the beginning of the epoch again. With a `ResumableSampler` it begins
    there at once; with another sampler, such as the one that `overfit_batches` puts in, it passes over batches.
    """

    batch_size: int
    _num_given = 0
    _resume_after: dict[str, int | None] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        resumed, self._resume_after = self._resume_after, None
        # An epoch that was over, or cut short by a limit, is not gone on with.
        in_epoch = resumed is not None and resumed.get("epoch", self._epoch) == self._epoch
        start = self._num_given = (resumed["num_given"] or 0) if resumed is not None and in_epoch else 0
        if isinstance(self.sampler, ResumableSampler):
            self.sampler.start = start * self.batch_size
            batches: Iterator[Any] = super().__iter__()
        else:
            batches = islice(super().__iter__(), start, None)
        for batch in batches:
            self._num_given += 1
            yield batch

    def state_dict(self) -> dict[str, int | None]:
        """Return the running epoch, and its batches so far."""
        return {"epoch": self._epoch, "num_given": self._num_given % max(len(self), 1)}

    def load_state_dict(self, state_dict: dict[str, int | None]) -> None:
        """Let the next pass begin there, if it is one of the same epoch."""
        self._resume_after = state_dict

    @property
    def _epoch(self) -> int | None:
        """Epoch of the sampler, None for one that gives every epoch in the same order."""
        return self.sampler.epoch if isinstance(self.sampler, DistributedSampler) else None


def move_to_batch(state: dict[str, Any], epoch: int, num_batches: int) -> None:
    """Change what a `ResumableDataLoader` has saved, so that it goes on after so many batches of an epoch."""
    if "num_given" in state:
        state["num_given"] = num_batches
        if state.get("epoch") is not None:
            state["epoch"] = epoch

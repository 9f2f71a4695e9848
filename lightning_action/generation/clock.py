"""Time that generating and decoding take, without waiting for the device while it works."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

Mark = Any
P = ParamSpec("P")
T = TypeVar("T")


class Clock:
    """Notes when each piece of work begins and ends: on CUDA by events in its stream, elsewhere by the clock.

    Args:
        device: Device that does the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: dict[str, list[tuple[Mark, Mark]]] = defaultdict(list)

    def timed(self, stage: str, work: Callable[P, T]) -> Callable[P, T]:
        """Return a function that does the same, and counts as a piece of a stage at every call."""

        def measured(*args: P.args, **kwargs: P.kwargs) -> T:
            begin = self._mark()
            result = work(*args, **kwargs)
            self._marks[stage].append((begin, self._mark()))
            return result

        return measured

    def blocks(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the same blocks; what lies between asking for one and getting it counts as a piece of `blocks`."""
        following = self.timed("blocks", iter(blocks).__next__)
        with suppress(StopIteration):
            while True:
                yield following()

    def seconds(self) -> dict[str, list[float]]:
        """Seconds of each piece of every stage; waits for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return {stage: [_between(*pair) for pair in marks] for stage, marks in self._marks.items()}

    def _mark(self) -> Mark:
        if self._device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def _between(begin: Mark, end: Mark) -> float:
    if isinstance(begin, torch.cuda.Event):
        return begin.elapsed_time(end) / 1000
    seconds: float = end - begin
    return seconds

"""How long blocks take, without waiting for the device while they are generated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Any, TypedDict

import torch
from torch import Tensor

Mark = Any


class BlockClock:
    """Notes when each block begins and ends: on CUDA by events in its stream, elsewhere by the clock.

    Args:
        device: where the blocks are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: list[tuple[Mark, Mark]] = []
        self._decodings: list[tuple[Mark, Mark]] = []

    def blocks(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """The same blocks; what lies between asking for one and getting it counts."""
        iterator = iter(blocks)
        while True:
            begin = self._mark()
            block = next(iterator, None)
            if block is None:
                return
            self._blocks.append((begin, self._mark()))
            yield block

    def decoding(self, decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
        """What `decode` makes of them."""
        begin = self._mark()
        pixels = decode(latents)
        self._decodings.append((begin, self._mark()))
        return pixels

    def seconds(self) -> dict[str, Any]:
        """`block_seconds` of each block, and `decode_seconds` of all where decoding was timed; waits for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        found: dict[str, Any] = {"block_seconds": [_between(*marks) for marks in self._blocks]}
        if self._decodings:
            found["decode_seconds"] = sum(_between(*marks) for marks in self._decodings)
        return found

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


class StageSeconds(TypedDict):
    """Wall-clock seconds of each stage; with `profile` the device is waited for at the end of each."""

    text: float
    blocks: list[float]
    vae: float


class Stopwatch:
    """Seconds between laps. It waits for the device only where it is asked to, because that slows generation down.

    Args:
        device: where the work is done.
        waits: wait for it at the end of each lap.
    """

    def __init__(self, device: torch.device, waits: bool) -> None:
        self._device, self._waits = device, waits and device.type != "cpu"
        self._last = perf_counter()

    def lap(self) -> float:
        """Seconds since the last one, or since the start."""
        if self._waits:
            torch.accelerator.synchronize(self._device)
        before, self._last = self._last, perf_counter()
        return self._last - before

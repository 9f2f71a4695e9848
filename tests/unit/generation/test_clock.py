from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lightning_action.generation import clock as clock_module
from lightning_action.generation.clock import BlockClock, Stopwatch


@pytest.fixture(autouse=True)
def clock_that_ticks(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Each look at the clock takes a second; `sleep` adds to it."""
    ticks = count()
    slept = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(clock_module, "perf_counter", lambda: next(ticks) + slept.seconds)
    yield slept


def test_blocks_and_decoding_are_timed_apart(clock_that_ticks: SimpleNamespace) -> None:
    clock = BlockClock(torch.device("cpu"))

    def blocks() -> Iterator[Tensor]:
        for seconds in (10.0, 20.0):
            clock_that_ticks.seconds += seconds
            yield torch.tensor(seconds)

    def decode(latents: Tensor) -> Tensor:
        clock_that_ticks.seconds += 100
        return -latents

    assert [clock.decoding(decode, block).item() for block in clock.blocks(blocks())] == [-10, -20]
    assert clock.seconds() == {"block_seconds": [11, 21], "decode_seconds": 202}


def test_without_decoding_nothing_is_said_about_it() -> None:
    clock = BlockClock(torch.device("cpu"))
    assert len(list(clock.blocks([torch.zeros(2)]))) == 1
    assert clock.seconds() == {"block_seconds": [1]}


def test_laps_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 13.0, 20.0])
    monkeypatch.setattr(clock_module, "perf_counter", lambda: next(times))
    watch = Stopwatch(torch.device("cpu"), waits=True)
    assert [watch.lap(), watch.lap()] == [3.0, 7.0]


@pytest.mark.parametrize("waits", [False, True])
def test_an_accelerator_is_waited_for_where_asked(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    Stopwatch(torch.device("cuda"), waits).lap()
    assert waited == ([torch.device("cuda")] if waits else [])

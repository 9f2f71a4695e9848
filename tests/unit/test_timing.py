from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lightning_action import timing
from lightning_action.timing import BlockClock


@pytest.fixture(autouse=True)
def clock_that_ticks(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Each look at the clock takes a second; `sleep` adds to it."""
    ticks = count()
    slept = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(timing, "perf_counter", lambda: next(ticks) + slept.seconds)
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

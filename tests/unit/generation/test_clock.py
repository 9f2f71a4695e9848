from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lightning_action.generation import clock as clock_module
from lightning_action.generation.clock import Clock


@pytest.fixture(autouse=True)
def clock_that_ticks(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Each look at the clock takes a second; `sleep` adds to it."""
    ticks = count()
    slept = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(clock_module, "perf_counter", lambda: next(ticks) + slept.seconds)
    yield slept


def test_each_piece_of_a_stage_is_timed(clock_that_ticks: SimpleNamespace) -> None:
    clock = Clock(torch.device("cpu"))

    def blocks() -> Iterator[Tensor]:
        for seconds in (10.0, 20.0):
            clock_that_ticks.seconds += seconds
            yield torch.tensor(seconds)

    def decode(latents: Tensor, sign: int) -> Tensor:
        clock_that_ticks.seconds += 100
        return sign * latents

    decode_timed = clock.timed("vae", decode)
    assert [decode_timed(block, sign=-1).item() for block in clock.blocks(blocks())] == [-10, -20]
    assert clock.seconds() == {"blocks": [11, 21], "vae": [101, 101]}


def test_of_what_was_not_timed_nothing_is_said() -> None:
    clock = Clock(torch.device("cpu"))
    assert len(list(clock.blocks([torch.zeros(2)]))) == 1
    assert clock.seconds() == {"blocks": [1]} and Clock(torch.device("cpu")).seconds() == {}


def test_an_error_is_no_end_of_the_blocks() -> None:
    def blocks() -> Iterator[Tensor]:
        yield torch.zeros(2)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(Clock(torch.device("cpu")).blocks(blocks()))

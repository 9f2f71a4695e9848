"""How long the stages of a call take."""

from __future__ import annotations

import pytest
import torch

from lightning_action.pipeline import stages
from lightning_action.pipeline.stages import Stopwatch


def test_laps_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 13.0, 20.0])
    monkeypatch.setattr(stages.time, "perf_counter", lambda: next(times))
    watch = Stopwatch(torch.device("cpu"), waits=True)
    assert [watch.lap(), watch.lap()] == [3.0, 7.0]


@pytest.mark.parametrize("waits", [False, True])
def test_an_accelerator_is_waited_for_where_asked(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    Stopwatch(torch.device("cuda"), waits).lap()
    assert waited == ([torch.device("cuda")] if waits else [])

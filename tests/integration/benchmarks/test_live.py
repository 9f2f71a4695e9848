"""The benchmark of live sessions runs, and would see what grows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import Tensor

from benchmarks import live
from tests.support.simulated_session import SimulatedSession, simulated_stage


def test_it_measures_sessions_and_a_long_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live.main(["--tiny", "--json", str(tmp_path / "live.json")])
    result = json.loads((tmp_path / "live.json").read_text())
    assert [each["sessions"] for each in result["live"]] == [1, 2]
    for each in result["live"]:
        assert each["milliseconds"].keys() == {"generate", "decode", "encode", "send", "pixels", "key"}
        assert each["frames_per_second"] > 1
    assert result["soak"]["memory_mb"] > 100 and result["soak"]["aged_to_fresh"] > 0
    assert "| 2 | " in capsys.readouterr().out


def test_what_grows_is_seen() -> None:
    flat = [live.Sample(float(second), 100.0, 0.05) for second in range(100)]
    kinds = ("memory", "latency")
    assert [live.soaked(flat, 100)[f"{kind}_last_to_first"] for kind in kinds] == [1, 1]
    growing = [live.Sample(float(second), 100.0 + second, 0.05 + 0.001 * second) for second in range(100)]
    assert all(live.soaked(growing, 100)[f"{kind}_last_to_first"] > 1.7 for kind in kinds)


class GrowingSession(SimulatedSession):
    def step_block(self, actions: Tensor) -> Tensor:
        for _ in range(20 * len(self.rows)):
            sum(range(200))
        return super().step_block(actions)


def test_a_world_that_grows_slow_is_seen() -> None:
    assert live.aged_to_fresh(simulated_stage(), 30, rounds=5, blocks=4) < 1.4
    assert live.aged_to_fresh(simulated_stage(GrowingSession), 120, rounds=5, blocks=4) > 1.5

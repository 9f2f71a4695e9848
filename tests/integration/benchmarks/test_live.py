"""The benchmark of live sessions runs, and would see what grows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from benchmarks import live
from tests.support.playable_run import write_playable_run
from tests.support.simulated_session import SimulatedSession, simulated_stage


def test_it_measures_sessions_and_a_long_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live.main(["--tiny", "--json", str(tmp_path / "live.json")])
    result = json.loads((tmp_path / "live.json").read_text())
    assert [each["sessions"] for each in result["live"]] == [1, 2]
    for each in result["live"]:
        assert each["milliseconds"].keys() == {"generate", "decode", "encode", "send", "pixels", "key"}
        assert each["frames_per_second"] > 1
    assert result["soak"]["memory_mb"] > 100 and result["soak"]["aged_to_fresh"] > 0
    assert 0.1 < result["soak"]["latency_aged_to_fresh"] < 10
    assert "| 2 | " in capsys.readouterr().out


class LameSession(SimulatedSession):
    def step_block(self, actions: Tensor) -> Tensor:
        return super().step_block(actions / 2)


class VanishingSession(SimulatedSession):
    def step_block(self, actions: Tensor) -> Tensor:
        return 0 * super().step_block(actions)


def test_how_far_a_held_key_moves_the_object_is_seen() -> None:
    """Eight frames at half of the speed of one pixel a frame, far from the wall."""
    for session, share in ((SimulatedSession, 1.0), (LameSession, 0.5)):
        figures = live.right_held(simulated_stage(session), 1)
        assert (figures["worlds"], figures["seen"]) == (1, 1)
        assert figures["true_px"] == pytest.approx(4, abs=0.1)
        assert figures["generated_px"] == pytest.approx(4 * share, abs=0.1)
        assert figures["apart_px"] == pytest.approx(4 * (1 - share), abs=0.1)
    nothing = live.right_held(simulated_stage(VanishingSession), 2)
    assert nothing == {"worlds": 2, "seen": 0, "generated_px": None, "true_px": None, "apart_px": None}
    with pytest.raises(ValueError, match="give a run whose data is a SpriteDataModule"):
        start = simulated_stage().start
        live.right_held(simulated_stage(start=lambda seed: replace(start(seed), truth=None)), 1)


def test_a_run_is_taken(tmp_path: Path) -> None:
    config, checkpoint = write_playable_run(tmp_path)
    run = [f"--config={config}", f"--ckpt_path={checkpoint}", f"--json={tmp_path / 'live.json'}"]
    live.main([*run, "--sessions", "--worlds=2"])
    result = json.loads((tmp_path / "live.json").read_text())
    assert result["live"] == [] and result["right_held"].keys() == {
        *("worlds", "seen", "generated_px", "true_px", "apart_px")
    }


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

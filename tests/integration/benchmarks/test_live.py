"""The benchmark of live sessions runs, and would see what grows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import live


def test_it_measures_sessions_and_a_long_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live.main(["--tiny", "--json", str(tmp_path / "live.json")])
    result = json.loads((tmp_path / "live.json").read_text())
    assert [each["sessions"] for each in result["live"]] == [1, 2]
    for each in result["live"]:
        assert each["milliseconds"].keys() == {"generate", "decode", "encode", "send", "pixels", "key"}
        assert each["frames_per_second"] > 1
    assert result["soak"]["memory_mb"] > 100
    assert "| 2 | " in capsys.readouterr().out


def test_what_grows_is_seen() -> None:
    flat = [live.Sample(float(second), 100.0, 0.05, 0.1 * second, 4 * second) for second in range(100)]
    kinds = ("memory", "latency", "computed")
    assert [live.soaked(flat, 100)[f"{kind}_last_to_first"] for kind in kinds] == [1, 1, pytest.approx(1)]
    growing = [
        live.Sample(float(second), 100.0 + second, 0.05 + 0.001 * second, 0.001 * second**2, 4 * second)
        for second in range(100)
    ]
    assert all(live.soaked(growing, 100)[f"{kind}_last_to_first"] > 1.7 for kind in kinds)

"""Windows are read, and memory stays flat; times are not looked at."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import recordings


def test_it_runs_and_memory_stays_flat(tmp_path: Path) -> None:
    recordings.main(["--tiny", "--json", str(tmp_path / "x.json")])
    result = json.loads((tmp_path / "x.json").read_text())
    assert result["read_to_step"] > 0 and result["windows"] == recordings.TINY.windows
    assert result["memory_growth_mb"] < 20

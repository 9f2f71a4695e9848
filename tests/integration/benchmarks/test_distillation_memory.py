"""Both ways are measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import distillation_memory


def test_both_ways_are_measured(tmp_path: Path) -> None:
    distillation_memory.main(["--size", "tiny", "--json", str(tmp_path / "memory.json")])
    figures = json.loads((tmp_path / "memory.json").read_text())
    assert figures.keys() == {"plain_mb", "ours_mb", "ours_to_plain"}

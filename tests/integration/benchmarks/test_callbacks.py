"""The benchmark of the callbacks runs, and measures all of them. Nothing here depends on how long anything takes."""

from __future__ import annotations

import json
import math
from pathlib import Path

from lightning.pytorch import Callback

from benchmarks import callbacks as benchmark
from lightning_action import callbacks as ours

# They work in a prediction alone, or have nothing to do with steps.
NOT_IN_A_FIT = {"ActionScan", "PredictionWriter"}


def test_every_callback_that_works_in_a_fit_is_measured() -> None:
    classes = {name for name in ours.__all__ if issubclass(getattr(ours, name), Callback)}
    assert {type(callback).__name__ for callback in benchmark.every_callback()} == classes - NOT_IN_A_FIT


def test_figures_are_there_and_finite(tmp_path: Path) -> None:
    benchmark.main(["--tiny", "--json", str(tmp_path / "callbacks.json")])
    result = json.loads((tmp_path / "callbacks.json").read_text())
    assert result["figures"].keys() == {
        "step_with_all_callbacks",
        "step_of_the_demo",
        "step_noise",
        "validation_with_all_callbacks",
    }
    for figure in result["figures"].values():
        measured = [figure["ratio"], figure["numerator_ms"], figure["denominator_ms"]]
        assert all(math.isfinite(value) and value > 0 for value in measured)
    assert result["figures"]["step_with_all_callbacks"]["target"] == 1.03

"""Loading never holds two copies of a checkpoint, and the benchmark would see it if it did."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import loading
from lightning_action.weights import tensor_files


@pytest.fixture(scope="module")
def safetensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loading") / "model.safetensors"
    loading.write(path, loading.TINY, "safetensors")
    return path


def test_every_load_stays_below_the_target(tmp_path: Path) -> None:
    loading.main(["--tiny", "--format", "pt", "--folder", str(tmp_path), "--json", str(tmp_path / "x.json")])
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    result = json.loads((tmp_path / "x.json").read_text())
    assert result["loads"].keys() == {"pt_into_meta", "pt_into_cpu"}
    for load in result["loads"].values():
        assert load["loaded"] is True
        assert 0.9 < load["added_to_file"] < loading.TARGET


def test_safetensors_stay_below_the_target(safetensors: Path) -> None:
    load = loading.in_a_process_of_its_own(loading.measure_load, safetensors, loading.TINY, "meta")
    assert load["loaded"] is True
    assert 0.9 < load["added_to_file"] < loading.TARGET
    assert load["num_tensors"] == 15 + 27 * loading.TINY["num_layers"]


def test_a_second_copy_would_be_seen(safetensors: Path) -> None:
    load = loading.in_a_process_of_its_own(measure_without_forgetting, safetensors)
    assert load["added_to_file"] > 1.8


def measure_without_forgetting(path: Path) -> dict[str, Any]:
    """Load a file whose pages are never given back meanwhile; in a process of its own, which this changes."""
    tensor_files._REMAP_BYTES = 2**40
    return loading.measure_load(path, loading.TINY, "meta")


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.shutil, "disk_usage", lambda path: SimpleNamespace(free=4e8))
    with pytest.raises(OSError, match=r"GB free, .* are needed: give --folder"):
        loading.measure(loading.TINY, ["pt"], tmp_path)

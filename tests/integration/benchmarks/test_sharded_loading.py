"""The benchmark of the memory of each rank, at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import sharded_loading


@pytest.mark.distributed
def test_no_rank_ever_holds_the_whole(tmp_path: Path) -> None:
    sharded_loading.main(["--tiny", "--folder", str(tmp_path), "--json", str(tmp_path / "x.json")])
    results = json.loads((tmp_path / "x.json").read_text())
    whole = results["whole"]["added_to_file"]
    assert whole > 0.95, "the control"
    # A half, and of so small a model one layer of ten and the pages of the file that are mapped.
    assert 0.5 <= results["fsdp2"]["added_to_file"] < 0.85 * whole
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.distributed
def test_what_fails_on_a_rank_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_loading, "write", lambda path, *_: path.write_bytes(b""))
    sizes = {"dim": 24, "ffn_dim": 32, "num_heads": 2, "num_layers": 1}
    with pytest.raises(RuntimeError, match=r"building with whole failed:\n[\s\S]*model.safetensors"):
        sharded_loading.measure(sizes, 1, tmp_path)

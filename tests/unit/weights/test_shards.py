"""Shards hold every tensor once, and read_tensors puts them together again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_action.weights.safetensors_files import read_metadata
from lightning_action.weights.shards import write_shards
from lightning_action.weights.tensor_files import as_lazy, read_tensors

TENSORS = {"a": torch.randn(10), "b": torch.randn(5).bfloat16(), "c": torch.randn(3, 4), "d": torch.randn(2)}


@pytest.mark.parametrize(
    ("max_shard_bytes", "expected"),
    [(None, ["abcd"]), (106, ["abcd"]), (105, ["abc", "d"]), (50, ["ab", "c", "d"]), (1, list("abcd"))],
)
def test_round_trip(tmp_path: Path, max_shard_bytes: int | None, expected: list[str]) -> None:
    write_shards(tmp_path, as_lazy(TENSORS), {"format": "pt", "of": "this"}, max_shard_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert ["".join(sorted(read_tensors(file))) for file in files] == expected
    assert all(read_metadata(file) == {"format": "pt", "of": "this"} for file in files)
    read = read_tensors(tmp_path)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    assert index.is_file() == (len(expected) > 1)
    if index.is_file():
        assert json.loads(index.read_text())["metadata"] == {"total_size": 40 + 10 + 48 + 8}
        assert files[0].name == f"diffusion_pytorch_model-00001-of-0000{len(expected)}.safetensors"

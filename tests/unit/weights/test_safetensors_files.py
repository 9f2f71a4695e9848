"""Safetensors files: whole or absent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_action.weights.safetensors_files import read_metadata, read_safetensors, write_safetensors


def some_tensors() -> dict[str, Tensor]:
    return {
        "blocks.0.self_attn.q.weight": torch.randn(3, 5),
        "half": torch.randn(2, 7).bfloat16(),
        "exact": torch.randn(4, dtype=torch.float64),
        "transposed": torch.randn(6, 2).T,
        "counts": torch.tensor([3, -1]),
        "parameter": nn.Parameter(torch.tensor([3e38, -0.0, 1e-45])),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = some_tensors()
    write_safetensors(tmp_path / "deep" / "er" / "x.safetensors", tensors, {"step": "3"})
    read = read_safetensors(tmp_path / "deep" / "er" / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(read[name]) == bits(tensor)
    assert os.listdir(tmp_path / "deep" / "er") == ["x.safetensors"]


@pytest.mark.parametrize("metadata", [{}, {"fit_seconds": "12.5", "name": "ä b"}])
def test_metadata_comes_back(tmp_path: Path, metadata: dict[str, str]) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)}, metadata)
    assert read_metadata(str(tmp_path / "x.safetensors")) == metadata


def test_others_may_read_weights_as_they_may_any_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)}, {})
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def half_written(error: BaseException) -> Callable[..., None]:
    def save(tensors: object, path: str | Path, metadata: object) -> None:
        Path(path).write_bytes(b"half of it")
        raise error

    return save


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failing_save_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, exists: bool
) -> None:
    path = tmp_path / "x.safetensors"
    if exists:
        write_safetensors(path, some_tensors(), {})
    old = path.read_bytes() if exists else None
    monkeypatch.setattr("lightning_action.weights.safetensors_files.save_file", half_written(error))
    with pytest.raises(type(error)):
        write_safetensors(path, {"a": torch.zeros(2)}, {})
    assert os.listdir(tmp_path) == (["x.safetensors"] if exists else [])
    assert old is None or path.read_bytes() == old


def test_tensors_that_cannot_be_saved_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.zeros(2)}, {})
    old = path.read_bytes()
    shared = torch.zeros(3)
    with pytest.raises(RuntimeError, match="share memory"):
        write_safetensors(path, {"a": shared, "b": shared}, {})
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        write_safetensors(tmp_path / "x.safetensors", {"a": torch.full((2,), value)}, {})
    assert read_safetensors(tmp_path / "x.safetensors")["a"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("read", [read_safetensors, read_metadata])
def test_a_missing_file_is_named(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no weights at {path}: give the path of a .safetensors file"):
            read(path)


@pytest.mark.parametrize("read", [read_safetensors, read_metadata])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, read: Callable[[Path], Any], kept: float) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, some_tensors(), {})
    read(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"x.safetensors is not a whole (safetensors file|checkpoint).* again"):
        read(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is a file of torch.save: expected a safetensors file"):
        read_safetensors(path)

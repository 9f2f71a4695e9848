"""The first bytes say what a file is, whatever it is called."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from lightning_action.weights.safetensors_files import write_safetensors
from lightning_action.weights.tensor_files import read_tensors

TENSORS = {"weight": torch.arange(6.0).view(2, 3)}


def packed() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pt"))
    return content.getvalue()


@pytest.mark.parametrize("name", ["x.safetensors", "x.sft", "X.SAFETENSORS", "x.pt", "x.bin", "x.ckpt", "x.SFT"])
@pytest.mark.parametrize("kind", ["safetensors", "torch", "old torch"])
def test_no_suffix_hides_the_kind(tmp_path: Path, name: str, kind: str) -> None:
    if kind == "safetensors":
        write_safetensors(tmp_path / name, TENSORS, {})
    else:
        torch.save(TENSORS, tmp_path / name, _use_new_zipfile_serialization=kind == "torch")
    for path in (tmp_path / name, tmp_path):
        assert torch.equal(read_tensors(path)["weight"], TENSORS["weight"])


def test_a_header_that_begins_as_a_pickle_does_is_a_header(tmp_path: Path) -> None:
    for padding in range(400, 700):
        write_safetensors(tmp_path / "x.safetensors", TENSORS, {"padding": "x" * padding})
        if (tmp_path / "x.safetensors").read_bytes().startswith(pickle.PROTO + b"\x02"):
            break
    else:
        raise AssertionError("no header had that length")
    assert read_tensors(tmp_path / "x.safetensors").keys() == TENSORS.keys()


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.gguf"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"GGUF" + bytes(4096), "is a GGUF file.*take the safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>401</html>", "is a web page.*fetch the file again"),
        (b'<?xml version="1.0"?><Error/>', "is a web page or XML"),
        (b'{"error": "Access to model is restricted"}', "is no index of shards"),
        (gzip.compress(b"x", mtime=0), "is a gzip archive: unpack it"),
        (packed(), "is a tar archive: unpack it"),
        (b"\x93NUMPY\x01\x00", "is a numpy array without names"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"", r"is not a whole checkpoint \(it is empty\)"),
        (b"\x80", "is not a whole checkpoint"),
        (b"\x40\x00", "is not a whole checkpoint, or none at all"),
    ],
)
def test_what_is_no_file_of_weights_is_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match=f"{tmp_path}/{name} {told}|{name} is a? ?{told}"):
            read_tensors(path)

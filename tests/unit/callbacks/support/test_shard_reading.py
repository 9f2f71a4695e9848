"""What torch saves is read as torch reads it; what runs code is refused before it does."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, load, save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from lightning_action.callbacks.support.shard_reading import load_shards, read_shard_metadata
from tests.support.malice import POISONS, Touches

VALUES: dict[str, Any] = {"name": "action", "betas": (0.9, 0.95), "foreach": None, "lr": 0.25}


def state(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    values: list[Tensor] = [torch.randn(3, 5, generator=generator), torch.randn(2, 7, generator=generator).bfloat16()]
    return {
        "state_dict": {"a.weight": values[0], "b": values[1], "n": torch.tensor(seed)},
        "optimizer_0": {"state": {"a.weight": {"step": torch.tensor(4.0 + seed)}}, "param_groups": VALUES},
    }


def tensors(seed: int) -> dict[str, Any]:
    found = state(seed)
    del found["optimizer_0"]["param_groups"]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(state(1), checkpoint_id=tmp_path / "last.ckpt", no_dist=True)
    return tmp_path / "last.ckpt"


def test_everything_that_is_saved_comes_back(folder: Path) -> None:
    found = state(2)
    found["optimizer_0"]["param_groups"] = dict.fromkeys(VALUES, 0)
    load_shards(found, folder, no_dist=True)
    assert found["optimizer_0"].pop("param_groups") == VALUES
    torch.testing.assert_close(found, tensors(1), rtol=0, atol=0)
    ours, theirs = read_shard_metadata(folder), FileSystemReader(folder).read_metadata()
    assert ours.storage_data == theirs.storage_data and ours.state_dict_metadata == theirs.state_dict_metadata


@pytest.mark.parametrize("poison", POISONS)
def test_code_is_refused_that_torch_would_run(folder: Path, poison: Callable[[Path, Path], None]) -> None:
    marker, before = folder / "marker", state(2)
    poison(folder, marker)
    with pytest.raises(ValueError, match=r"last\.ckpt.*(would run code when it is loaded|is no tensor there)"):
        load_shards(before, folder, no_dist=True)
    del before["optimizer_0"]["param_groups"]
    torch.testing.assert_close(before, tensors(2), rtol=0, atol=0)
    assert not marker.exists()
    with suppress(CheckpointException):
        load(before, checkpoint_id=folder, no_dist=True)
    assert marker.exists(), "the control: without care it runs"


def test_a_tensor_that_is_none_is_told_in_other_words_than_torchs(folder: Path) -> None:
    metadata = FileSystemReader(folder).read_metadata()
    for info in metadata.storage_data.values():
        info.offset += 1
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="no plain tensor where one is expected") as refusal:
        load_shards(tensors(2), folder, no_dist=True)
    assert "weights_only" not in str(refusal.value)


def test_values_are_plain(tmp_path: Path) -> None:
    marker, folder = tmp_path / "marker", tmp_path / "last.ckpt"
    save({"lr": Touches(marker)}, checkpoint_id=folder, no_dist=True)
    with pytest.raises(ValueError, match="lr is no plain value: it would run code when it is loaded"):
        load_shards({"lr": 0.1}, folder, no_dist=True)
    assert not marker.exists()
    load({"lr": 0.1}, checkpoint_id=folder, no_dist=True)
    assert marker.exists(), "the control: without care it runs"


@pytest.mark.parametrize("path", ["../__0_0.distcp", "/etc/hostname", "a/b", "..", "", "a\\b", 3])
def test_a_shard_lies_in_the_folder(folder: Path, path: Any) -> None:
    metadata = FileSystemReader(folder).read_metadata()
    key = next(iter(metadata.storage_data))
    metadata.storage_data[key] = _StorageInfo(path, 0, 9)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="points outside its folder, or at nothing"):
        load_shards(state(2), folder, no_dist=True)


def test_what_is_no_whole_folder_is_told(folder: Path) -> None:
    metadata = folder / ".metadata"
    whole = metadata.read_bytes()
    metadata.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"\.metadata is not whole"):
        read_shard_metadata(folder)
    metadata.write_bytes(pickle.dumps({"a": 3}))
    with pytest.raises(ValueError, match="is not the metadata of a checkpoint, but dict"):
        read_shard_metadata(folder)
    metadata.unlink()
    with pytest.raises(FileNotFoundError, match=r"no whole checkpoint: it has no \.metadata"):
        read_shard_metadata(folder)
    metadata.write_bytes(whole)
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(ValueError, match="cannot be read .FileNotFoundError"):
        load_shards(state(2), folder, no_dist=True)


class _ByName(pickle.Pickler):
    """Writes an enumeration as Python 3.11.0 to 3.11.3 do."""

    def __init__(self, file: io.BytesIO, kind: object) -> None:
        super().__init__(file)
        self.kind = kind

    def reducer_override(self, value: object) -> Any:
        return (getattr, (self.kind, value.name)) if isinstance(value, _MEM_FORMAT_ENCODING) else NotImplemented


def pickled_by_name(metadata: object, kind: object) -> bytes:
    _ByName(file := io.BytesIO(), kind).dump(metadata)
    return file.getvalue()


def test_what_the_first_pythons_of_3_11_wrote_is_read(folder: Path) -> None:
    """Theirs alone: `getattr` gives no more than it must."""
    expected = FileSystemReader(folder).read_metadata()
    (folder / ".metadata").write_bytes(pickled_by_name(expected, _MEM_FORMAT_ENCODING))
    assert b"getattr" in (folder / ".metadata").read_bytes()
    found = read_shard_metadata(folder)
    assert found.state_dict_metadata == expected.state_dict_metadata
    (folder / ".metadata").write_bytes(pickled_by_name(expected, torch.Size))
    with pytest.raises(ValueError, match=r"asks for builtins\.getattr"):
        read_shard_metadata(folder)


def test_names_that_only_look_known_are_refused(folder: Path) -> None:
    """A dotted name reaches through a class that is known, as pickle of protocol 4 allows."""
    for module, name in (("torch", "hub.load"), ("torch.serialization", "_get_layout.__globals__"), ("os", "system")):
        asks = b"\x80\x04\x8c%c%b\x8c%c%b\x93." % (len(module), module.encode(), len(name), name.encode())
        (folder / ".metadata").write_bytes(asks)
        with pytest.raises(ValueError, match=f"asks for {module}.{name}"):
            read_shard_metadata(folder)
    assert pickle.loads(asks) is os.system, "the control: the last of them is what it says"

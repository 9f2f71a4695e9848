from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_action.cli.support.run_checkpoint import AtomicCheckpointIO


class Unwritable:
    """Cannot be pickled, which is noticed when a part of the file is already there."""

    def __reduce__(self) -> str:
        raise RuntimeError("killed")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.arange(3)}, "global_step": 5}, path)
    loaded = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    assert loaded["global_step"] == 5 and torch.equal(loaded["state_dict"]["w"], torch.arange(3))


def test_a_save_that_fails_leaves_the_previous_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 1}, path)
    with pytest.raises(RuntimeError, match="killed"):
        AtomicCheckpointIO().save_checkpoint({"big": torch.zeros(1000), "bad": Unwritable()}, path)
    assert AtomicCheckpointIO().load_checkpoint(path)["global_step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_takes_the_place_of_a_folder_of_shards(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.mkdir()
    (path / "meta.pt").touch()
    AtomicCheckpointIO().save_checkpoint({"global_step": 2}, path)
    assert AtomicCheckpointIO().load_checkpoint(path)["global_step"] == 2
    assert list(tmp_path.iterdir()) == [path]


def test_options_of_a_storage_are_refused_as_lightning_does(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"x": 1})

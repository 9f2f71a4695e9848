"""Checkpoints appear whole or not at all; what a fit does with them is in tests/integration/test_resume.py."""

from __future__ import annotations

import signal
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_action.cli.support.run_checkpoint import AtomicCheckpointIO, RunCheckpoint
from tests.support.short_fits import quiet_trainer


class Handlers(L.Callback):
    """Who handles signals when training has begun."""

    def on_train_batch_start(self, *_: object) -> None:
        self.found = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize("in_slurm", [True, False])
def test_signals_under_slurm_are_lightnings(in_slurm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_slurm:
        for name, value in {"NTASKS": "1", "JOB_NAME": "a", "JOB_ID": "1", "PROCID": "0", "LOCALID": "0"}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    handlers = Handlers()
    saver = RunCheckpoint(dirpath=tmp_path / "run", save_last=True)
    quiet_trainer(tmp_path, handlers, saver, max_steps=1, enable_checkpointing=True).fit(BoringModel())
    ours = [getattr(handler, "__self__", None) is saver._signals for handler in handlers.found]
    assert ours == [not in_slurm, not in_slurm]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_fit_that_a_kill_would_lose_is_warned_of(tmp_path: Path) -> None:
    saver = RunCheckpoint(dirpath=tmp_path, save_last=True, save_top_k=0)
    with pytest.warns(UserWarning, match="nothing is saved before this fit ends.*checkpoint.every_n_train_steps"):
        quiet_trainer(tmp_path, saver, max_steps=1, enable_checkpointing=True).fit(BoringModel())


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

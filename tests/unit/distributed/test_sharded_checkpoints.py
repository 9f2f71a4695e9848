"""On one process, which is a mesh of one; fits on two are in tests/integration/test_sharding.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.utils.data import DataLoader, TensorDataset

from lightning_action.configuration.ckpt_path import require_checkpoint
from lightning_action.distributed.fsdp2 import FSDP2Strategy
from tests.support.two_parts import TwoParts


class OnePart(TwoParts):
    """Trains less."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.narrow.parameters(), lr=0.1)


def fit(
    folder: Path, strategy: Any, steps: int, build: Callable[[], L.LightningModule] = TwoParts, **changes: Any
) -> L.Trainer:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    trainer = L.Trainer(
        accelerator="cpu", devices=1, strategy=strategy, max_steps=steps, default_root_dir=folder, **quiet
    )
    # One batch an epoch, so that a fit can go on at any step.
    batches = DataLoader(TensorDataset(torch.arange(6.0).view(2, 3) / 6), batch_size=2)
    trainer.fit(build(), batches, **changes)
    return trainer


@pytest.mark.parametrize("is_first", [False, True])
def test_a_file_goes_on_sharded_or_not(tmp_path: Path, is_first: bool) -> None:
    """With both kinds of optimizer state where they belong, although the groups are in another order."""
    strategies: list[Any] = [FSDP2Strategy(False), "auto"] if is_first else ["auto", FSDP2Strategy(False)]
    fit(tmp_path, "auto", steps=4).save_checkpoint(tmp_path / "whole.ckpt")
    fit(tmp_path, strategies[0], steps=2).save_checkpoint(tmp_path / "half.ckpt")
    fit(tmp_path, strategies[1], steps=4, ckpt_path=tmp_path / "half.ckpt").save_checkpoint(tmp_path / "both.ckpt")
    whole, both = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("whole", "both"))
    torch.testing.assert_close(both["state_dict"], whole["state_dict"])
    states = [checkpoint["optimizer_states"][0] for checkpoint in (whole, both)]
    assert [group["params"] for group in states[0]["param_groups"]] == [[0, 1], [2, 3]]
    torch.testing.assert_close(states[1]["state"], states[0]["state"])
    assert states[1]["state"][0]["exp_avg"].shape == (2, 5), "the control: the first parameter is the narrow one"


def test_a_folder_goes_on_and_ends_in_a_file(tmp_path: Path) -> None:
    fit(tmp_path, "auto", steps=4).save_checkpoint(tmp_path / "whole.ckpt")
    fit(tmp_path, FSDP2Strategy(), steps=2).save_checkpoint(tmp_path / "half.ckpt")
    assert (tmp_path / "half.ckpt").is_dir()
    resumed = fit(tmp_path, FSDP2Strategy(False), steps=4, ckpt_path=tmp_path / "half.ckpt")
    resumed.save_checkpoint(tmp_path / "both.ckpt")
    whole, both = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("whole", "both"))
    torch.testing.assert_close(both["state_dict"], whole["state_dict"])
    torch.testing.assert_close(both["optimizer_states"][0]["state"], whole["optimizer_states"][0]["state"])


@pytest.mark.parametrize(
    ("first", "second", "distributed"),
    [(TwoParts, OnePart, False), (OnePart, TwoParts, False), (OnePart, TwoParts, True)],
)
def test_an_optimizer_of_other_parameters_is_told(tmp_path: Path, first: Any, second: Any, distributed: bool) -> None:
    fit(tmp_path, FSDP2Strategy(distributed), steps=1, build=first).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"(?s)a.ckpt does not fit this run \(.*\): go on with .*train_backbone"):
        fit(tmp_path, FSDP2Strategy(distributed), steps=2, build=second, ckpt_path=tmp_path / "a.ckpt")


class GoesWrong(TwoParts):
    def on_train_end(self) -> None:
        with torch.no_grad():
            self.wide.weight.mul_(torch.nan)


@pytest.mark.parametrize("distributed", [False, True])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, distributed: bool) -> None:
    fit(tmp_path, FSDP2Strategy(distributed), steps=1, build=GoesWrong).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="a.ckpt holds weights that are NaN or infinite: take an earlier checkpoint"):
        fit(tmp_path, FSDP2Strategy(distributed), steps=2, ckpt_path=tmp_path / "a.ckpt")


def test_a_folder_replaces_a_file_and_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    for distributed in (False, True, True, False):
        fit(tmp_path, FSDP2Strategy(distributed), steps=1).save_checkpoint(path)
        assert path.is_dir() == distributed
        assert [item.name for item in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_save_that_fails_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    fit(tmp_path, FSDP2Strategy(), steps=1).save_checkpoint(path)
    before = sorted(item.name for item in path.iterdir())
    trainer = fit(tmp_path, FSDP2Strategy(), steps=2)
    monkeypatch.setattr(torch, "save", lambda *_: 1 / 0)
    with pytest.raises(CheckpointException, match="ZeroDivisionError"):
        trainer.save_checkpoint(path)
    assert sorted(item.name for item in path.iterdir()) == before


def test_killed_between_two_renames_the_previous_checkpoint_is_there_and_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old = tmp_path / "a.ckpt", tmp_path / ".a.ckpt-old"
    fit(tmp_path, FSDP2Strategy(), steps=1).save_checkpoint(path)
    before = sorted(item.name for item in path.iterdir())
    trainer = fit(tmp_path, FSDP2Strategy(), steps=2)
    rename = os.replace

    def killed(source: Path, target: Path) -> None:
        if target == path:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(path)
    monkeypatch.undo()
    assert not path.exists() and sorted(item.name for item in old.iterdir()) == before
    with pytest.raises(FileNotFoundError, match=r"killed while it replaced it left it as '.*/\.a\.ckpt-old'"):
        require_checkpoint("predict", str(path))
    fit(tmp_path, FSDP2Strategy(), steps=3, ckpt_path=old).save_checkpoint(path)
    assert [item.name for item in tmp_path.iterdir()] == ["a.ckpt"]


def test_storage_options_are_refused(tmp_path: Path) -> None:
    trainer = fit(tmp_path, FSDP2Strategy(), steps=1)
    with pytest.raises(TypeError, match="takes no storage_options, got 'x'"):
        trainer.save_checkpoint(tmp_path / "a.ckpt", storage_options="x")
    assert not list(tmp_path.iterdir())

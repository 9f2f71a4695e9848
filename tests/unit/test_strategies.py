"""One process is a mesh of one; fits on two are in tests/integration/test_sharding.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.utils.data import DataLoader, TensorDataset

from lightning_action.sharding import Sharding, shard
from lightning_action.strategies import FSDP2Strategy

SHARDING = Sharding(param_dtype="float32")


class TwoParts(L.LightningModule):
    """Its optimizer takes the parts in another order than the module has them."""

    def __init__(self, shards_all: bool = True) -> None:
        super().__init__()
        self.shards_all = shards_all

    def configure_model(self) -> None:
        torch.manual_seed(0)
        self.wide, self.narrow = nn.Linear(3, 5), nn.Linear(5, 2)
        if self._device_mesh is not None:
            mesh = self._device_mesh["data_parallel"]
            for part in (self.wide, self.narrow) if self.shards_all else (self.wide,):
                shard(part, (), mesh, SHARDING)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.narrow(self.wide(batch[0])).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [
            {"name": "new", "params": self.narrow.parameters()},
            {"name": "old", "params": self.wide.parameters()},
        ]
        return torch.optim.AdamW(groups, lr=0.1)


def fit(folder: Path, sharded: bool, steps: int, module: TwoParts | None = None, **changes: Any) -> L.Trainer:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    strategy: Any = FSDP2Strategy(changes.pop("distributed", False)) if sharded else "auto"
    trainer = L.Trainer(
        accelerator="cpu", devices=1, strategy=strategy, max_steps=steps, default_root_dir=folder, **quiet
    )
    # One batch an epoch, so that a fit can go on at any step.
    batches = DataLoader(TensorDataset(torch.arange(6.0).view(2, 3) / 6), batch_size=2)
    trainer.fit(TwoParts() if module is None else module, batches, **changes)
    return trainer


@pytest.mark.parametrize("first_sharded", [False, True])
def test_a_file_goes_on_sharded_or_not(tmp_path: Path, first_sharded: bool) -> None:
    """With both kinds of optimizer state where they belong, although the groups are in another order."""
    fit(tmp_path, sharded=False, steps=4).save_checkpoint(tmp_path / "whole.ckpt")
    fit(tmp_path, first_sharded, steps=2).save_checkpoint(tmp_path / "half.ckpt")
    fit(tmp_path, not first_sharded, steps=4, ckpt_path=tmp_path / "half.ckpt").save_checkpoint(tmp_path / "both.ckpt")
    whole, both = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("whole", "both"))
    torch.testing.assert_close(both["state_dict"], whole["state_dict"])
    states = [checkpoint["optimizer_states"][0] for checkpoint in (whole, both)]
    assert [group["params"] for group in states[0]["param_groups"]] == [[0, 1], [2, 3]]
    torch.testing.assert_close(states[1]["state"], states[0]["state"])
    assert states[1]["state"][0]["exp_avg"].shape == (2, 5), "the control: the first parameter is the narrow one"


def test_a_folder_replaces_a_file_and_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    for distributed in (False, True, True, False):
        fit(tmp_path, sharded=True, steps=1, distributed=distributed).save_checkpoint(path)
        assert path.is_dir() == distributed
        assert [item.name for item in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_save_that_fails_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    fit(tmp_path, sharded=True, steps=1, distributed=True).save_checkpoint(path)
    before = sorted(item.name for item in path.iterdir())
    trainer = fit(tmp_path, sharded=True, steps=2, distributed=True)
    monkeypatch.setattr(torch, "save", lambda *_: 1 / 0)
    with pytest.raises(CheckpointException, match="ZeroDivisionError"):
        trainer.save_checkpoint(path)
    assert sorted(item.name for item in path.iterdir()) == before


def test_what_trains_must_be_sharded(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="2 are not, narrow.weight first"):
        fit(tmp_path, sharded=True, steps=1, module=TwoParts(shards_all=False))

"""On one process; fits on two are in tests/integration/test_sharding.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import wrap
from torch.utils.data import DataLoader

from lightning_action.strategies import FSDP1Strategy


class Wrapping(BoringModel):
    """Its parts are wrapped, unless one is forgotten."""

    forgets = False

    def configure_model(self) -> None:
        torch.manual_seed(3)
        self.layer = wrap(nn.Linear(32, 7))
        self.rest = nn.Linear(7, 2) if self.forgets else wrap(nn.Linear(7, 2))

    def train_dataloader(self) -> Any:
        return DataLoader(torch.linspace(-1, 1, 3 * 2 * 32).view(6, 32), batch_size=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(self.layer(x))  # type: ignore[no-any-return]


def trainer(folder: Path, strategy: Any, **changes: Any) -> L.Trainer:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    return L.Trainer(
        accelerator="cpu", devices=1, strategy=strategy, max_steps=3, default_root_dir=folder, **quiet, **changes
    )


@pytest.mark.parametrize("clipping", [{}, {"gradient_clip_val": 0.01}], ids=["free", "clipped"])
def test_it_trains_as_without_and_clips_by_norm(tmp_path: Path, clipping: dict[str, float]) -> None:
    weights = []
    for strategy in (FSDP1Strategy(), "auto"):
        module = Wrapping()
        trainer(tmp_path, strategy, limit_val_batches=0, use_distributed_sampler=False, **clipping).fit(module)
        assert isinstance(module.layer, FullyShardedDataParallel) == (strategy != "auto")
        weights.append([value.detach().flatten() for value in module.parameters()])
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=0)
    torch.manual_seed(3)
    moved = (nn.Linear(32, 7).weight.flatten() - weights[1][0]).abs().max()
    assert (moved < 1e-2) == bool(clipping), "the control: clipping makes a difference"


def test_other_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="needs trainer.precision 32-true, got bf16-mixed"):
        trainer(tmp_path, FSDP1Strategy(), precision="bf16-mixed")


def test_every_parameter_must_be_wrapped(tmp_path: Path) -> None:
    module = Wrapping()
    module.forgets = True
    with pytest.raises(MisconfigurationException, match=r"2 are not, rest.weight first: .*fsdp.wrap.wrap"):
        trainer(tmp_path, FSDP1Strategy()).fit(module)

"""What it refuses; fits are in test_sharded_checkpoints.py and in tests/integration/test_sharding.py."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.distributed.device_mesh import DeviceMesh

from lightning_action.distributed.fsdp2 import FSDP2Strategy
from lightning_action.distributed.sharding import Sharding, shard


class Half(BoringModel):
    """Its second layer is forgotten."""

    def configure_model(self) -> None:
        self.forgotten = BoringModel().layer
        mesh: DeviceMesh | None = self.device_mesh
        assert mesh is not None
        shard(self.layer, (), mesh["data_parallel"], Sharding("float32"))


def test_what_trains_must_be_sharded(tmp_path: Path) -> None:
    trainer = L.Trainer(accelerator="cpu", devices=1, strategy=FSDP2Strategy(), default_root_dir=tmp_path, logger=False)
    with pytest.raises(MisconfigurationException, match=r"2 are not, forgotten.weight first"):
        trainer.fit(Half())

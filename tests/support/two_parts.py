"""A module of two parts, each of which is sharded."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor, nn

from lightning_action.distributed.sharding import Sharding, shard

SHARDING = Sharding(param_dtype="float32")


class TwoParts(L.LightningModule):
    """Its optimizer takes the parts in another order than the module has them."""

    def configure_model(self) -> None:
        torch.manual_seed(0)
        self.wide, self.narrow = nn.Linear(3, 5), nn.Linear(5, 2)
        if self._device_mesh is not None:
            mesh = self._device_mesh["data_parallel"]
            for part in (self.wide, self.narrow):
                shard(part, (), mesh, SHARDING)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.narrow(self.wide(batch[0])).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [
            {"name": "new", "params": self.narrow.parameters()},
            {"name": "old", "params": self.wide.parameters()},
        ]
        return torch.optim.AdamW(groups, lr=0.1)

"""A callback that takes the actions out of what one rank trains on."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch import Callback


class DroppedActions(Callback):
    """The second rank trains without actions."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1:
            batch["action"] = None

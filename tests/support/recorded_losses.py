"""A callback that writes down the loss of every step, over all ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L


class RecordedLosses(L.Callback):
    """Rank 0 writes `losses.json` to the Trainer's `default_root_dir`."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: dict[str, Any], *_: Any) -> None:
        self.losses.append(trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean").item())

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            (Path(trainer.default_root_dir) / "losses.json").write_text(json.dumps(self.losses))

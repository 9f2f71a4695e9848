"""Checkpoint files that are whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from lightning_action.files import move_into_place, replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes straight to a file beside the checkpoint's place and moves it there when it is whole.

    Lightning's own makes the file in memory first, beside the model, and then in the folder for temporary files, from
    where it may have to be copied. Remote paths (`s3://...`) are left to it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(Path(path), move_into_place) as temporary:
            torch.save(checkpoint, temporary)

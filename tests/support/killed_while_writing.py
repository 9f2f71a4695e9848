"""A callback that kills its process in the middle of a checkpoint."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from threading import Thread

import lightning as L


class KilledWhileWriting(L.Callback):
    """Rank 1 dies as soon as a checkpoint after `step` has begun to appear in `folder`."""

    def __init__(self, folder: str, step: int) -> None:
        self.folder = Path(folder)
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.step and trainer.global_rank == 1:
            Thread(target=self._die_when_writing, daemon=True).start()

    def _die_when_writing(self) -> None:
        while not list(self.folder.glob(".*-being-written/*")):
            time.sleep(0.0005)
        os.kill(os.getpid(), signal.SIGKILL)

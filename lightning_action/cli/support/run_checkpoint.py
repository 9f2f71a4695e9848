"""The checkpoints of a run: `last.ckpt` is where it stopped, however it stopped."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_action.atomic import move_into_place, replacing
from lightning_action.checkpoints.run_format import VALIDATION_DUE
from lightning_action.cli.support.folder_lock import FolderLock
from lightning_action.cli.support.stop_signals import StopSignals


class RunCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` whose `last.ckpt` is the end of the fit, also where the last step is not one it saves at.

    SIGTERM and SIGINT are an end, too: the fit saves after the batch that it is at, and leaves. Under SLURM they are
    left to Lightning, which saves and queues the job again. One fit at a time writes to the folder.

    Args:
        overwrite: Let a new fit take the place of the one whose `last.ckpt` is in the folder.
        **kwargs: Arguments of `ModelCheckpoint`.
    """

    def __init__(self, overwrite: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.overwrite = overwrite
        self._signals = StopSignals()
        self._lock: FolderLock | None = None
        self._validation_due = False
        self._is_last_current = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or _is_dry_run(trainer) or "://" in str(self.dirpath):
            return
        refusal = ""
        if trainer.is_global_zero:
            self._lock = FolderLock(Path(str(self.dirpath)))
            try:
                self._lock.acquire()
            except BlockingIOError as error:
                refusal = str(error)
        if refusal := trainer.strategy.broadcast(refusal):
            raise BlockingIOError(refusal)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if _is_dry_run(trainer):
            return
        require_new_or_resumed(self.dirpath, trainer.ckpt_path, self.overwrite)
        self._warn_if_never_due(trainer)
        if not SLURMEnvironment.detect():
            self._signals.listen()
        if trainer.ckpt_path is not None:
            _begin_data(trainer)
        if self._validation_due:
            _validate(trainer)

    def on_train_batch_start(self, *_: Any) -> None:
        self._is_last_current = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop
        # The loop asks itself this only after the hook, under no public name, and a checkpoint that the hook saves must
        # know whether a validation follows.
        assert loop._data_fetcher is not None
        self._validation_due = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._leave_if_asked(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        # Ranks may have other numbers of batches, and would wait for each other.
        if trainer.world_size == 1:
            self._leave_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_due = self._is_last_current = False
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking:
            self._leave_if_asked(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save_end(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        try:
            super().on_exception(trainer, pl_module, exception)
        finally:
            self._release()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._release()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[VALIDATION_DUE] = self._validation_due

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._validation_due = checkpoint.get(VALIDATION_DUE, False)

    def _save_last_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Any]) -> None:
        # No public hook tells a callback that `last.ckpt` was written.
        super()._save_last_checkpoint(trainer, monitor_candidates)
        self._is_last_current = self.save_last is True

    def _save_end(self, trainer: L.Trainer) -> None:
        """Write `last.ckpt`, as a file of its own, unless it is of this moment already."""
        if not self.save_last or self._is_last_current or _is_dry_run(trainer):
            return
        # What is public to save (`trainer.save_checkpoint`) leaves the callback's own record of its files as it was.
        name = self.format_checkpoint_name(self._monitor_candidates(trainer), self.CHECKPOINT_NAME_LAST)
        self.last_model_path = self.last_model_path or name
        self._save_checkpoint(trainer, self.last_model_path)
        self._is_last_current = True

    def _leave_if_asked(self, trainer: L.Trainer) -> None:
        received = self._signals.received
        asked = received is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if not asked:
            return
        self._save_end(trainer)
        rank_zero_info(f"saved {self.last_model_path}: --ckpt_path goes on from there")
        if received is signal.SIGINT:
            raise KeyboardInterrupt
        raise SIGTERMException(128 + signal.SIGTERM)

    def _warn_if_never_due(self, trainer: L.Trainer) -> None:
        # `ModelCheckpoint` keeps when it is due, with defaults that depend on each other, under private names alone.
        by_steps = self._every_n_train_steps or self._train_time_interval is not None
        by_epochs = self._should_save_on_train_epoch_end(trainer) or trainer.enable_validation
        if not by_steps and (self.save_top_k == 0 or not by_epochs):
            rank_zero_warn(
                "nothing is saved before this fit ends or gets a signal: a kill would lose all of it. Set "
                "checkpoint.every_n_train_steps or checkpoint.train_time_interval"
            )

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def require_new_or_resumed(folder: str | Path | None, ckpt_path: str | Path | None, overwrite: bool = False) -> None:
    """Refuse to replace the end of another run.

    Args:
        folder: Folder where a fit will write its checkpoints.
        ckpt_path: Checkpoint it goes on from, if it does.
        overwrite: Warn, instead.

    Raises:
        FileExistsError: The folder has a `last.ckpt`, and the fit does not go on from a checkpoint in that folder.
    """
    if folder is None or "://" in str(folder):
        return
    last = Path(folder) / f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}{ModelCheckpoint.FILE_EXTENSION}"
    goes_on = ckpt_path is not None and Path(ckpt_path).resolve().parent == last.resolve().parent
    if not last.exists() or goes_on:
        return
    if overwrite:
        rank_zero_warn(f"this fit replaces {last}, the end of another")
        return
    raise FileExistsError(
        f"{last} is the end of another fit, which this one would replace: go on from it with --ckpt_path {last}, "
        "give another folder with --trainer.default_root_dir, or replace it with --checkpoint.overwrite true"
    )


def _begin_data(trainer: L.Trainer) -> None:
    """Tell loaders where they go on, and samplers the epoch, where Lightning has begun with them too early.

    It does where `configure_optimizers` asks for the number of steps, and where workers load ahead.
    """
    # Lightning did the same as it began with its loaders; nothing public does it again.
    loop = trainer.fit_loop
    assert loop._combined_loader is not None and loop._data_fetcher is not None
    loop._load_combined_loader_states()
    for loader in loop._combined_loader.flattened:
        _set_sampler_epoch(loader, trainer.current_epoch)
    iter(loop._data_fetcher)


def _validate(trainer: L.Trainer) -> None:
    """Run the validation that was due when the checkpoint was saved, and had not ended."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def _is_dry_run(trainer: L.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


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

"""Short fits with callbacks, and what TensorBoard and CSV files show of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Values by step for every tag.
Shown = dict[str, dict[int, float]]


def quiet_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **defaults | options)


def fit(
    folder: Path, module: LightningModule, *callbacks: Callback, loaders: tuple[Any, ...] = (), **options: Any
) -> Shown:
    """Fits with a TensorBoardLogger, and reads back the scalars. `loaders`: training, validation."""
    logger = TensorBoardLogger(folder)
    checkpoint_path = options.pop("ckpt_path", None)
    quiet_trainer(folder, *callbacks, logger=logger, **options).fit(module, *loaders, ckpt_path=checkpoint_path)
    return scalars(logger)


def events(logger: TensorBoardLogger) -> EventAccumulator:
    logger.experiment.flush()
    return EventAccumulator(str(logger.log_dir), size_guidance={"scalars": 0, "histograms": 0, "images": 0}).Reload()


def scalars(logger: TensorBoardLogger) -> Shown:
    read = events(logger)
    return {tag: {event.step: event.value for event in read.Scalars(tag)} for tag in read.Tags()["scalars"]}


def fit_with_csv(folder: Path, module: LightningModule, *callbacks: Callback, **options: Any) -> set[str]:
    """Fits without a logger, then with a CSVLogger, and returns the names in its file."""
    loaders = options.pop("loaders", ())
    quiet_trainer(folder, *callbacks, **options).fit(module, *loaders)
    quiet_trainer(folder, *callbacks, logger=CSVLogger(folder), **options).fit(module, *loaders)
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        return set(next(csv.reader(file)))

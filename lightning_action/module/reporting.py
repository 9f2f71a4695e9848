"""Outputs of a test: reports in files, pictures and curves in TensorBoard, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lightning_action.evaluation.metrics.inverse_dynamics_model import load_inverse_dynamics
from lightning_action.evaluation.report.provenance import reader_provenance, versions
from lightning_action.evaluation.report.report import write_reports
from lightning_action.evaluation.report.tensorboard import write_to_tensorboard
from lightning_action.weights.fingerprint import fingerprint


def provenance_of(module: L.LightningModule, data: str, reader: str | None = None) -> dict[str, Any]:
    """Say which weights and data a test was of, under which configuration and versions.

    Every rank must call it, for the weights may be sharded. Paths are as they were given.

    Args:
        module: Module that is tested.
        data: Fingerprint of the test data.
        reader: Folder of the model that read actions off the videos; None where none did.
    """
    trainer = module.trainer
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    settings = _texts(datamodule.hparams) if isinstance(datamodule, L.LightningDataModule) else {}
    return {
        "checkpoint": {"path": str(trainer.ckpt_path or ""), "fingerprint": fingerprint(module.state_dict())},
        "data": {
            "class": type(datamodule).__name__,
            "fingerprint": data,
            **({"settings": settings} if settings else {}),
        },
        **({} if reader is None else {"inverse_dynamics": reader_provenance(reader, load_inverse_dynamics(reader))}),
        "config": _configuration(trainer) or _texts(module.hparams) or None,
        "versions": versions(),
    }


def _texts(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in settings.items()}


def _configuration(trainer: L.Trainer) -> str | None:
    """The configuration of the command line, as Lightning saves it."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SaveConfigCallback):
            return str(callback.parser.dump(callback.config))
    return None


def publish(trainer: L.Trainer, report: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> str:
    """Write a report into the Trainer's `default_root_dir` and to its TensorBoard loggers; the first rank calls it.

    A dry run (`fast_dev_run`) writes nothing.

    Args:
        trainer: Trainer of the test.
        report: The report.
        pictures: Videos for the page, see `evaluation.report.report_page.report_page`.

    Returns:
        Description of the place, for people.
    """
    folder = Path(trainer.default_root_dir)
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return f"a dry run, not written to {folder / 'report.json'}"
    paths = write_reports(folder, report, pictures)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            write_to_tensorboard(logger.experiment, report, pictures)
    return f"written to {' and '.join(map(str, paths))}"

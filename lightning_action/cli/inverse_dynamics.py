"""`inverse-dynamics`: a model that reads actions off videos, trained on the real frames of a configuration's data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from lightning_action.action.schema import ActionSchema
from lightning_action.assembly import HasActionSchema
from lightning_action.atomic import require_new_folder
from lightning_action.batch import Batch, acting, has_actions, num_latent_frames, to_unit_range
from lightning_action.cli.support.data_section import parse_data
from lightning_action.cli.support.parts_cli import choose_device
from lightning_action.cli.support.text_table import Row, text_table
from lightning_action.cli.support.usage import RunParser
from lightning_action.data.recorded import RecordedDataModule
from lightning_action.evaluation.metrics.bootstrap import intervals
from lightning_action.evaluation.metrics.inverse_dynamics_model import (
    Column,
    InverseDynamicsModel,
    columns_of,
    rows_between_frames,
    save_inverse_dynamics,
)
from lightning_action.evaluation.metrics.read_actions import ReadingQuality
from lightning_action.evaluation.report.report import null_where_undefined
from lightning_action.evaluation.report.verdict import Thresholds
from lightning_action.ranges import require_numbers

# Training batches whose actions are measured, and steps between frames that a step of training looks at.
_MEASURED_BATCHES, _STEPS_AT_A_TIME = 8, 128


class InverseDynamicsFit(L.LightningModule):
    """Trains a model to read actions off real videos.

    Args:
        model: Model that is trained.
        max_steps: Number of training steps, over which the learning rate rises and falls.
        learning_rate: Highest learning rate of AdamW.
    """

    def __init__(self, model: InverseDynamicsModel, max_steps: int, learning_rate: float = 4e-3) -> None:
        super().__init__()
        self.model, self.max_steps, self.learning_rate = model, max_steps, learning_rate
        self.quality = ReadingQuality(model.columns)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Compute the loss of some steps between frames of the batch; None where no sample has actions."""
        pair = videos_with_rows(batch, self.model.schema)
        if pair is None:
            return None
        windows, rows = self.model.windows(pair[0]), pair[1].unflatten(1, (-1, self.model.rows_per_step))
        windows, rows = windows.flatten(0, 1), rows.flatten(0, 1)
        chosen = torch.randperm(len(windows), device=windows.device)[:_STEPS_AT_A_TIME]
        loss = self.model.loss(windows[chosen], rows[chosen])
        self.log("loss", loss, prog_bar=True)
        return loss

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Read the actions of a batch; `quality` has the figures."""
        pair = videos_with_rows(batch, self.model.schema)
        if pair is not None:
            self.quality.update(self.model.read(pair[0]), pair[1])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.model.parameters(), self.learning_rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=self.max_steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def run_inverse_dynamics(args: Sequence[str]) -> None:
    """Train a model that reads actions off videos, on real ones, and say how well it reads held-out real ones.

    `test` reads generated videos by it (--model.inverse_dynamics), where nobody knows the state.
    """
    parsed, build = parse_data("inverse-dynamics", run_inverse_dynamics.__doc__, _add_options, args)
    require_numbers({"max_steps": parsed.max_steps}, 1, whole=True)
    folder = Path(parsed.output)
    if not parsed.overwrite:
        require_new_folder(folder)
    device, datamodule = choose_device(parsed.device, 0), build()
    datamodule.prepare_data()
    datamodule.setup("fit")
    schema = schema_of(datamodule)
    split, held_out = held_out_batches(datamodule)
    L.seed_everything(parsed.seed, verbose=False)
    model = new_model(schema, islice(datamodule.train_dataloader(), _MEASURED_BATCHES), names_of(datamodule))
    quality = trained(InverseDynamicsFit(model, parsed.max_steps), datamodule, held_out, device)
    print(f"\n{format_quality(quality, split)}")
    told = {"split": split, "videos": len(quality.episodes()["action"]), **quality.compute()}
    save_inverse_dynamics(folder, model, null_where_undefined(told), parsed.overwrite)
    print(f"\nwritten to {folder}: give it to test with --model.inverse_dynamics={folder}")


def schema_of(datamodule: L.LightningDataModule) -> ActionSchema:
    """Return what the actions of a DataModule mean.

    Raises:
        ValueError: The DataModule does not say what its actions mean.
    """
    schema = datamodule.action_schema if isinstance(datamodule, HasActionSchema) else None
    if schema is None:
        raise ValueError(
            f"{type(datamodule).__name__} has no actions to learn from: give data with actions, whose "
            "DataModule says in `action_schema` what they mean"
        )
    return schema


def names_of(datamodule: L.LightningDataModule) -> list[str]:
    """Return the names of the recorded columns; none where nothing was recorded."""
    return [each.name for each in datamodule.statistics] if isinstance(datamodule, RecordedDataModule) else []


def held_out_batches(datamodule: L.LightningDataModule) -> tuple[str, Iterable[Batch]]:
    """Return the batches of validation, or those of test where nothing is held out for validation, and which it is.

    Raises:
        ValueError: No sample is held out for validation or test.
    """
    datamodule.setup("validate")
    loader = datamodule.val_dataloader()
    if not isinstance(loader, Sequence):
        return "validation", loader
    if loader:
        return "validation", loader[0]
    datamodule.setup("test")
    test: Iterable[Batch] = datamodule.test_dataloader()
    return "test", test


def new_model(schema: ActionSchema, batches: Iterable[Batch], names: Sequence[str]) -> InverseDynamicsModel:
    """Build a model for the actions of some training batches.

    Raises:
        ValueError: The batches have no actions, or no pixels.
    """
    rows = [pair[1].flatten(0, 1) for batch in batches if (pair := videos_with_rows(batch, schema)) is not None]
    if not rows:
        raise ValueError("none of the first training batches has actions: there is nothing to learn from")
    return InverseDynamicsModel(schema, columns_of(schema, torch.cat(rows).float(), names))


def videos_with_rows(batch: Batch, schema: ActionSchema) -> tuple[Tensor, Tensor] | None:
    """Take the videos in [0, 1] that have actions, and the rows between their frames; None where there are none.

    Raises:
        ValueError: The batch has latents in place of pixels, or its rows are not those of the schema.
    """
    if "video" not in batch:
        raise ValueError(
            "actions are read off pixels, and the batches have no `video`: give the configuration of the data that the "
            "latents were encoded from"
        )
    if not has_actions(batch):
        return None
    video, action = (batch[name][acting(batch)] for name in ("video", "action"))
    if not len(video):
        return None
    schema.check(action, num_latent_frames(video.shape[1], schema.temporal_compression_ratio))
    return to_unit_range(video), rows_between_frames(action, schema).float()


def trained(
    fit: InverseDynamicsFit, datamodule: L.LightningDataModule, held_out: Iterable[Batch], device: torch.device
) -> ReadingQuality:
    """Train on one device, and measure on real videos that it was not trained on."""
    trainer = L.Trainer(
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        max_steps=fit.max_steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(fit, datamodule.train_dataloader())
    trainer.test(fit, held_out, verbose=False)
    return fit.quality


def format_quality(quality: ReadingQuality, split: str) -> str:
    """Write what is read of each column, beside what can be had without looking."""
    figures, spread = quality.compute(), intervals(quality)

    def row(column: Column) -> Row:
        key = f"{'r2' if column.kind == 'continuous' else 'accuracy'}_{column.name}"
        chance = 0.0 if column.kind == "continuous" else figures[f"chance_{column.name}"]
        low, high = spread.get(key, (float("nan"), float("nan")))
        told = "R2" if column.kind == "continuous" else "accuracy"
        along = f"{figures[f'correlation_{column.name}']:.3f}"
        return (column.name, told, f"{figures[key]:.3f}", f"{low:.3f} .. {high:.3f}", f"{chance:.3f}", along)

    count = len(quality.episodes()["action"])
    title = f"READ OFF REAL FRAMES, {count} videos of {split}"
    head = ("column", "figure", "value", "95 %", "without looking", "correlation")
    table = text_table(title, head, [row(column) for column in quality.columns])
    needed = Thresholds().read_correlation
    unread = [each.name for each in quality.columns if not figures[f"correlation_{each.name}"] >= needed]
    remark = f"\n  - {', '.join(unread)}: correlation below {needed:g}, of which `test` will tell nothing"
    return table + (remark if unread else "")


def _add_options(parser: RunParser) -> None:
    add = parser.add_argument
    add("--output", "--out", type=str, required=True, help="Folder that the model is written to.")
    add("--overwrite", action="store_true", help="Replace what is in that folder.")
    add("--max_steps", type=int, default=600, help="Number of training steps.")
    add("--device", type=str, default="auto", help="Device that trains, such as cuda:1 or cpu.")
    add("--seed", type=int, default=0, help="Random seed of the first weights, and of what each step looks at.")

"""`check`: a dry run of a configuration, without weights and without the devices that it asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_action.batch import Batch
from lightning_action.cli.misfits import misfits
from lightning_action.cli.support.dry_run import (
    ActionTime,
    Precision,
    Report,
    action_times,
    blocks,
    flops,
    frozen_classes,
    geometry,
    memory,
    parameters_of,
    settings,
    shapes,
)
from lightning_action.cli.support.parts_cli import PartsCLI
from lightning_action.cli.support.text_table import Row, span, text_table
from lightning_action.distributed.sharding import Sharding
from lightning_action.generator.estimates import Flops, Parameters
from lightning_action.module.action_video_module import ActionVideoModule

T = TypeVar("T")
Units = tuple[tuple[float, str], ...]

# Titles of what is not called by its key, with the sizes and settings that they hold for.
_TITLES = {
    "lora": "LoRA layers",
    "self_attention": "self-attention",
    "cross_attention": "cross-attention",
    "feed_forward": "feed-forward",
    "text_encoder": "text encoder, {text_encoder}",
    "vae": "VAE, {vae}",
    "video": "video [B, T, 3, H, W]",
    "latents": "latents [B, F, C, h, w]",
    "tokens": "tokens [B, F, S, D]",
    "text": "text [B, L, text_dim]",
    "time_modulation": "time modulation [B, F, 6, D]",
    "action_rows": "action rows [B, rows, columns]",
    "action_vectors": "action vectors [B, F, A]",
    "action_modulation": "action modulation [B, F, ..., 6, D]",
    "velocity": "velocity [B, F, C, h, w]",
    "tokens_per_frame": "tokens of a latent frame",
    "tokens_per_block": "tokens of a block",
    "tokens_per_video": "tokens of the video",
    "num_blocks": "blocks of the video",
    "frames_per_block": "latent frames of a block",
    "frames_seen": "latent frames that a block sees, at most",
    "weights": "weights, {weights_dtype}",
    "kv_cache_per_frame": "KV cache of a latent frame, {cache_dtype}",
    "kv_cache": "KV cache of {cache_frames} latent frames",
    "prompt_cache": "cross-attention cache of a prompt",
    "gradients": "training: gradients",
    "adamw_moments": "training: moments of AdamW",
    "activations": "training: activations, {compute_dtype}, {checkpointed}",
    "one_pass": "one pass of a block of {frames_per_block}, which sees {frames_seen} latent frames",
    "block": "a block generated ({num_steps} steps + {num_clean_passes} clean pass{branches})",
    "pixel_frame": "for each pixel frame of it",
    "prompt": "the prompt, once a video",
    "training_step": "a training step (batch of {batch_size}, {checkpointed})",
}
_WEIGHT_DTYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
_COMPUTE_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_BYTES: Units = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_FLOPS: Units = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
_SHOWN_FRAMES = 3


class CheckCLI(PartsCLI):
    """Adds the form of the report."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")


def run_check(args: Sequence[str]) -> bool:
    """Print what a configuration asks for, and what of its data does not fit its model: then the exit status is 1."""
    cli = CheckCLI("check", run_check.__doc__, args)
    if cli.model.schema_is_open:
        set_up(cli.datamodule)
    cli.model.settle_schema(None, cli.datamodule)
    with torch.device("meta"):
        cli.model.configure_model()
    with torch.compiler.set_stance("force_eager"):  # shapes need no code
        report = make_report(cli.model, cli.datamodule, precision_of(cli.config.trainer, cli.model.sharding))
    print(json.dumps(asdict(report)) if cli.config.json else format_report(report))
    return not report.problems


def precision_of(trainer: Namespace, sharding: Sharding) -> Precision:
    """Return the dtypes that a Trainer of this configuration computes in."""
    precision, strategy = str(trainer.precision), trainer.strategy
    weights = _WEIGHT_DTYPES.get(precision, torch.float32)
    if isinstance(strategy, Namespace) and strategy.class_path.endswith(".FSDP2Strategy"):
        return Precision(weights, sharding.compute_dtype, sharding.compute_dtype)
    computed = _COMPUTE_DTYPES.get(precision, weights)
    return Precision(weights, computed, computed)


def make_report(module: ActionVideoModule, datamodule: L.LightningDataModule, precision: Precision) -> Report:
    """Look at the model, which is on the meta device, and at one batch of the data."""
    parameters, classes = parameters_of(module), frozen_classes(module)
    try:
        batch, trains = take_batch(datamodule)
    except (OSError, ValueError) as error:
        return Report(parameters, [f"{type(datamodule).__name__} gives no batch: {error}"], classes)
    problems = misfits(module, batch, trains)
    if problems:
        return Report(parameters, problems, classes)
    sizes = geometry(module, batch, trains)
    return Report(
        parameters,
        problems,
        classes | settings(module, sizes, precision),
        shapes(module, sizes),
        blocks(module, sizes),
        memory(module, sizes, precision),
        flops(module, sizes),
        [] if module.action_projection is None else action_times(module.schema, sizes.num_latents),
    )


def set_up(datamodule: L.LightningDataModule) -> bool:
    """Prepare data for training, or where it has none for predicting; True says that it is the former."""
    trains = is_overridden("train_dataloader", datamodule)
    datamodule.prepare_data()
    datamodule.setup("fit" if trains else "predict")
    return trains


def take_batch(datamodule: L.LightningDataModule) -> tuple[Batch, bool]:
    """Take a training batch, else one to predict from; True says that it is the former.

    Raises:
        ValueError: The loader gives no batch, or one that is no dict.
    """
    trains = set_up(datamodule)
    loader = datamodule.train_dataloader() if trains else datamodule.predict_dataloader()
    batch = next(iter(loader), None)
    if not isinstance(batch, dict):
        found = "nothing" if batch is None else f"a {type(batch).__name__}"
        raise ValueError(f"its {'train' if trains else 'predict'}_dataloader gives {found}, expected a dict")
    return batch, trains


def format_report(report: Report) -> str:
    """Write the report as a page of tables."""
    branches = report.settings.get("num_branches", 1)
    facts = {
        **report.settings,
        **report.blocks,
        "checkpointed": "checkpointed" if report.settings.get("activation_checkpointing") else "not checkpointed",
        "branches": f" x {branches} branches" if branches != 1 else "",
    }

    def rows(section: Mapping[str, T], cells: Callable[[T], Row]) -> list[Row]:
        return [(_title(key, facts), *cells(value)) for key, value in section.items()]

    parts = [
        text_table("PARAMETERS", ("", "trained", "frozen"), rows(report.parameters, _numbers)),
        text_table("SHAPES", ("", ""), rows(report.shapes, lambda shape: (str(shape),))),
        text_table("BLOCKS", ("", ""), rows(report.blocks, lambda number: (f"{number:,}",))),
        text_table(
            "MEMORY", ("one device, without sharding", ""), rows(report.memory, lambda n: (_with_unit(n, _BYTES),))
        ),
        text_table("OPERATIONS", ("", "linear", "attention", "both"), rows(report.flops, _operations)),
        text_table("ACTIONS IN TIME", ("latent frame", "pixel frames", "action rows"), _time_rows(report.action_times)),
    ]
    problems = "".join(f"\n- {problem}" for problem in report.problems)
    verdict = f"THE DATA DOES NOT FIT THE MODEL{problems}" if problems else "The data fits the model."
    return "\n\n".join([*filter(None, parts), verdict])


def _title(key: str, facts: Mapping[str, object]) -> str:
    """Write a key out; a part of a part is indented."""
    owner, _, part = key.rpartition(".")
    return ("  " if owner else "") + _TITLES.get(part, part.replace("_", " ")).format(**facts)


def _numbers(parameters: Parameters | None) -> Row:
    return ("", "in its files") if parameters is None else (f"{parameters.trainable:,}", f"{parameters.frozen:,}")


def _time_rows(times: list[ActionTime]) -> list[Row]:
    rows: list[Row] = [(str(item.latent), span(item.pixel_frames), span(item.action_rows)) for item in times]
    return rows if len(rows) <= _SHOWN_FRAMES + 2 else [*rows[:_SHOWN_FRAMES], ("...", "...", "..."), rows[-1]]


def _operations(cost: Flops) -> Row:
    return tuple(_with_unit(number, _FLOPS) if number else "-" for number in (cost.linear, cost.attention, cost.total))


def _with_unit(number: float, units: Units) -> str:
    size, unit = next((item for item in units if number >= item[0]), units[-1])
    return f"{number / size:.2f} {unit}"

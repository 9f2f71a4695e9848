"""LightningCLI for the verbs of a Trainer, and for those that build its model and data from the same configuration."""

from __future__ import annotations

import inspect
import os
import shutil
from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from lightning_action.atomic import require_writable
from lightning_action.cli.support.mistakes import process_rank
from lightning_action.cli.support.run_checkpoint import AtomicCheckpointIO, RunCheckpoint, require_new_or_resumed
from lightning_action.cli.support.usage import RunParser
from lightning_action.configuration.ckpt_path import choose_checkpoint, require_checkpoint
from lightning_action.configuration.class_paths import loaded, only_importing, require_classes, split_allowed
from lightning_action.configuration.model_class import choose_class
from lightning_action.distributed.fsdp2 import require_supported
from lightning_action.distributed.sharded_checkpoints import ShardedCheckpoints
from lightning_action.module.action_video_module import ActionVideoModule


class SaveConfigOfVerb(SaveConfigCallback):
    """Saves each verb's configuration under its own name, so that `test` does not overwrite that of `fit`.

    Once the first batch went through: what is refused before leaves no files.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.config_filename = f"config_{TrainerFn(stage).value}.yaml"

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        if not trainer.sanity_checking:
            super().setup(trainer, pl_module, str(trainer.state.fn))

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = on_train_batch_end


class ActionVideoCLI(LightningCLI):
    """LightningCLI for `ActionVideoModule` and any DataModule; checkpoints land in `<default_root_dir>/checkpoints`.

    Args:
        args: Arguments that were typed.
        kwargs: Further arguments of LightningCLI.

    Raises:
        ValueError: A configuration names classes of a module that `args` do not allow.
    """

    def __init__(self, args: Sequence[str], **kwargs: Any) -> None:
        arguments, allowed = split_allowed(args)
        # The only verb whose options are wanted; None for those of all.
        self._verb = next((each for each in arguments[:1] if each in self.subcommands()), None)
        with only_importing(allowed):
            super().__init__(
                ActionVideoModule,
                L.LightningDataModule,
                parser_class=RunParser,
                # A configuration without `class_path` is read, saved and refused in the shorter words of a fixed class.
                subclass_mode_model=choose_class(arguments),
                subclass_mode_data=True,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                args=arguments,
                **kwargs,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Configurations that earlier versions saved have it.
        parser.add_argument("--weights_only", type=only_tensors, default=None, help=SUPPRESS)
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.enable_version_counter": False})
        parser.link_arguments("trainer.default_root_dir", "checkpoint.dirpath", compute_fn=checkpoint_folder)

    def before_instantiate_classes(self) -> None:
        """Refuse a run that could not write its results, before anything else happens."""
        if not self.subcommand:
            return
        config = self.config[self.subcommand]
        model = config.model.get("init_args", config.model)
        strategy = config.trainer.strategy
        require_supported(strategy.class_path if isinstance(strategy, Namespace) else strategy)
        root = Path(config.trainer.default_root_dir or os.getcwd())
        config.ckpt_path = choose_checkpoint(
            self.subcommand, config.ckpt_path, Path(config.checkpoint.dirpath or root), root
        )
        has_weights = model.pretrained is not None and (model.adapter or model.action_projection is None)
        if config.ckpt_path is not None or not (has_weights or self.subcommand == "fit"):
            require_checkpoint(self.subcommand, config.ckpt_path)
            require_strategy_for(config.ckpt_path, strategy)
            if model.adapter:
                rank_zero_warn("model.adapter is not read: the checkpoint that --ckpt_path names has its own actions.")
        if not config.trainer.fast_dev_run:
            if self.subcommand == "fit" and not config.checkpoint.overwrite:
                require_new_or_resumed(config.checkpoint.dirpath, config.ckpt_path)
            require_writable(root, "--trainer.default_root_dir")
        warn_of_another_place(config.config or [], config.trainer.default_root_dir)
        if self.subcommand == "predict" and config.return_predictions is None:
            # Lightning would keep every video in memory until the end; a prediction writer has them on disk.
            config.return_predictions = False

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def announce_checkpoint(self) -> None:
        """Name it to the Trainer beforehand, so that the module knows in `setup` that its weights will come from it."""
        config = self.config_init[self.subcommand]
        if config.ckpt_path is not None and Path(config.ckpt_path).exists():
            self.trainer.ckpt_path, config.ckpt_path = config.ckpt_path, None

    before_fit = before_validate = before_test = before_predict = announce_checkpoint

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Leave out the warning of a command line beside `args`: they are that command line."""
        self.config = parser.parse_args(args)
        require_classes(self.config)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Skip `weights_only`: whether a checkpoint may run code is not for a configuration to say."""
        return {verb: {*skipped, "weights_only"} for verb, skipped in LightningCLI.subcommands().items()}

    # LightningCLI has no public way to leave out the options of other verbs, to change what a verb is called with, to
    # stand around the call, or to leave the checkpoint unread: the four methods below are its own.
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Reading the signatures of all classes for each of four verbs would take longer than parsing."""
        if self._verb in (None, subcommand):
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        return self.init_parser(**kwargs)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def _run_subcommand(self, subcommand: str) -> None:
        with undoing_a_refusal(self.trainer):
            super()._run_subcommand(subcommand)

    def _parse_ckpt_path(self) -> None:
        """A checkpoint's saved hyper-parameters do not overrule the command line: the configuration is what it says."""


def checkpoint_folder(default_root_dir: str | None) -> str | None:
    """Return the folder of checkpoints; None leaves it to the logger's folder."""
    return None if default_root_dir is None else str(Path(default_root_dir) / "checkpoints")


@contextmanager
def undoing_a_refusal(trainer: L.Trainer) -> Iterator[None]:
    """Remove what a run leaves whose first batch did not go through: loggers' files, and folders that are empty."""
    root, callbacks = Path(trainer.default_root_dir), trainer.callbacks  # type: ignore[attr-defined]
    saver = next((callback for callback in callbacks if isinstance(callback, SaveConfigOfVerb)), None)
    if saver is None or process_rank() > 0:
        yield
        return
    logged = [Path(each.log_dir) for each in trainer.loggers if isinstance(each, TensorBoardLogger | CSVLogger)]
    logged = [folder for folder in logged if not folder.exists()]
    before = set(root.iterdir()) if root.is_dir() else set()
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        if not saver.already_saved:
            for folder in logged:
                shutil.rmtree(folder, ignore_errors=True)
            made = set(root.iterdir()) - before if root.is_dir() else set()
            for folder in (*(folder.parent for folder in logged), *made, root, *missing):
                with suppress(OSError):  # it is not empty
                    folder.rmdir()
        raise


def warn_of_another_place(configs: Sequence[Any], default_root_dir: str | None) -> None:
    """Say that a run which was moved still writes to the place that its own configuration names."""
    for path in (Path(str(config)).absolute() for config in configs if config is not None):
        root = next((folder.parent for folder in path.parents if folder.name == "lightning_logs"), None)
        if root is None or default_root_dir is None or root.resolve() == Path(default_root_dir).resolve():
            continue
        trainer = yaml.safe_load(path.read_text()).get("trainer") or {}
        if trainer.get("default_root_dir") == default_root_dir:
            rank_zero_warn(
                f"The configuration is that of a run in {str(root)!r}, and writes to {default_root_dir!r}, where the "
                f"run was: to write beside it, add --trainer.default_root_dir {root}"
            )


class NoChoiceError(ArgumentTypeError, ValueError):
    """An option has one value alone; argparse passes on the words of the one type, jsonargparse those of the other."""


def only_tensors(value: bool | None) -> bool | None:
    """Parse the one value of `weights_only`.

    Raises:
        ValueError: The value is neither true nor null.
    """
    if value in (None, True, "true", "null"):
        return None
    raise NoChoiceError("checkpoints are always read as tensors and plain values alone, so that none can run code")


def require_strategy_for(ckpt_path: str, strategy: Any) -> None:
    """Refuse a folder of shards where Lightning would only say that it is a directory, or run code from it.

    Raises:
        ValueError: The checkpoint is a folder, and the strategy is not `FSDP2Strategy`.
    """
    kind = loaded(strategy.class_path) if isinstance(strategy, Namespace) else None
    if Path(ckpt_path).is_dir() and not (inspect.isclass(kind) and issubclass(kind, ShardedCheckpoints)):
        raise ValueError(
            f"{ckpt_path!r} is a folder of shards: stack configs/fsdp.yaml (with --trainer.devices 1 on one device; "
            "--trainer.strategy.init_args.save_distributed_checkpoint false writes files from there on)"
        )

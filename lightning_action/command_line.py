"""`fit`, `validate`, `test` and `predict` through LightningCLI."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
import yaml
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.checkpoint.state_dict_loader import load as load_shards

from lightning_action.checkpoints import AtomicCheckpointIO
from lightning_action.files import set_aside
from lightning_action.module import ActionVideoModule
from lightning_action.run_checkpoint import RunCheckpoint, require_new_or_resumed
from lightning_action.strategies.checkpoints import read_folder_metadata

# In place of a checkpoint's path.
_CHOSEN_BY_LIGHTNING = ("last", "best", "hpc", "registry")
# Not methods of a Trainer; `cli` runs them.
_OTHER_VERBS = (
    "Besides: `check`, a dry run of a configuration without weights or GPU, and `export`, which writes a trained "
    "generator or its actions to files that others read. --help after them says more."
)


class SaveConfigOfVerb(SaveConfigCallback):
    """Saves each verb's configuration under its own name, so that `test` does not overwrite that of `fit`."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.config_filename = f"config_{TrainerFn(stage).value}.yaml"
        super().setup(trainer, pl_module, stage)


class ActionVideoCLI(LightningCLI):
    """LightningCLI for `ActionVideoModule` and any DataModule; checkpoints land in `<default_root_dir>/checkpoints`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.enable_version_counter": False})
        parser.link_arguments("trainer.default_root_dir", "checkpoint.dirpath", compute_fn=checkpoint_folder)

    def before_instantiate_classes(self) -> None:
        """Refuse a run that could not write its results, before anything else happens."""
        if not self.subcommand:
            return
        config = self.config[self.subcommand]
        model = config.model
        has_weights = model.pretrained is not None and (model.adapter or model.action_projection is None)
        starts_without = has_weights or self.subcommand == "fit"
        if config.ckpt_path not in _CHOSEN_BY_LIGHTNING and (config.ckpt_path is not None or not starts_without):
            require_checkpoint(self.subcommand, config.ckpt_path)
            require_strategy_for(config.ckpt_path, config.trainer.strategy)
        if not config.trainer.fast_dev_run:
            if self.subcommand == "fit" and not config.checkpoint.overwrite and config.ckpt_path != "last":
                require_new_or_resumed(config.checkpoint.dirpath, config.ckpt_path)
            require_writable(config.trainer.default_root_dir or os.getcwd())
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

    def _parse_ckpt_path(self) -> None:
        """A checkpoint's saved hyper-parameters do not overrule the command line: the configuration is what it says."""


def checkpoint_folder(default_root_dir: str | None) -> str | None:
    """Where checkpoints go; None leaves it to the logger's folder."""
    return None if default_root_dir is None else str(Path(default_root_dir) / "checkpoints")


def require_writable(folder: str) -> None:
    """Create a folder, and see that a file can be written there.

    Raises:
        OSError: it cannot.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to {folder!r} ({error.strerror}): give a folder that you may write to with "
            "--trainer.default_root_dir"
        ) from error


def require_checkpoint(verb: str, ckpt_path: str | None) -> None:
    """Refuse to measure or generate with untrained weights.

    Raises:
        ValueError: no checkpoint was named, or the file is not a whole one.
        FileNotFoundError: there is none at that path.
    """
    if ckpt_path is None:
        raise ValueError(
            f"{verb} needs trained weights: name them with --ckpt_path, for example runs/demo/checkpoints/last.ckpt, "
            "or with --model.pretrained and --model.adapter"
        )
    path = Path(ckpt_path)
    if "://" not in ckpt_path and not path.exists():
        if (left := set_aside(path)).exists():
            raise FileNotFoundError(
                f"no checkpoint at {ckpt_path!r}: a run that was killed while it replaced it left it as {str(left)!r}; "
                "give it its name back"
            )
        raise FileNotFoundError(f"no checkpoint at {ckpt_path!r}: train one with `fit`, or correct --ckpt_path")
    if Path(ckpt_path).is_file() and not zipfile.is_zipfile(ckpt_path):
        raise ValueError(f"{ckpt_path!r} is not a whole checkpoint: was it cut off while it was written or copied?")


def require_strategy_for(ckpt_path: str, strategy: Any) -> None:
    """Refuse a folder of shards where Lightning would only say that it is a directory.

    Raises:
        ValueError: the checkpoint is a folder, and the strategy reads files.
    """
    reads_folders = any(name in str(strategy) for name in ("FSDP", "ModelParallel", "fsdp"))
    if Path(ckpt_path).is_dir() and not reads_folders:
        raise ValueError(
            f"{ckpt_path!r} is a folder of shards: stack configs/fsdp.yaml (with --trainer.devices 1 on one device; "
            "--trainer.strategy.init_args.save_distributed_checkpoint false writes files from there on)"
        )


def run(args: ArgsType = None) -> ActionVideoCLI:
    """Run a verb; `args` replaces `sys.argv[1:]`."""
    return ActionVideoCLI(
        ActionVideoModule,
        L.LightningDataModule,
        subclass_mode_data=True,
        save_config_callback=SaveConfigOfVerb,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"epilog": _OTHER_VERBS},
        args=args,
    )


def leave_process_group() -> None:
    """End the communication between ranks, and where that is gloo's the process, for it aborts some as they exit.

    One that aborts takes the others with it, who may still be writing.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    may_abort = dist.get_backend() == "gloo" and dist.get_world_size() > 1
    if may_abort:
        dist.barrier()
    # What still uses it is in circles of references.
    gc.collect()
    dist.destroy_process_group()
    if may_abort:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def load_module(config: str | Path, ckpt_path: str | Path) -> ActionVideoModule:
    """A trained module, ready to `generate`, without a Trainer's run.

    Args:
        config: the configuration it was trained with: the `config_fit.yaml` that `fit` saved, or a shipped one that
            does not stack on another.
        ckpt_path: the checkpoint, a file or a folder of shards.

    Raises:
        FileNotFoundError: the configuration or the checkpoint is not there.
        ValueError: the checkpoint belongs to another configuration.
    """
    require_checkpoint("load_module", str(ckpt_path))
    if not Path(config).is_file():
        raise FileNotFoundError(
            f"no configuration at {str(config)!r}: give the config_fit.yaml that `fit` saved in its logger's folder, "
            "such as runs/demo/lightning_logs/version_0"
        )
    settings = yaml.safe_load(Path(config).read_text())
    known = {key: value for key, value in settings.items() if key in ("model", "data")}
    cli = ActionVideoCLI(
        ActionVideoModule,
        L.LightningDataModule,
        subclass_mode_data=True,
        save_config_callback=None,
        trainer_defaults={"logger": False, "accelerator": "cpu"},
        run=False,
        seed_everything_default=False,
        auto_configure_optimizers=False,
        args=known,
    )
    module: ActionVideoModule = cli.model
    module.configure_model()
    if Path(ckpt_path).is_dir():
        load_shards({"state_dict": module.state_dict()}, checkpoint_id=ckpt_path, no_dist=True)
        module.on_load_checkpoint(read_folder_metadata(ckpt_path))
        return module.eval()
    checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=True, mmap=True)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval()

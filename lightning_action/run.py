"""A run for use from Python: its model from its configuration, its weights from its checkpoint."""

from __future__ import annotations

import json
import re
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

from lightning_action.callbacks.support.shard_reading import load_shards
from lightning_action.checkpoints.run_format import AVERAGES, AVERAGES_IN_SHARDS
from lightning_action.configuration.ckpt_path import require_checkpoint
from lightning_action.configuration.class_paths import only_importing, require_classes
from lightning_action.configuration.model_class import chooses_class
from lightning_action.configuration.strict_yaml import MODE, read_yaml
from lightning_action.distributed.sharded_checkpoints import read_entries
from lightning_action.module.action_video_module import ActionVideoModule
from lightning_action.weights.fit import require_same
from lightning_action.weights.tensor_files import LazyTensors, read_tensors
from lightning_action.weights.values import require_finite

Path_ = str | Path
# Averages in a file, and in a folder of shards that others made a file of.
_AVERAGED = re.compile(rf"(?:{AVERAGES}|optimizer_\d+\.{AVERAGES_IN_SHARDS})\.(.+)")


def load_run(config: Path_ | Sequence[Path_], ckpt_path: Path_, allow: Sequence[str] = ()) -> ActionVideoModule:
    """Load a trained module, ready to `generate`, without a Trainer and without its data.

    Args:
        config: Configuration it was trained with, the `config_fit.yaml` that `fit` saved; or several that stack.
        ckpt_path: Checkpoint, a file or a folder of shards.
        allow: Modules whose classes the configuration may name, besides `lightning_action`, `torch` and `lightning`.

    Raises:
        FileNotFoundError: A configuration or the checkpoint is not there.
        ValueError: A configuration names other classes or is none, or the checkpoint belongs to another one, is not
            whole, or holds objects that would run code.
    """
    require_checkpoint("load_run", str(ckpt_path))
    module = build_module(config, allow)
    load_weights(module, ckpt_path)
    return module.eval()


def load_weights(module: ActionVideoModule, ckpt_path: Path_) -> None:
    """Build the networks of a module, and fill them from a checkpoint. Raises as `load_run`."""
    module.settle_schema(ckpt_path, None)
    module.configure_model()
    if Path(ckpt_path).is_dir():
        load_shards({"state_dict": module.state_dict()}, ckpt_path, no_dist=True)
        require_finite(module.state_dict(), str(ckpt_path), "take an earlier checkpoint")
        module.on_load_checkpoint(read_entries(ckpt_path))
        return
    checkpoint = read_entries(ckpt_path)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])


@torch.no_grad()
def load_averages(module: ActionVideoModule, ckpt_path: Path_) -> None:
    """Put the averaged weights of a checkpoint into its module; what was not averaged stays.

    Raises:
        ValueError: The checkpoint holds no average, or one of another module.
    """
    missing = f"{ckpt_path} holds no averaged weights: leave --ema out, or train with the EMA callback"
    if Path(ckpt_path).is_dir():
        said = read_entries(ckpt_path).get(AVERAGES_IN_SHARDS)
        if said is None:
            raise ValueError(missing)
        state = module.state_dict()
        averaged = {name: state[name] for name in said["names"]}
        load_shards({said["group"]: {AVERAGES_IN_SHARDS: averaged}}, ckpt_path, no_dist=True)
        return
    entries = read_tensors(ckpt_path).entries
    averages = LazyTensors({match[1]: entry for name, entry in entries.items() if (match := _AVERAGED.match(name))})
    if not averages:
        raise ValueError(missing)
    own = {name: tensor for name, tensor in module.state_dict().items() if name in averages}
    require_same(
        own, averages.entries, f"the average in {ckpt_path} does not fit", "use the configuration it was trained with"
    )
    require_finite(averages, f"the average in {ckpt_path}", "take an earlier checkpoint")
    for name, tensor in own.items():
        tensor.copy_(averages[name])


def build_module(config: Path_ | Sequence[Path_], allow: Sequence[str] = ()) -> ActionVideoModule:
    """Build the module of a configuration, of which only the section `model` is looked at.

    Arguments and errors are those of `load_run`.
    """

    def add(parser: ArgumentParser, sections: Sequence[str]) -> None:
        if any(chooses_class(json.loads(section)["model"]) for section in sections):
            parser.add_subclass_arguments(ActionVideoModule, "model", fail_untyped=False)
            class_path = f"{ActionVideoModule.__module__}.{ActionVideoModule.__name__}"
            parser.set_defaults({"model": {"class_path": class_path}})
        else:
            parser.add_class_arguments(ActionVideoModule, "model", fail_untyped=False, sub_configs=True)

    module: ActionVideoModule = _build_section("model", add, config, allow)
    return module


def build_datamodule(
    config: Path_ | Sequence[Path_],
    allow: Sequence[str] = (),
    settings: Sequence[str] = (),
    parser: ArgumentParser | None = None,
) -> L.LightningDataModule:
    """Build the DataModule of a configuration, of which only the section `data` is looked at.

    Args:
        config: Configuration, or several that stack.
        allow: Modules whose classes the configuration may name, see `load_run`.
        settings: Further arguments of it, as on a command line: `--data.test_size=8`.
        parser: Parser without arguments, which says what is wrong in its own way; None for one that raises ValueError.

    Raises:
        FileNotFoundError: A configuration is not there.
        ValueError: A configuration names other classes or is none, or describes no data.
    """

    def add(parser: ArgumentParser, sections: Sequence[str]) -> None:
        parser.add_subclass_arguments(L.LightningDataModule, "data", fail_untyped=False, required=True)

    datamodule: L.LightningDataModule = _build_section("data", add, config, allow, settings, parser)
    return datamodule


def _build_section(
    name: str,
    add: Callable[[ArgumentParser, Sequence[str]], None],
    config: Path_ | Sequence[Path_],
    allow: Sequence[str],
    settings: Sequence[str] = (),
    parser: ArgumentParser | None = None,
) -> Any:
    paths = [config] if isinstance(config, str | Path) else list(config)
    sections = [read_section(Path(path), name) for path in paths]
    parser = parser or ArgumentParser(exit_on_error=False, parser_mode=MODE)
    parser.add_argument("--config", action=ActionConfigFile)
    add(parser, sections)
    told = ", ".join(str(path) for path in paths)
    with only_importing(allow):
        try:
            parsed = parser.parse_args([*(f"--config={section}" for section in sections), *settings])
        except ArgumentError as error:
            raise ValueError(f"{told} describes no {name}: {' '.join(str(error).split())}") from error
        require_classes(parsed)
        return parser.instantiate(parsed)[name]


def read_section(path: Path, name: str) -> str:
    """Read one section of a configuration, as JSON.

    Raises:
        FileNotFoundError: The path names no file.
        ValueError: The file is no configuration.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no configuration at {str(path)!r}: give the config_fit.yaml that `fit` saved in its logger's folder, "
            "such as runs/demo/lightning_logs/version_0"
        )
    try:
        settings = read_yaml(path.read_text())
        if not isinstance(settings, dict):
            raise ValueError(f"it has no sections, such as `{name}`")
        return json.dumps({name: _included(settings.get(name) or {}, path.parent)})
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no configuration: {' '.join(str(error).split())}") from error


def _included(section: Any, folder: Path) -> Any:
    """Write out the paths of configurations that are included, which are named from the folder of this one."""
    if isinstance(section, dict):
        return {key: _included(value, folder) for key, value in section.items()}
    if isinstance(section, str) and section.endswith((".yaml", ".yml", ".json")) and (folder / section).is_file():
        return str((folder / section).absolute())
    return section

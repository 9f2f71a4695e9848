"""A run for use from Python: its model from its configuration, its weights from its checkpoint."""

from __future__ import annotations

import json
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

from lightning_action.callbacks.support.shard_reading import load_shards
from lightning_action.configuration.ckpt_path import require_checkpoint
from lightning_action.configuration.class_paths import only_importing, require_classes
from lightning_action.configuration.strict_yaml import MODE, read_yaml
from lightning_action.distributed.sharded_checkpoints import read_folder_metadata
from lightning_action.module import ActionVideoModule
from lightning_action.weights.tensor_files import load_pickle
from lightning_action.weights.values import require_finite

Path_ = str | Path


def load_run(config: Path_ | Sequence[Path_], ckpt_path: Path_, allow: Sequence[str] = ()) -> ActionVideoModule:
    """A trained module, ready to `generate`, without a Trainer and without its data.

    Args:
        config: the configuration it was trained with, the `config_fit.yaml` that `fit` saved; or several that stack.
        ckpt_path: the checkpoint, a file or a folder of shards.
        allow: modules whose classes the configuration may name, besides `lightning_action`, `torch` and `lightning`.

    Raises:
        FileNotFoundError: a configuration or the checkpoint is not there.
        ValueError: a configuration names other classes or is none, or the checkpoint belongs to another one, is not
            whole, or holds objects that would run code.
    """
    require_checkpoint("load_run", str(ckpt_path))
    module = build_module(config, allow)
    module.configure_model()
    if Path(ckpt_path).is_dir():
        load_shards({"state_dict": module.state_dict()}, ckpt_path, no_dist=True)
        require_finite(module.state_dict(), str(ckpt_path), "take an earlier checkpoint")
        module.on_load_checkpoint(read_folder_metadata(ckpt_path))
        return module.eval()
    checkpoint = load_pickle(Path(ckpt_path))
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval()


def build_module(config: Path_ | Sequence[Path_], allow: Sequence[str] = ()) -> ActionVideoModule:
    """The module of a configuration, of which only the section `model` is looked at.

    Arguments and errors as in `load_run`.
    """
    paths = [config] if isinstance(config, str | Path) else list(config)
    sections = [_model_section(Path(path)) for path in paths]
    parser = ArgumentParser(exit_on_error=False, parser_mode=MODE)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_class_arguments(ActionVideoModule, "model", fail_untyped=False, sub_configs=True)
    told = ", ".join(str(path) for path in paths)
    with only_importing(allow):
        try:
            parsed = parser.parse_args([f"--config={section}" for section in sections])
        except ArgumentError as error:
            raise ValueError(f"{told} describes no model: {' '.join(str(error).split())}") from error
        require_classes(parsed)
        module: ActionVideoModule = parser.instantiate(parsed).model
    return module


def _model_section(path: Path) -> str:
    """The model of a configuration, as JSON."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no configuration at {str(path)!r}: give the config_fit.yaml that `fit` saved in its logger's folder, "
            "such as runs/demo/lightning_logs/version_0"
        )
    try:
        settings = read_yaml(path.read_text())
        if not isinstance(settings, dict):
            raise ValueError("it has no sections, such as `model`")
        return json.dumps({"model": _included(settings.get("model") or {}, path.parent)})
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no configuration: {' '.join(str(error).split())}") from error


def _included(section: Any, folder: Path) -> Any:
    """With the full paths of the configurations that are included, which are named from the folder of this one."""
    if isinstance(section, dict):
        return {key: _included(value, folder) for key, value in section.items()}
    if isinstance(section, str) and section.endswith((".yaml", ".yml", ".json")) and (folder / section).is_file():
        return str((folder / section).absolute())
    return section

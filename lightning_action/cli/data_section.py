"""The DataModule of a configuration, without its model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lightning as L
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from torch.utils.data import DataLoader

from lightning_action.batch import Batch
from lightning_action.cli.trainer_verbs import program_name
from lightning_action.cli.usage import RunParser
from lightning_action.configuration.class_paths import only_importing, require_classes
from lightning_action.data.split_data import SplitDataModule
from lightning_action.run import read_section

SETTING = "--data."


def split_settings(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell arguments of the data, `--data.NAME=VALUE` or `--data.NAME VALUE`, from the others, which come second."""
    settings: list[str] = []
    rest: list[str] = []
    takes = False
    for argument in args:
        takes_more = takes and not argument.startswith("--")
        begins = argument.startswith(SETTING)
        (settings if begins or takes_more else rest).append(argument)
        takes = begins and "=" not in argument
    return settings, rest


def build_data(
    config: Sequence[str | Path], settings: Sequence[str] = (), allow: Sequence[str] = ()
) -> SplitDataModule:
    """Build the DataModule of a configuration, of which only the section `data` is looked at.

    Args:
        config: Configurations that stack.
        settings: Further arguments of it, as on a command line: `--data.test_size=8`.
        allow: Modules whose classes the configuration may name, see `load_run`.

    Raises:
        FileNotFoundError: A configuration is not there.
        ValueError: It describes no data that has test samples.
    """
    told = ", ".join(map(str, config))
    sections = [f"--config={read_section(Path(path), 'data')}" for path in config]
    parser = RunParser(prog=f"{program_name()} evaluate")
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_lightning_class_args(L.LightningDataModule, "data", subclass_mode=True)
    with only_importing(allow):
        parsed = parser.parse_args([*sections, *settings])
        require_classes(parsed)
        datamodule = parser.instantiate(parsed).data
    if not isinstance(datamodule, SplitDataModule):
        raise ValueError(
            f"{told}: expected a section `data` with a DataModule of recordings or of a simulator (a SplitDataModule), "
            f"which has samples to compare with; got {type(datamodule).__name__}"
        )
    return datamodule


def load_samples(data: SplitDataModule, split: Literal["test", "predict"]) -> DataLoader[Batch]:
    """Prepare a DataModule, and load a split of it."""
    data.prepare_data()
    data.setup(split)
    return data.test_dataloader() if split == "test" else data.predict_dataloader()

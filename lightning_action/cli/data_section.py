"""The DataModule of a configuration, without its model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch.utils.data import DataLoader

from lightning_action.batch import Batch
from lightning_action.cli.usage import RunParser, program_name
from lightning_action.data.split_data import SplitDataModule
from lightning_action.run import build_datamodule

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
    """Build the DataModule of a configuration by `build_datamodule`, and require that it has test samples.

    Arguments and errors are those of `build_datamodule`; mistakes are told as on the command line.

    Raises:
        ValueError: The data has no test samples.
    """
    datamodule = build_datamodule(config, allow, settings, RunParser(prog=f"{program_name()} evaluate"))
    if not isinstance(datamodule, SplitDataModule):
        raise ValueError(
            f"{', '.join(map(str, config))}: expected a section `data` with a DataModule of recordings or of a "
            f"simulator (a SplitDataModule), which has samples to compare with; got {type(datamodule).__name__}"
        )
    return datamodule


def load_samples(data: SplitDataModule, split: Literal["test", "predict"]) -> DataLoader[Batch]:
    """Prepare a DataModule, and load a split of it."""
    data.prepare_data()
    data.setup(split)
    return data.test_dataloader() if split == "test" else data.predict_dataloader()

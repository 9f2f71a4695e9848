"""The DataModule of a configuration, without its model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import lightning as L
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from torch.utils.data import DataLoader

from lightning_action.batch import Batch
from lightning_action.cli.support.usage import RunParser, program_name
from lightning_action.configuration.class_paths import ALLOW_HELP, only_importing, require_classes, split_allowed
from lightning_action.data.split_data import SplitDataModule
from lightning_action.run import build_datamodule, read_section


def split_settings(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell arguments of the data, `--data.NAME=VALUE` or `--data.NAME VALUE`, from the others, which come second."""
    settings: list[str] = []
    rest: list[str] = []
    takes = False
    for argument in args:
        takes_more = takes and not argument.startswith("--")
        begins = argument.startswith("--data.")
        (settings if begins or takes_more else rest).append(argument)
        takes = begins and "=" not in argument
    return settings, rest


def parse_data(
    verb: str, description: str | None, add_options: Callable[[RunParser], None], args: Sequence[str]
) -> tuple[Namespace, Callable[[], L.LightningDataModule]]:
    """Parse the command line of a verb that needs no model; return its options, and a function that builds its data.

    Args:
        verb: Name of the verb.
        description: First words of its help.
        add_options: Function that adds the options of the verb.
        args: Arguments that follow the verb.
    """
    arguments, allowed = split_allowed(args)
    parser = RunParser(prog=f"{program_name()} {verb}", description=description, epilog=ALLOW_HELP)
    parser.add_argument(
        "--config", action=ActionConfigFile, help="Configuration, of which only `data` is read; again to stack."
    )
    parser.add_subclass_arguments(L.LightningDataModule, "data", required=True)
    add_options(parser)
    with only_importing(allowed):
        parsed = parser.parse_args(data_sections_alone(arguments))
        require_classes(parsed)

    def build() -> L.LightningDataModule:
        with only_importing(allowed):
            return parser.instantiate(parsed).data

    return parsed, build


def data_sections_alone(arguments: Sequence[str]) -> list[str]:
    """Put the sections `data` in the place of configurations, of which the rest is for other verbs."""
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        option, has_value, value = argument.partition("=")
        if option == "--config":
            path = value if has_value else next(rest, "")
            found.append(f"--config={read_section(Path(path), 'data')}")
        else:
            found.append(argument)
    return found


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

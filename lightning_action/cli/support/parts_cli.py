"""What verbs without a Trainer share: model and data of a configuration that is parsed as for one, and their device."""

from __future__ import annotations

import os
from collections.abc import Sequence

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lightning_action.cli.support.trainer_cli import ActionVideoCLI
from lightning_action.cli.support.usage import program_name
from lightning_action.configuration.class_paths import ALLOW_HELP
from lightning_action.module.action_video_module import ActionVideoModule

# What a configuration that another verb saved holds besides; it says nothing about the model.
_ARGUMENTS_OF_VERBS = {"ckpt_path": str, "verbose": bool, "return_predictions": bool}


class PartsCLI(ActionVideoCLI):
    """Parses what the other verbs parse, and builds the model and the data, but no Trainer.

    Args:
        verb: Name of the verb.
        description: First words of its help.
        args: Arguments that follow the verb.
    """

    model: ActionVideoModule
    datamodule: L.LightningDataModule

    def __init__(self, verb: str, description: str | None, args: Sequence[str]) -> None:
        super().__init__(
            args,
            save_config_callback=None,
            run=False,
            parser_kwargs={"prog": f"{program_name()} {verb}", "description": description, "epilog": ALLOW_HELP},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        for name, kind in _ARGUMENTS_OF_VERBS.items():
            parser.add_argument(f"--{name}", type=kind | None, default=None, help="Ignored.")

    def instantiate_classes(self) -> None:
        """Leave the Trainer out: it would ask for the devices of the configuration."""
        parts = self.parser.instantiate(Namespace(model=self.config.model, data=self.config.data))
        self.model, self.datamodule = parts.model, parts.data


def choose_device(name: str, rank: int) -> torch.device:
    """Find a device by its name; `auto` shares out the GPUs, and is the CPU where there are none.

    Raises:
        ValueError: The name is that of no kind of device.
    """
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"expected a device such as cuda:0 or cpu, or auto, got {name!r}") from error
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())

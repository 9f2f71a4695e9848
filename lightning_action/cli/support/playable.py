"""A trained run as a stage, for the verbs that play it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LightningArgumentParser

from lightning_action.cli.support.mistakes import UsageError
from lightning_action.cli.support.parts_cli import PartsCLI, choose_device
from lightning_action.data.split_data import SplitDataModule
from lightning_action.generator.attention_kernels import hold_attention_kernels
from lightning_action.module.action_video_module import ActionVideoModule
from lightning_action.play.generated import PlaySettings, stage_of, warm_up
from lightning_action.play.live_world import Stage
from lightning_action.run import load_weights

DType = Literal["float32", "bfloat16"]
Tell = Callable[[str, float], None]
_POSITIONS = "--model.sampling.relative_positions"


class PlayableCLI(PartsCLI):
    """Adds what decides how a run is played."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        add = parser.add_argument
        add("--device", type=str, default="auto", help="Device of the model, such as cuda:1 or cpu.")
        add("--dtype", type=DType, default="float32", help="Dtype of the weights.")
        add("--split", type=Literal["test", "validation", "predict", "train"], default="test", help="Samples begun at.")
        add("--fps", type=float | None, default=None, help="Number of frames of a second; default: that of the data.")
        add(
            "--window",
            type=int | None,
            default=None,
            help="Number of latent frames that a block sees; default: that of the model, else the length of the data's "
            "videos.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Refuse the option that `stage_of` overrules; in a configuration it is what `fit` wrote, and no wish."""
        if any(each.partition("=")[0] == _POSITIONS for each in args):
            raise UsageError(
                f"a world is played for ever, so its positions are counted within the window: leave {_POSITIONS} out"
            )
        super().parse_arguments(parser, args)


def settings_of(config: Any, title: str) -> PlaySettings:
    """Take what decides how a run is played from its parsed options."""
    return PlaySettings(config.split, config.fps, config.window, title)


def require_playable(model: ActionVideoModule, data: L.LightningDataModule) -> SplitDataModule:
    """Refuse what nobody can steer, or begin.

    Raises:
        ValueError: The model takes no actions, or the data has no samples.
    """
    if not model.takes_actions:
        raise ValueError("this model takes no actions: there is nothing to steer (model.action_projection is null)")
    if not isinstance(data, SplitDataModule):
        raise ValueError(
            f"expected data with samples that worlds can begin at (a SplitDataModule), got {type(data).__name__}"
        )
    return data


def load_stage(
    cli: PlayableCLI, data: SplitDataModule, settings: PlaySettings, provenance: Mapping[str, Any], tell: Tell
) -> Stage:
    """Load a run, and make its first blocks.

    Args:
        cli: Parsed command line.
        data: Data of the run.
        settings: Settings of the play.
        provenance: Entries by which recordings say where they come from.
        tell: Function that is told what is being done, and which share is done.
    """
    config, module = cli.config, cli.model
    tell("preparing the data", 0.1)
    data.prepare_data()
    data.setup("fit" if settings.split == "train" else {"validation": "validate"}.get(settings.split, settings.split))
    tell("loading the weights", 0.25)
    load_weights(module, config.ckpt_path)
    device = choose_device(config.device, 0)
    module.to(device, getattr(torch, config.dtype)).eval()
    module.quantize()
    tell("loading the text encoder and the VAE", 0.5)
    module.frozen.load()
    hold_attention_kernels(device)
    tell("making the first blocks", 0.8)
    stage = stage_of(module, data, settings, {"ckpt_path": config.ckpt_path, **provenance})
    warm_up(stage)
    tell("ready", 1.0)
    return stage

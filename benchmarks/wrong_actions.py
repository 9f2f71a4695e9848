"""Check that the test names what is wrong with models that learned from wrong actions.

Goes on with the demo's run for some hundred steps, each time with another mistake in its data, and tests each model on
data without mistake: python -m benchmarks.wrong_actions --run runs/demo
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from torch import Tensor

from lightning_action import ActionVideoModule, MovingSpriteWorld, SpriteDataModule
from lightning_action.atomic import write_json
from lightning_action.checkpoints.run_weights import RunWeights
from lightning_action.data.sprite_world import WorldStart
from lightning_action.evaluation.known_state import position_reader, simulator
from lightning_action.evaluation.report.report import Report, null_where_undefined
from lightning_action.run import load_run

Mistake = Callable[[Tensor], Tensor]


def late(actions: Tensor) -> Tensor:
    """Each row acts a pixel frame too late."""
    return torch.cat([torch.zeros_like(actions[:, :1]), actions[:, :-1]], dim=1)


def only_last(actions: Tensor) -> Tensor:
    """The last row of each latent frame acts four times, and the others never."""
    return actions[:, 3::4].repeat_interleave(4, dim=1)


MISTAKES: dict[str, Mistake] = {
    "none": lambda actions: actions,
    "late by a frame": late,
    "swapped columns": lambda actions: actions.flip(-1),
    "y inverted": lambda actions: actions * torch.tensor([1.0, -1.0]),
    "x cut": lambda actions: actions * torch.tensor([0.0, 1.0]),
    "shuffled between samples": lambda actions: actions.roll(1, dims=0),
    "last of four alone": only_last,
}


class MistakenWorld(MovingSpriteWorld):
    """A world whose sprites do not do what they are told, but what a mistake makes of it.

    Args:
        mistake: Function from action rows `[B, T - 1, 2]` to those that are obeyed.
        kwargs: Arguments of `MovingSpriteWorld`.
    """

    def __init__(self, mistake: Mistake, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mistake = mistake

    def simulate(self, start: WorldStart, actions: Tensor) -> Tensor:
        """Compute positions under what the mistake makes of the actions."""
        return super().simulate(start, self.mistake(actions))


def config_of(run: RunWeights) -> Path:
    """Return the configuration of a run, which must have one."""
    if run.config is None:
        raise FileNotFoundError(f"no config_fit.yaml in {run.generator} or below it: name the folder of a run")
    return run.config


def go_on(run: RunWeights, mistake: Mistake, world: dict[str, Any], num_steps: int) -> ActionVideoModule:
    """Load the run, and train it further on mistaken videos."""
    module = load_run(config_of(run), run.path).train()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=num_steps,
        max_epochs=-1,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, SpriteDataModule(MistakenWorld(mistake, **world)))
    return module.eval()


def measure(module: ActionVideoModule, world: dict[str, Any], num_videos: int) -> Report:
    """Test on videos without mistake."""
    data = SpriteDataModule(MovingSpriteWorld(**world), test_size=num_videos, eval_batch_size=num_videos)
    test = module.obedience_test(position_reader(data, "test"), simulator(data, "test"))
    for batch in data.test_dataloader():
        losses = module.matched_losses(batch)
        truth = test.add_model(batch, losses)
        test.add_baselines(batch, losses, truth)
        test.add_probes(batch)
    return test.report()


@torch.no_grad()
def blind(run: RunWeights) -> ActionVideoModule:
    """Load the run without its actions: what is left is what the backbone knows."""
    module = load_run(config_of(run), run.path)
    assert module.action_projection is not None
    for parameter in module.action_projection.parameters():
        parameter.zero_()
    return module


def main(arguments: Sequence[str] | None = None) -> None:
    """Print, and write, the verdict on each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wrong_actions", description=__doc__)
    parser.add_argument("--run", default="runs/demo", help="Run of the demo.")
    parser.add_argument("--steps", type=int, default=400, help="Training steps for each mistake.")
    parser.add_argument("--videos", type=int, default=48, help="Number of test videos.")
    parser.add_argument("--only", nargs="+", choices=[*MISTAKES, "blind"], help="Mistakes to try; default: all.")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    trained = RunWeights(options.run)
    world = yaml.safe_load(config_of(trained).read_text())["data"]["init_args"]["world"]["init_args"]
    reports: dict[str, Report] = {}
    for name in options.only or [*MISTAKES, "blind"]:
        module = blind(trained) if name == "blind" else go_on(trained, MISTAKES[name], world, options.steps)
        reports[name] = measure(module, world, options.videos)
        verdict = reports[name]["verdict"]
        print(f"| {name} | {verdict['label']} | {'; '.join(verdict['reasons'])} |", flush=True)
    if options.json:
        write_json(options.json, null_where_undefined(reports))


if __name__ == "__main__":
    main()

"""Cost of all callbacks together, as a ratio of two fits of the demo that take turns in one run.

`benchmarks/README.md` says what each figure means. Run it with `python -m benchmarks.callbacks`.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import lightning as L
import torch
import yaml
from lightning.pytorch.cli import instantiate_class
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.cost import Figure, Milliseconds, figure, machine, say, table
from lightning_action import ActionVideoModule
from lightning_action.atomic import write_json
from lightning_action.callbacks import (
    EMA,
    ActionModulationMonitor,
    ActionSensitivity,
    DriftMonitor,
    FreezeBackboneFirst,
    GradientStatistics,
    NoiseLevelLoss,
    RolloutLogger,
    TensorBoardLayout,
    ThroughputMonitor,
)
from lightning_action.cli.support.parts_cli import PartsCLI

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"


@dataclass(frozen=True)
class Sizes:
    """Sizes of what is measured.

    Args:
        steps: Steps of a fit; what every callback does at its default interval happens in it at least once.
        rounds: Fits of each kind.
        settings: Settings that differ from the demo, by section of its configuration.
    """

    steps: int = 1000
    rounds: int = 1
    settings: tuple[str, ...] = ()


TINY = Sizes(
    steps=2,
    rounds=1,
    settings=(
        "--model.generator.init_args.dim=24",
        "--model.generator.init_args.ffn_dim=40",
        "--model.generator.init_args.num_layers=2",
        "--model.action_projection.init_args.num_layers=2",
        "--model.sampling.num_inference_steps=1",
        "--data.init_args.num_latents=3",
        "--data.init_args.batch_size=2",
        "--data.init_args.train_size=16",
        "--data.init_args.validation_size=2",
    ),
)


class Stopwatch(L.Callback):
    """Time between the hooks of a fit; first in the list of callbacks, so that it counts what the others take.

    It is the time that this process computes: what else the machine does, and waiting, would hide a few per cent.
    """

    def __init__(self) -> None:
        self.seconds = {"training": 0.0, "validation": 0.0}
        self._running: str | None = None
        self._since = 0.0

    def _turn_to(self, part: str | None) -> None:
        now = process_time()
        if self._running is not None:
            self.seconds[self._running] += now - self._since
        self._running, self._since = part, now

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The step before is over, with all that callbacks did after it."""
        self._turn_to("training")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The step before is over."""
        self._turn_to("validation")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that all is over."""
        self._turn_to(None)


def every_callback() -> list[L.Callback]:
    """Build all callbacks that work in a fit, without arguments; the backbone trains from the start in both fits."""
    return [
        FreezeBackboneFirst(["generator"], unfreeze_at_step=0),
        EMA(),
        ActionModulationMonitor(),
        GradientStatistics(),
        NoiseLevelLoss(),
        ThroughputMonitor(),
        ActionSensitivity(),
        RolloutLogger(),
        DriftMonitor(rollout_rows=32),
        TensorBoardLayout(),
    ]


def demo_callbacks() -> list[L.Callback]:
    """Build the callbacks that the demo's configuration lists; the backbone trains from the start here as well."""
    listed = yaml.safe_load(DEMO.read_text())["trainer"]["callbacks"]
    made = [instantiate_class((), callback) for callback in listed]
    kept = [callback for callback in made if not isinstance(callback, FreezeBackboneFirst)]
    return [FreezeBackboneFirst(["generator"], unfreeze_at_step=0), *kept]


class Variant(NamedTuple):
    """A kind of fit."""

    callbacks: Callable[[], list[L.Callback]]
    log_every_n_steps: int = 50


VARIANTS = {
    "all callbacks": Variant(every_callback),
    "the demo's callbacks": Variant(demo_callbacks, log_every_n_steps=10),
    "no callback": Variant(list),
    "no callback, again": Variant(list),
}


def new_demo(settings: Sequence[str]) -> tuple[ActionVideoModule, L.LightningDataModule]:
    """The module and the data of the demo, without the pretrained backbone."""
    demo = yaml.safe_load(DEMO.read_text())
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"model": {**demo["model"], "pretrained": None}, "data": demo["data"]}, file)
        file.flush()
        cli = PartsCLI("callbacks", None, ["--config", file.name, "--trainer.logger=false", *settings])
    return cli.model, cli.datamodule


def fit(variant: Variant, sizes: Sizes) -> dict[str, float]:
    """Seconds of the training steps and of the validation after the last one."""
    module, data = new_demo(sizes.settings)
    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            default_root_dir=folder,
            logger=TensorBoardLogger(folder),
            accelerator="cpu",
            callbacks=[stopwatch, *variant.callbacks()],
            log_every_n_steps=variant.log_every_n_steps,
            max_steps=sizes.steps,
            max_epochs=-1,
            gradient_clip_val=1.0,
            val_check_interval=sizes.steps,
            check_val_every_n_epoch=None,
            limit_val_batches=1,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
    return stopwatch.seconds


def measure(sizes: Sizes) -> dict[str, Any]:
    """Measure everything: `machine`, `sizes`, `figures` by name and `checks`, ready for JSON."""
    names = list(VARIANTS)
    steps: Milliseconds = {name: [] for name in names}
    validations: Milliseconds = {name: [] for name in names}
    fit(VARIANTS["all callbacks"], TINY)
    for number in range(sizes.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            say(f"[{number + 1}/{sizes.rounds}] {name}")
            seconds = fit(VARIANTS[name], sizes)
            steps[name].append(1000 * seconds["training"] / sizes.steps)
            validations[name].append(1000 * seconds["validation"])
    figures: dict[str, Figure] = {
        "step_with_all_callbacks": figure(steps, "all callbacks", "no callback", target=1.03),
        "step_of_the_demo": figure(steps, "the demo's callbacks", "no callback"),
        "step_noise": figure(steps, "no callback, again", "no callback"),
        "validation_with_all_callbacks": figure(validations, "all callbacks", "no callback"),
    }
    return {
        "machine": machine(torch.device("cpu")),
        "sizes": asdict(sizes),
        "figures": {name: asdict(value) for name, value in figures.items()},
        "checks": {"callbacks": len(every_callback()), "steps_of_each_fit": sizes.steps},
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the Trainer says at every fit."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    log.setLevel(level)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="Show in seconds that everything runs; measure nothing.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="File that takes the result as well.")
    chosen = parser.parse_args(arguments)
    if chosen.json is not None and not chosen.json.parent.is_dir():
        parser.error(f"--json: there is no folder {chosen.json.parent}: make it first")
    with quiet():
        result = measure(TINY if chosen.tiny else Sizes())
    print(table(result))
    if chosen.json is not None:
        write_json(chosen.json, result)


if __name__ == "__main__":
    main()

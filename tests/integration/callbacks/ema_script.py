"""Fits, resumes and predictions with EMA on the processes it is started on; writes what happened as JSON.

Called by test_ema_distributed.py with a folder: first on two processes, then on one, which reads the
checkpoints of the two.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from lightning_action.callbacks import EMA
from tests.support.short_fits import quiet_trainer
from tests.support.someones_dit import SomeonesDiT, moving_spots

DECAY, EPOCHS, SAMPLES_PER_STEP = 0.8, 3, 4
State = dict[str, Tensor]


def fsdp2(save_distributed_checkpoint: bool) -> Strategy:
    return ModelParallelStrategy(dist.get_world_size(), 1, save_distributed_checkpoint)


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "ddp": DDPStrategy,
    "fsdp2_sharded": lambda: fsdp2(True),
    "fsdp2_full": lambda: fsdp2(False),
}


class Model(SomeonesDiT):
    """With gradients that differ by rounding alone, an optimizer whose steps do, too."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self(batch, batch["action"])


class Watcher(Callback):
    """Keeps the weights after every step, as validation and prediction see them, and when all is over."""

    def __init__(self) -> None:
        self.trained: list[State] = []
        self.evaluated: list[State] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trained.append(weights(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.trained.append(weights(pl_module))

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.evaluated.append(weights(pl_module))

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.evaluated.append(weights(pl_module))


def weights(module: LightningModule) -> State:
    """Whole, and copied."""
    model: Any = module if module._trainer is None else module.trainer.model
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return {name: value.clone() for name, value in whole.items() if isinstance(value, Tensor)}


def by_hand(states: list[State]) -> State:
    average = copy.deepcopy(states[0])
    for state in states[1:]:
        average = {name: DECAY * value + (1 - DECAY) * state[name] for name, value in average.items()}
    return average


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def difference(one: State, other: State) -> float:
    return max((value - other[name]).abs().max().item() for name, value in one.items())


def new_trainer(folder: Path, build: Callable[[], Strategy], *callbacks: Callback) -> Trainer:
    saving = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return quiet_trainer(
        folder,
        *callbacks,
        strategy=build(),
        devices=dist.get_world_size(),
        max_epochs=EPOCHS,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        enable_checkpointing=saving,
    )


def fit(folder: Path, build: Callable[[], Strategy], *callbacks: Callback, ckpt_path: Path | None = None) -> Watcher:
    watcher = Watcher()
    loader = moving_spots(3 * SAMPLES_PER_STEP, SAMPLES_PER_STEP // dist.get_world_size())
    trainer = new_trainer(folder, build, *callbacks, watcher)
    trainer.fit(Model(zero_init=False), loader, loader, ckpt_path=ckpt_path)
    return watcher


def predict(folder: Path, build: Callable[[], Strategy], ckpt_path: Path) -> tuple[State, State]:
    """The weights it predicts with, and those it leaves behind."""
    watcher, model = Watcher(), Model(zero_init=False)
    trainer = new_trainer(folder, build, EMA(), watcher)
    trainer.predict(model, moving_spots(), ckpt_path=ckpt_path, return_predictions=False)
    return watcher.evaluated[0], weights(model)


def observe(folder: Path, build: Callable[[], Strategy], plain: State) -> dict[str, Any]:
    saves = ModelCheckpoint(folder, "{epoch}", every_n_epochs=1, save_top_k=-1)
    watcher = fit(folder, build, EMA(DECAY, warmup=False), saves)
    expected, trained = by_hand(watcher.trained), watcher.trained[-1]
    resumed = {}
    for epoch in range(EPOCHS - 1):
        again = fit(folder, build, EMA(DECAY, warmup=False), ckpt_path=folder / f"epoch={epoch}.ckpt")
        resumed[str(epoch)] = equal(again.evaluated[-1], watcher.evaluated[-1]) and equal(again.trained[-1], trained)
    predicted, left = predict(folder, build, folder / f"epoch={EPOCHS - 1}.ckpt")
    if dist.get_rank() == 0:
        torch.save({"average": watcher.evaluated[-1], "trained": trained}, folder / "seen.pt")
    return {
        "differs_from_by_hand": difference(watcher.evaluated[-1], expected),
        "differs_from_trained": difference(watcher.evaluated[-1], trained),
        "trains_as_without": equal(trained, plain),
        "resumed": resumed,
        "predicts_with_average": equal(predicted, watcher.evaluated[-1]),
        "leaves_trained": equal(left, trained),
    }


def on_two(folder: Path) -> dict[str, Any]:
    return {
        name: observe(folder / name, build, fit(folder / name, build).trained[-1]) for name, build in STRATEGIES.items()
    }


def on_one(folder: Path) -> dict[str, Any]:
    """Compares with what two processes found, and predicts from their checkpoints."""
    alone = by_hand(fit(folder, DDPStrategy, EMA(DECAY, warmup=False)).trained)
    facts: dict[str, Any] = {}
    for name, build in STRATEGIES.items():
        seen = torch.load(folder / name / "seen.pt", weights_only=True)
        predicted, left = predict(folder, build, folder / name / f"epoch={EPOCHS - 1}.ckpt")
        facts[name] = {
            "differs_from_one_process": difference(seen["average"], alone),
            "predicts_with_average": equal(predicted, seen["average"]),
            "leaves_trained": equal(left, seen["trained"]),
        }
    return facts


def main(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo")
    facts = on_one(folder) if dist.get_world_size() == 1 else on_two(folder)
    gathered = [facts] * dist.get_world_size()
    dist.all_gather_object(gathered, facts)
    if rank == 0:
        by_strategy = {name: [facts[name] for facts in gathered] for name in STRATEGIES}
        (folder / "facts.json").write_text(json.dumps(by_strategy))
    dist.destroy_process_group()

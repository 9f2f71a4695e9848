"""A fit that stopped goes on as if it had not, however it stopped: by what it sees and by what it computes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from lightning_action.callbacks import FreezeBackboneFirst
from lightning_action.checkpoints import AtomicCheckpointIO
from lightning_action.run_checkpoint import RunCheckpoint
from lightning_action.settings import Optimization
from tests.small_demo import small_data, small_demo

# Five batches an epoch; 13 steps end in the middle of the third.
END = 13
Options = dict[str, Any]


class Seen(L.Callback):
    """What each batch is, and when the module logs it."""

    def __init__(self) -> None:
        self.batches: list[tuple[Any, ...]] = []
        self.validations: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        axis, rates = trainer.fit_loop.epoch_loop._batches_that_stepped, trainer.optimizers[0].param_groups
        place = (trainer.current_epoch, batch_idx, trainer.global_step, axis, [group["lr"] for group in rates])
        self.batches.append((*place, batch["sample_id"].tolist()))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.validations.append(trainer.global_step)


@dataclass
class At(L.Callback):
    """Does something to the Trainer at a step: at the end of a training batch, or of a validation's."""

    step: int
    act: Callable[[L.Trainer], Any]
    hook: str = "on_train_batch_end"

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._act_at("on_train_batch_end", trainer)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._act_at("on_validation_batch_start", trainer)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._act_at("on_validation_end", trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._act_at("on_train_epoch_end", trainer)

    def _act_at(self, hook: str, trainer: L.Trainer) -> None:
        if hook == self.hook and trainer.global_step == self.step:
            self.act(trainer)


@dataclass
class Leg:
    """What a fit saw, and what it left."""

    folder: Path
    seen: Seen = field(default_factory=Seen)
    num_saved: int = 0

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    def left(self) -> dict[str, Any]:
        loaded: dict[str, Any] = torch.load(self.last, weights_only=True)
        return loaded


def stop(trainer: L.Trainer) -> None:
    trainer.should_stop = True


def send(number: signal.Signals) -> Callable[[L.Trainer], None]:
    return lambda trainer: os.kill(os.getpid(), number)


def fit(
    folder: Path,
    ckpt_path: Path | None = None,
    *,
    workers: int = 0,
    every: int | None = None,
    decay: float = 0.0,
    **options: Any,
) -> Leg:
    leg = Leg(folder)
    saver = RunCheckpoint(
        dirpath=folder, save_last=True, save_top_k=0, enable_version_counter=False, every_n_train_steps=every
    )
    phases = FreezeBackboneFirst(["generator"], unfreeze_at_step=4, warmup_steps=3, learning_rate=2e-3)
    defaults: Options = {"max_steps": -1, "max_epochs": -1, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    quiet: Options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        plugins=[AtomicCheckpointIO()],
        **{**quiet, **defaults, **options, "callbacks": [phases, leg.seen, *options.get("callbacks", ()), saver]},
    )
    data = small_data()
    data.num_workers = workers
    module = small_demo()
    module.optimization = Optimization(warmup_steps=3, decay_fraction=decay)
    trainer.fit(module, data, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    return leg


@cache
def uninterrupted(**options: Any) -> Leg:
    return fit(Path(mkdtemp()), **options)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def assert_as_if_uninterrupted(whole: Leg, *legs: Leg, num_repeated: int = 0) -> None:
    batches = [batch for leg in legs for batch in leg.seen.batches]
    last = legs[-1].seen.batches
    assert last == whole.seen.batches[len(whole.seen.batches) - len(last) :]
    assert len(batches) == len(whole.seen.batches) + num_repeated
    ours, theirs = legs[-1].left(), whole.left()
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(ours[key], theirs[key]), key


def early_stop() -> Options:
    return {"callbacks": (EarlyStopping("validation/loss", stopping_threshold=1e9),), "limit_val_batches": 1}


def told(*arguments: Any) -> Callable[[], Options]:
    return lambda: {"callbacks": (At(*arguments),)}


MID, AT_END = 7, 10
# What ends the first fit, and whether that is known to the schedule of learning rates.
ENDS: dict[str, tuple[Callable[[], Options], bool]] = {
    "max_steps in mid-epoch": (lambda: {"max_steps": MID}, True),
    "max_steps at the end of an epoch": (lambda: {"max_steps": AT_END}, True),
    "max_steps where it was saved already": (lambda: {"max_steps": MID, "every": MID}, True),
    "max_epochs": (lambda: {"max_epochs": 2}, True),
    "max_time": (lambda: {"max_time": timedelta(microseconds=1), "min_steps": 3}, False),
    "told in mid-epoch": (told(MID, stop), False),
    "told at the last batch": (told(AT_END, stop), False),
    "told at the end of an epoch": (told(AT_END, stop, "on_train_epoch_end"), False),
    "early stop in mid-epoch": (lambda: {**early_stop(), "val_check_interval": 3}, False),
    "early stop at the end of an epoch": (early_stop, False),
    "SIGTERM in mid-epoch": (told(MID, send(signal.SIGTERM)), False),
    "SIGINT at the last batch": (told(AT_END, send(signal.SIGINT)), False),
}
LIMITS: dict[str, Options] = {"steps": {"max_steps": END}, "epochs": {"max_epochs": 3}}


@pytest.mark.parametrize("by", LIMITS)
@pytest.mark.parametrize("end", ENDS)
def test_every_end(end: str, by: str, tmp_path: Path) -> None:
    first, changes_schedule = ENDS[end]
    limits = {**LIMITS[by], "decay": 0.0 if changes_schedule else 0.5}
    with suppress(SystemExit):
        fit(tmp_path, **{**({"decay": 0.0} if changes_schedule else limits), **first()})
    num_steps = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < num_steps < END
    rest = fit(tmp_path, tmp_path / "last.ckpt", **limits)
    whole = uninterrupted(**limits)
    before = Leg(tmp_path)
    before.seen.batches = whole.seen.batches[:num_steps]
    assert_as_if_uninterrupted(whole, before, rest)

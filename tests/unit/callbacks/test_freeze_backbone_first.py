"""FreezeBackboneFirst on small modules of its own."""

import copy
import csv
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset
from transformers.optimization import Adafactor

from lightning_action.callbacks import FreezeBackboneFirst
from tests.support.all_optimizers import OPTIMIZERS, named_groups

STEPS_PER_EPOCH = 3


def adamw(module: "TwoParts") -> Optimizer:
    return AdamW(named_groups(module), lr=0.05, weight_decay=0.5)


class TwoParts(LightningModule):
    """A regression with a backbone and a head, and whatever optimizer the test wants."""

    def __init__(
        self,
        optimizer: Callable[[Any], Optimizer] = adamw,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        norm: bool = False,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4) if norm else nn.Tanh(), nn.Linear(4, 3))
        self.head = nn.Linear(3, 1)
        self.optimizer = optimizer
        self.scheduler = scheduler

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss: Tensor = (self.head(self.backbone(inputs)) - targets).square().mean()
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        inputs, _ = batch
        self.backbone(inputs)
        self.log("plateau", 1.0)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self)
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}


class Ones(TwoParts):
    """Every gradient is exactly 1, so that SGD can be done by hand."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return torch.stack([parameter.sum() for parameter in self.parameters()]).sum()


class Recorder(Callback):
    """Keeps a copy of the backbone, whether it had gradients, and the learning rates, after every batch."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.had_gradients: list[bool] = []
        self.learning_rates: list[list[float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states.append(copy.deepcopy(pl_module.state_dict()))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.states.append(copy.deepcopy(pl_module.state_dict()))
        gradients = [p.grad for name, p in pl_module.named_parameters() if name.startswith("backbone.")]
        self.had_gradients.append(any(gradient is not None for gradient in gradients))
        self.learning_rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def moved(self, part: str = "backbone.") -> list[bool]:
        """Tells for each step whether it changed anything at all in a part."""
        return [
            any(not torch.equal(before[name], after[name]) for name in before if name.startswith(part))
            for before, after in zip(self.states, self.states[1:], strict=False)
        ]


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(4 * STEPS_PER_EPOCH, 5, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=4)


def fit(module: LightningModule, *callbacks: Callback, ckpt_path: Path | None = None, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"max_epochs": 2, "logger": False}
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **(defaults | options),
    )
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return trainer


def assert_equal_states(actual: Any, expected: Any) -> None:
    """Compares nested state dicts bit by bit."""
    assert type(actual) is type(expected)
    if isinstance(expected, Tensor):
        assert torch.equal(actual, expected)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_equal_states(actual[key], expected[key])
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_equal_states(one, other)
    else:
        assert actual == expected


# --- Frozen, then not ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("switch", "unfrozen_at"),
    [
        ({"unfreeze_at_step": 0}, 0),
        ({"unfreeze_at_step": 4}, 4),
        ({"unfreeze_at_step": 100}, 100),
        ({"unfreeze_at_epoch": 1}, STEPS_PER_EPOCH),
        # The first validation improves on nothing seen before, the two that follow do not improve.
        ({"monitor": "plateau", "patience": 2}, 3 * STEPS_PER_EPOCH),
    ],
)
def test_backbone_moves_from_the_switch_on_and_not_before(switch: dict[str, Any], unfrozen_at: int) -> None:
    recorder = Recorder()
    fit(TwoParts(), FreezeBackboneFirst(["backbone"], **switch), recorder, max_epochs=4)
    trains = [step >= unfrozen_at for step in range(4 * STEPS_PER_EPOCH)]
    assert recorder.moved("backbone.") == trains
    assert recorder.had_gradients == trains
    assert all(recorder.moved("head."))


def test_switch_counts_optimizer_steps_not_batches() -> None:
    recorder = Recorder()
    freeze = FreezeBackboneFirst(["backbone"], unfreeze_at_step=2)
    fit(TwoParts(), freeze, recorder, max_epochs=2, accumulate_grad_batches=2)
    assert recorder.moved("head.") == [False, True, True, False, True, True]
    assert recorder.moved("backbone.") == [False, False, False, False, True, True]


class TwoOptimizers(TwoParts):
    """Optimizes by hand: the head with every batch, the backbone with every other one."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers()[: 1 + batch_idx % 2]:  # type: ignore[index]
            optimizer.step()
            optimizer.zero_grad()
        return loss

    def configure_optimizers(self) -> Any:
        return [AdamW([group], lr=0.05, weight_decay=0.5) for group in named_groups(self)]


def test_one_of_several_optimizers() -> None:
    recorder = Recorder()
    # With two steps in every other batch, global_step is 0, 1, 3, 4, 5, 7 as the batches start.
    fit(TwoOptimizers(), FreezeBackboneFirst(["backbone"], unfreeze_at_step=2, warmup_steps=3), recorder)
    assert recorder.moved("backbone.") == [False, False, False, False, True, False]
    assert all(recorder.moved("head."))


def test_user_frozen_parameter_stays_frozen() -> None:
    module = TwoParts()
    module.backbone[0].requires_grad_(False)
    recorder = Recorder()
    fit(module, FreezeBackboneFirst(["backbone"], unfreeze_at_step=2), recorder)
    assert not any(recorder.moved("backbone.0."))
    assert recorder.moved("backbone.2.") == [False, False, True, True, True, True]
    assert not any(parameter.requires_grad for parameter in module.backbone[0].parameters())


def test_dotted_names_freeze_only_that_part() -> None:
    recorder = Recorder()
    fit(TwoParts(), FreezeBackboneFirst(["backbone.2", "head.bias"], unfreeze_at_step=3), recorder)
    late = [False, False, False, True, True, True]
    assert [recorder.moved(part) for part in ("backbone.2.", "head.bias", "backbone.0.", "head.weight")] == [
        late,
        late,
        [True] * 6,
        [True] * 6,
    ]


def test_two_callbacks_unfreeze_two_parts_at_their_own_times() -> None:
    recorder = Recorder()
    callbacks = [
        FreezeBackboneFirst([f"backbone.{i}"], unfreeze_at_step=n, warmup_steps=2, name=f"layer_{i}")
        for i, n in ((0, 4), (2, 2))
    ]

    def a_group_for_each(module: TwoParts) -> Optimizer:
        parts = (module.head, module.backbone[0], module.backbone[2])
        return AdamW([{"params": part.parameters()} for part in parts], lr=0.05, weight_decay=0.5)

    fit(TwoParts(a_group_for_each), *callbacks, recorder)
    assert recorder.moved("backbone.0.") == [False, False, False, False, True, True]
    assert recorder.moved("backbone.2.") == [False, False, True, True, True, True]


def test_batch_norm_statistics_do_not_move_while_frozen() -> None:
    module = TwoParts(norm=True)
    recorder = Recorder()
    fit(module, FreezeBackboneFirst(["backbone"], unfreeze_at_step=4), recorder)
    assert recorder.moved("backbone.1.running_mean") == [False, False, False, False, True, True]
    assert recorder.moved("backbone.1.num_batches_tracked") == [False, False, False, False, True, True]
    assert module.backbone[1].training


def test_batch_norm_that_the_user_put_in_eval_stays_there() -> None:
    module = TwoParts(norm=True)
    module.backbone[1].eval()
    recorder = Recorder()
    fit(module, FreezeBackboneFirst(["backbone"], unfreeze_at_step=2), recorder)
    assert not any(recorder.moved("backbone.1.running_mean"))
    assert not module.backbone[1].training


def test_module_is_left_as_it_was_when_the_fit_ends_frozen() -> None:
    module = TwoParts(norm=True)
    callback = FreezeBackboneFirst(["backbone"], unfreeze_at_step=100)
    for _ in range(2):
        recorder = Recorder()
        fit(module, callback, recorder)
        assert not any(recorder.moved("backbone."))
        assert all(parameter.requires_grad for parameter in module.parameters())
        assert all(part.training for part in module.modules())


class Breaks(TwoParts):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.trainer.global_step == 2:
            raise RuntimeError("no more")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("unfreeze_at_step", [1, 100])
def test_exception_restores_module_and_learning_rate(unfreeze_at_step: int) -> None:
    module = Breaks(norm=True)
    callback = FreezeBackboneFirst(["backbone"], unfreeze_at_step, warmup_steps=10, learning_rate=0.5)
    optimizers: list[Optimizer] = []

    class Grab(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            optimizers.extend(trainer.optimizers)

    with pytest.raises(RuntimeError, match="no more"):
        fit(module, callback, Grab())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(part.training for part in module.modules())
    assert [group["lr"] for group in optimizers[0].param_groups] == [0.05, 0.02]


def test_learning_rate_hooks_are_gone_after_the_fit() -> None:
    module = Ones(lambda module: SGD(named_groups(module), lr=0.5))
    callback = FreezeBackboneFirst(["backbone"], unfreeze_at_step=0, warmup_steps=1000, learning_rate=8.0)
    (optimizer,) = fit(module, callback).optimizers
    bias = module.get_parameter("backbone.0.bias")
    before = bias.detach().clone()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.equal(bias, before.add(torch.ones(4), alpha=-0.02))


# --- Learning rate and warm-up ------------------------------------------------------------------------------------


def sgd(module: TwoParts) -> Optimizer:
    return SGD(named_groups(module), lr=0.5)


def halving(optimizer: Optimizer) -> LRScheduler:
    return StepLR(optimizer, step_size=2, gamma=0.5)


def cosine(optimizer: Optimizer) -> LRScheduler:
    return CosineAnnealingLR(optimizer, T_max=12)


def logged(folder: Path, name: str) -> list[float]:
    with (folder / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.mark.parametrize(
    ("scheduler", "own", "expected"),
    [
        (None, {}, [0.02, 0.02, 0.02, 0.02, 0.02, 0.02]),
        (None, {"learning_rate": 0.3}, [0.3, 0.3, 0.3, 0.3, 0.3, 0.3]),
        (None, {"warmup_steps": 4}, [0.005, 0.01, 0.015, 0.02, 0.02, 0.02]),
        (None, {"warmup_steps": 4, "learning_rate": 0.25}, [0.0625, 0.125, 0.1875, 0.25, 0.25, 0.25]),
        # Steps 3 to 8 of a group that starts at 0.02 and is halved every other step.
        (halving, {}, [0.01, 0.005, 0.005, 0.0025, 0.0025, 0.00125]),
        (halving, {"learning_rate": 0.5}, [0.25, 0.125, 0.125, 0.0625, 0.0625, 0.03125]),
        (halving, {"warmup_steps": 4}, [0.0025, 0.0025, 0.00375, 0.0025, 0.0025, 0.00125]),
        (halving, {"warmup_steps": 2, "learning_rate": 0.5}, [0.125, 0.125, 0.125, 0.0625, 0.0625, 0.03125]),
    ],
)
def test_sgd_steps_by_hand(
    scheduler: Callable[[Optimizer], LRScheduler] | None, own: dict[str, Any], expected: list[float], tmp_path: Path
) -> None:
    module = Ones(sgd, scheduler)
    recorder = Recorder()
    callback = FreezeBackboneFirst(["backbone"], unfreeze_at_step=3, **own)
    logger = CSVLogger(tmp_path)
    fit(module, callback, recorder, max_epochs=3, logger=logger, log_every_n_steps=1)

    bias = recorder.states[0]["backbone.0.bias"]
    by_hand = [bias] * 4
    for learning_rate in expected:
        bias = bias.add(torch.ones(4), alpha=-learning_rate)
        by_hand.append(bias)
    assert_equal_states([state["backbone.0.bias"] for state in recorder.states], by_hand)

    assert logged(tmp_path, "phase/backbone_trainable") == [0.0] * 3 + [1.0] * 6
    assert logged(tmp_path, "phase/backbone_learning_rate") == pytest.approx([0.0] * 3 + expected, rel=1e-6)


@pytest.mark.parametrize("scheduler", [halving, cosine])
def test_scheduler_sees_only_its_own_learning_rates(scheduler: Callable[[Optimizer], LRScheduler]) -> None:
    recorder = Recorder()
    callback = FreezeBackboneFirst(["backbone"], unfreeze_at_step=3, warmup_steps=4, learning_rate=0.3)
    fit(Ones(sgd, scheduler), callback, recorder, max_epochs=3)

    optimizer = SGD(named_groups(Ones()), lr=0.5)
    alone = scheduler(optimizer)
    bias = recorder.states[0]["backbone.0.bias"]
    for step in range(9):
        if step >= 3:
            warmup = min(1.0, (step - 3 + 1) / 4)
            bias = bias.add(torch.ones(4), alpha=-(0.3 * (optimizer.param_groups[1]["lr"] / 0.02) * warmup))
        assert torch.equal(recorder.states[step + 1]["backbone.0.bias"], bias)
        optimizer.step()
        alone.step()
        assert recorder.learning_rates[step] == [group["lr"] for group in optimizer.param_groups]


class ReducesOnPlateau(Ones):
    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self)
        scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "plateau"}}


def test_scheduler_that_leaves_no_mark_in_the_groups_scales_the_learning_rate_too(tmp_path: Path) -> None:
    callback = FreezeBackboneFirst(["backbone"], unfreeze_at_epoch=1, learning_rate=0.5)
    options: dict[str, Any] = {"logger": CSVLogger(tmp_path), "log_every_n_steps": STEPS_PER_EPOCH}
    checkpoint = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(ReducesOnPlateau(sgd), callback, checkpoint, max_epochs=4, **options)
    assert logged(tmp_path, "phase/backbone_learning_rate") == [0.0, 0.5, 0.25, 0.125]

    callback = FreezeBackboneFirst(["backbone"], unfreeze_at_epoch=1, learning_rate=0.5)
    options["logger"] = CSVLogger(tmp_path / "resumed")
    fit(ReducesOnPlateau(sgd), callback, max_epochs=4, ckpt_path=tmp_path / "epoch=2.ckpt", **options)
    # Half of the initial one: Lightning reduces on plateau only after it has saved the checkpoint.
    assert logged(tmp_path / "resumed", "phase/backbone_learning_rate") == [0.25]


def test_own_learning_rate_after_a_fit_without_the_callback(tmp_path: Path) -> None:
    fit(Ones(sgd), ModelCheckpoint(tmp_path, "first"), max_epochs=1)
    recorder = Recorder()
    callback = FreezeBackboneFirst(["backbone"], unfreeze_at_step=STEPS_PER_EPOCH, learning_rate=0.25)
    fit(Ones(sgd), callback, recorder, ckpt_path=tmp_path / "first.ckpt")
    before, after = (state["backbone.0.bias"] for state in recorder.states[:2])
    assert torch.equal(after, before.add(torch.ones(4), alpha=-0.25))


# --- Stop and resume ----------------------------------------------------------------------------------------------

PLAN: dict[str, Any] = {"warmup_steps": 5, "learning_rate": 0.1}
SWITCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "step": ({"unfreeze_at_step": 2 * STEPS_PER_EPOCH}, {"unfreeze_at_step": 2 * STEPS_PER_EPOCH + 1}),
    "step inside an epoch": (
        {"unfreeze_at_step": 2 * STEPS_PER_EPOCH + 1},
        {"unfreeze_at_step": 2 * STEPS_PER_EPOCH},
    ),
    "epoch": ({"unfreeze_at_epoch": 2}, {"unfreeze_at_epoch": 3}),
    # The second validation is the first without improvement: this one is in epoch 3.
    "plateau": ({"monitor": "plateau", "patience": 2}, {"monitor": "plateau", "patience": 1}),
}


def mixed_adamw(module: TwoParts) -> Optimizer:
    return AdamW(module.parameters(), lr=0.05, weight_decay=0.5)


def final_state(trainer: Trainer) -> dict[str, Any]:
    return {"module": trainer.lightning_module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}


@pytest.mark.parametrize("switch", SWITCHES)
def test_resumed_fit_equals_uninterrupted_fit(switch: str, tmp_path: Path) -> None:
    def run(switch: dict[str, Any], *callbacks: Callback, **options: Any) -> dict[str, Any]:
        callback = FreezeBackboneFirst(["backbone"], **switch, **PLAN)
        module = TwoParts(adamw, cosine, norm=True)
        return final_state(fit(module, callback, *callbacks, max_epochs=5, **options))

    checkpoint = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1)
    this_switch, other_switch = SWITCHES[switch]
    uninterrupted = run(this_switch, checkpoint)
    # The switch is in or at an edge of epoch 2, so this resumes before it, during the warm-up and after it.
    for epoch in range(4):
        assert_equal_states(run(this_switch, ckpt_path=tmp_path / f"epoch={epoch}.ckpt"), uninterrupted)

    with pytest.raises(AssertionError):
        assert_equal_states(run(other_switch), uninterrupted)


@pytest.mark.parametrize("switch", [{"unfreeze_at_epoch": 2}, {"monitor": "plateau", "patience": 1}])
def test_only_the_step_of_the_switch_matters(switch: dict[str, Any]) -> None:
    at_step = FreezeBackboneFirst(["backbone"], unfreeze_at_step=2 * STEPS_PER_EPOCH, **PLAN)
    expected = final_state(fit(TwoParts(), at_step, max_epochs=4))
    other = final_state(fit(TwoParts(), FreezeBackboneFirst(["backbone"], **switch, **PLAN), max_epochs=4))
    assert_equal_states(other, expected)


class Sequence(TwoParts):
    """Logs a given value at every validation."""

    def __init__(self, values: Iterable[float]) -> None:
        super().__init__()
        self.values = list(values)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("score", self.values[self.trainer.current_epoch])


@pytest.mark.parametrize(
    ("options", "values", "unfrozen_epoch"),
    [
        ({"patience": 2}, [3.0, 2.0, 2.5, 1.0, 1.0, 1.5, 0.0], 6),
        ({"patience": 1}, [3.0, 2.0, 2.5, 1.0, 1.0, 1.5, 0.0], 3),
        ({"patience": 1, "min_delta": 0.5}, [3.0, 2.0, 1.6, 1.0, 1.0, 1.5, 0.0], 3),
        ({"patience": 1, "mode": "max"}, [1.0, 2.0, 3.0, 4.0, 3.5, 5.0, 6.0], 5),
        ({"patience": 2}, [float("nan"), 1.0, float("nan"), float("nan"), 0.0, 0.0, 0.0], 4),
    ],
)
def test_plateau(options: dict[str, Any], values: list[float], unfrozen_epoch: int) -> None:
    recorder = Recorder()
    fit(Sequence(values), FreezeBackboneFirst(["backbone"], monitor="score", **options), recorder, max_epochs=7)
    assert recorder.moved("backbone.") == [step >= 3 * unfrozen_epoch for step in range(21)]


def test_plateau_ignores_the_sanity_check_and_validation_outside_of_the_fit() -> None:
    callback = FreezeBackboneFirst(["backbone"], monitor="plateau", patience=1)
    recorder = Recorder()
    trainer = fit(TwoParts(), callback, recorder, max_epochs=1, num_sanity_val_steps=1)
    before = callback.state_dict()
    assert before == {"unfrozen_at": None, "best": 1.0, "num_bad_validations": 0}
    trainer.validate(TwoParts(), loader(), verbose=False)
    assert callback.state_dict() == before


# --- The optimizer ------------------------------------------------------------------------------------------------


class FrozenByHand(Callback):
    """What people write without the callback."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for parameter in pl_module.backbone.parameters():
            parameter.requires_grad_(trainer.global_step >= 2)


class SetsTrainMode(Callback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.optimizers[0].is_training = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_that_of_a_freeze_by_hand(name: str, tmp_path: Path) -> None:
    freeze = FreezeBackboneFirst(["backbone"], unfreeze_at_step=2)
    ours, by_hand = (
        fit(TwoParts(OPTIMIZERS[name]), SetsTrainMode(), callback, logger=CSVLogger(tmp_path), log_every_n_steps=1)
        for callback in (freeze, FrozenByHand())
    )
    assert_equal_states(dict(ours.model.state_dict()), dict(by_hand.model.state_dict()))
    unfrozen = fit(TwoParts(OPTIMIZERS[name]), SetsTrainMode()).model
    assert any(not torch.equal(p, q) for p, q in zip(unfrozen.parameters(), ours.model.parameters(), strict=True))


def test_an_optimizer_without_hooks_cannot_be_warmed_up() -> None:
    freeze = FreezeBackboneFirst(["backbone"], unfreeze_at_step=1, warmup_steps=2)
    with pytest.raises(MisconfigurationException, match="WithoutHooks calls no hooks around its steps"):
        fit(TwoParts(OPTIMIZERS["without-hooks"]), freeze)


def test_a_learning_rate_that_the_optimizer_computes_cannot_be_warmed_up() -> None:
    freeze = FreezeBackboneFirst(["backbone"], unfreeze_at_step=1, warmup_steps=2)
    with pytest.raises(MisconfigurationException, match="Parameter group 1 of Adafactor has no learning rate"):
        fit(TwoParts(lambda m: Adafactor(named_groups(m)[:1] + [{"params": m.backbone.parameters()}])), freeze)


class DecaysByAnotherName(SGD):
    """Decays its parameters, and not by the option that others have for it."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.mul_(1 - group["lr"])
        return loss


def test_preparing_the_optimizer_moves_nothing() -> None:
    module = TwoParts(lambda module: DecaysByAnotherName(named_groups(module), lr=0.5))
    before = copy.deepcopy(module.state_dict())
    recorder = Recorder()
    fit(module, FreezeBackboneFirst(["backbone"], unfreeze_at_step=100), recorder)
    assert_equal_states(dict(recorder.states[0]), dict(before))
    assert not any(recorder.moved("backbone."))
    assert all(recorder.moved("head."))


def test_optimizer_state_has_one_layout_in_both_phases() -> None:
    keys = []
    for unfreeze_at_step in (0, 100):
        trainer = fit(TwoParts(), FreezeBackboneFirst(["backbone"], unfreeze_at_step))
        state = trainer.optimizers[0].state_dict()["state"]
        keys.append({index: set(entries) for index, entries in state.items()})
        assert [int(entries["step"]) for entries in state.values()] == [6] * 2 + [6 if unfreeze_at_step == 0 else 0] * 4
    assert keys[0] == keys[1]


def test_state_of_a_reused_optimizer_is_kept() -> None:
    module = TwoParts()
    optimizer = Adagrad(named_groups(module), lr=0.01)
    module.optimizer = lambda _: optimizer
    fit(module, max_epochs=1)
    fit(module, FreezeBackboneFirst(["backbone"], unfreeze_at_step=1), max_epochs=1)
    steps = [int(optimizer.state[parameter]["step"]) for parameter in module.parameters()]
    assert steps == [5, 5, 5, 5, 6, 6]


def test_mixed_group_is_left_alone_without_an_own_learning_rate() -> None:
    recorder = Recorder()
    callback = FreezeBackboneFirst(["backbone"], unfreeze_at_step=3)
    trainer = fit(TwoParts(mixed_adamw, cosine), callback, recorder)
    assert len(trainer.optimizers[0].param_groups) == 1
    assert recorder.moved("backbone.") == [False] * 3 + [True] * 3


def test_parameters_that_never_train_do_not_make_a_group_mixed() -> None:
    module = TwoParts(lambda module: AdamW([{"params": [*module.backbone.parameters()]}, *named_groups(module)[:1]]))
    module.backbone[0].requires_grad_(False)
    trainer = fit(module, FreezeBackboneFirst(["backbone"], unfreeze_at_step=3, warmup_steps=2))
    assert [len(group["params"]) for group in trainer.optimizers[0].param_groups] == [4, 2]


# --- Messages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"exactly one of unfreeze_at_step, unfreeze_at_epoch, monitor, got none of them"),
        (
            {"unfreeze_at_step": 1, "monitor": "loss"},
            r"exactly one of .*, got .*'unfreeze_at_step': 1.*'monitor': 'loss'",
        ),
        ({"unfreeze_at_step": 0, "unfreeze_at_epoch": 0}, r"exactly one of "),
        ({"unfreeze_at_step": -1}, r"unfreeze_at_step must be at least 0, got -1"),
        ({"unfreeze_at_epoch": -2}, r"unfreeze_at_epoch must be at least 0, got -2"),
        ({"unfreeze_at_step": 1, "backbone": []}, r"backbone must be a list .*, got \[\]"),
        ({"unfreeze_at_step": 1, "backbone": "generator"}, r"backbone must be a list .*, got 'generator'"),
        ({"unfreeze_at_step": 1, "warmup_steps": -1}, r"warmup_steps must be at least 0, got -1"),
        ({"unfreeze_at_step": 1, "learning_rate": 0.0}, r"learning_rate must be above 0, got 0.0"),
        ({"monitor": "loss", "patience": 0}, r"patience must be at least 1, got 0"),
        ({"monitor": "loss", "min_delta": -0.1}, r"min_delta must be at least 0, got -0.1"),
        ({"monitor": "loss", "mode": "best"}, r"mode must be 'min' or 'max', got 'best'"),
    ],
)
def test_contradictory_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FreezeBackboneFirst(**({"backbone": ["backbone"]} | arguments))


def head_only(module: TwoParts) -> Optimizer:
    return AdamW(module.head.parameters())


def starts_at_zero(module: TwoParts) -> Optimizer:
    return SGD([*named_groups(module)[:1], {"params": module.backbone.parameters(), "lr": 0.0}], lr=0.1)


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (TwoParts(), {"backbone": ["generator"]}, r"TwoParts has no part 'generator' .* It has: backbone, head$"),
        (TwoParts(), {"backbone": ["head.norm"]}, r"no part 'head.norm' .* It has: .*head.bias, head.weight$"),
        (TwoParts().requires_grad_(False), {}, r"No parameter of `backbone` requires grad"),
        (TwoParts(head_only), {}, r"No optimizer of TwoParts holds a parameter of `backbone`"),
        (TwoParts(starts_at_zero), {"learning_rate": 0.1}, r"must not be 0. Parameter group 1 of SGD starts at 0"),
        (TwoParts(mixed_adamw), {"warmup_steps": 1}, r"Parameter group 0 of AdamW holds parameters of `backbone` tog"),
        (TwoParts(mixed_adamw, cosine), {"learning_rate": 0.1}, r"<those of `backbone`>.*in configure_optimizers"),
    ],
)
def test_module_that_does_not_fit(module: TwoParts, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        fit(module, FreezeBackboneFirst(**({"backbone": ["backbone"], "unfreeze_at_step": 1} | arguments)))


def test_metric_that_nobody_logs() -> None:
    with pytest.raises(MisconfigurationException, match=r"monitor='val/loss'.* Available: .*plateau"):
        fit(TwoParts(), FreezeBackboneFirst(["backbone"], monitor="val/loss"))


def test_plateau_without_validation() -> None:
    with pytest.raises(MisconfigurationException, match=r"monitor='plateau'.* this fit runs none"):
        fit(TwoParts(), FreezeBackboneFirst(["backbone"], monitor="plateau"), limit_val_batches=0)


def test_one_line_at_each_transition(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        fit(TwoParts(), FreezeBackboneFirst(["backbone"], unfreeze_at_epoch=1))
    assert [message for message in caplog.messages if "FreezeBackboneFirst" in message] == [
        "FreezeBackboneFirst: `backbone` is frozen until epoch 1.",
        "FreezeBackboneFirst: `backbone` trains from step 3 on.",
    ]


# --- Configuration ------------------------------------------------------------------------------------------------


def test_configured_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Callback, "callback")
    arguments = {"backbone": ["generator"], "monitor": "val/loss", "mode": "max", "learning_rate": 1e-5}
    config = {"class_path": "lightning_action.callbacks.FreezeBackboneFirst", "init_args": arguments}
    callback = parser.instantiate(parser.parse_object({"callback": config})).callback
    assert isinstance(callback, FreezeBackboneFirst)
    assert (callback.monitor, callback.mode, callback.learning_rate) == ("val/loss", "max", 1e-5)

    config["init_args"] = arguments | {"mode": "best"}
    with pytest.raises(ArgumentError, match="best"):
        parser.parse_object({"callback": config})


def test_it_works_with_boring_model(tmp_path: Path) -> None:
    """Lightning's own test model, with a second layer in front."""

    class Boring(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.encoder(x))

    moved = []
    for unfreeze_at in (3, 2):
        torch.manual_seed(0)
        module = Boring()
        before = copy.deepcopy(module.encoder.state_dict())
        freeze = FreezeBackboneFirst(["encoder"], unfreeze_at_step=unfreeze_at)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=3,
            callbacks=[freeze],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(module)
        moved.append(not torch.equal(before["weight"], module.encoder.weight))
    assert moved == [False, True]

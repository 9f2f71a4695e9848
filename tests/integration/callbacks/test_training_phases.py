"""Three phases with two FreezeBackboneFirst: actions alone, then LoRA as well, then everything."""

from __future__ import annotations

import copy
import csv
import os
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_action.callbacks import EMA, FreezeBackboneFirst
from tests.support.short_fits import quiet_trainer

STEPS_PER_EPOCH = 2
LORA = {"name": "lora", "backbone": ["generator.*.lora_*"]}
BACKBONE = {"backbone": ["generator"], "exclude": ["generator.*.lora_*"]}
Moved = dict[str, list[bool]]


class Adapted(LightningModule):
    """A generator with a LoRA adapter, an action projection, and the parameter groups of both."""

    def __init__(self, one_group: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one_group = one_group
        self.action_projection = nn.Linear(3, 5)
        self.generator = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
        peft.inject_adapter_in_model(
            peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False), self.generator
        )
        # The adapter's own freezing would be for good.
        self.generator.requires_grad_(True)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.generator(self.action_projection(batch[0])).square().mean()
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        # Better until epoch 1, not in 2 and 3, better than at the start of the phase in 4, and not from then on.
        scores = [5.0, 4.0, 4.5, 4.5, 4.2, 4.2, 4.2, 4.2]
        self.log("score", scores[self.trainer.current_epoch])

    def configure_optimizers(self) -> Any:
        if self.one_group:
            return torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.5)
        names = {name: part_of(name) for name, _ in self.named_parameters()}
        groups = [
            {"name": part, "params": [p for n, p in self.named_parameters() if names[n] == part]} for part in PARTS
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.05, weight_decay=0.5)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


PARTS = ["action", "lora", "backbone"]


def part_of(name: str) -> str:
    if name.startswith("action_projection."):
        return "action"
    return "lora" if ".lora_" in name else "backbone"


class Recorder(Callback):
    """Which parts moved with each step, and which had gradients."""

    def __init__(self) -> None:
        self.moved: Moved = {part: [] for part in PARTS}
        self.had_gradients: Moved = {part: [] for part in PARTS}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.before = copy.deepcopy(dict(pl_module.named_parameters()))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for part in PARTS:
            parameters = {name: p for name, p in pl_module.named_parameters() if part_of(name) == part}
            moved = {not torch.equal(p, self.before[name]) for name, p in parameters.items()}
            had_gradients = {p.grad is not None for p in parameters.values()}
            assert len(moved) == len(had_gradients) == 1
            self.moved[part] += moved
            self.had_gradients[part] += had_gradients


def fit(folder: Path, module: LightningModule, *callbacks: Callback, **options: Any) -> Trainer:
    inputs = torch.randn(3 * STEPS_PER_EPOCH, 3, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(inputs), batch_size=3)
    ckpt_path = options.pop("ckpt_path", None)
    defaults: dict[str, Any] = {"max_epochs": 4, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    trainer = quiet_trainer(folder, *callbacks, **defaults | options)
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
    return trainer


def logged(folder: Path, name: str) -> list[float]:
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def final_state(trainer: Trainer) -> list[Any]:
    optimizer = trainer.optimizers[0]
    states = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    return [*trainer.lightning_module.parameters(), *(state[key] for state in states for key in sorted(state))]


def equal(one: list[Any], other: list[Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def from_step(step: int, num_steps: int = 8) -> list[bool]:
    return [number >= step for number in range(num_steps)]


@pytest.mark.parametrize("one_group", [False, True])
@pytest.mark.parametrize("lora_first_in_list", [True, False])
def test_actions_then_lora_then_everything(one_group: bool, lora_first_in_list: bool, tmp_path: Path) -> None:
    callbacks = [
        FreezeBackboneFirst(**LORA, unfreeze_at_step=3),
        FreezeBackboneFirst(**BACKBONE, unfreeze_at_epoch=3, warmup_steps=0 if one_group else 2),
    ]
    recorder, module = Recorder(), Adapted(one_group)
    ordered = callbacks if lora_first_in_list else callbacks[::-1]
    fit(tmp_path, module, *ordered, recorder, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    assert recorder.moved == {"action": from_step(0), "lora": from_step(3), "backbone": from_step(6)}
    assert recorder.had_gradients == recorder.moved
    assert logged(tmp_path, "phase/index") == [0, 0, 0, 1, 1, 1, 2, 2]
    assert logged(tmp_path, "phase/lora_trainable") == [float(trains) for trains in from_step(3)]
    assert logged(tmp_path, "phase/backbone_trainable") == [float(trains) for trains in from_step(6)]
    assert logged(tmp_path, "phase/lora_learning_rate")[3] > 0 == logged(tmp_path, "phase/backbone_learning_rate")[3]


def test_each_phase_waits_for_a_plateau_of_its_own(tmp_path: Path) -> None:
    callbacks = [FreezeBackboneFirst(**part, monitor="score", patience=2) for part in (LORA, BACKBONE)]
    recorder = Recorder()
    fit(tmp_path, Adapted(), *callbacks, recorder, max_epochs=8)
    # Validations 2 and 3 do not improve on 1, so LoRA trains from epoch 4 on. Validation 4 improves on 3, with which
    # the second phase begins, and 5 and 6 do not: a phase later.
    assert recorder.moved["lora"] == from_step(4 * STEPS_PER_EPOCH, 16)
    assert recorder.moved["backbone"] == from_step(7 * STEPS_PER_EPOCH, 16)


@pytest.mark.parametrize(
    "switches",
    [
        ({"unfreeze_at_step": 3}, {"unfreeze_at_epoch": 3}),
        ({"monitor": "score", "patience": 1}, {"monitor": "score", "patience": 1}),
        ({"unfreeze_at_epoch": 2}, {"monitor": "score", "patience": 1}),
    ],
)
def test_resumed_fit_equals_uninterrupted_fit(switches: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        return [
            FreezeBackboneFirst(**part, **switch, warmup_steps=3)
            for part, switch in zip((LORA, BACKBONE), switches, strict=True)
        ]

    recorder = Recorder()
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer = fit(tmp_path, Adapted(), *callbacks(), saves, recorder, max_epochs=6, enable_checkpointing=True)
    uninterrupted = final_state(trainer)
    phases = [sum(recorder.moved[part][step] for part in PARTS) for step in range(6 * STEPS_PER_EPOCH)]
    assert sorted(set(phases)) == [1, 2, 3] and phases == sorted(phases)
    for epoch in range(5):
        resumed = fit(
            tmp_path, Adapted(), *callbacks(), max_epochs=6, ckpt_path=os.fspath(tmp_path / f"epoch={epoch}.ckpt")
        )
        assert equal(final_state(resumed), uninterrupted)
    assert not equal(final_state(fit(tmp_path, Adapted(), callbacks()[1], max_epochs=6)), uninterrupted)


def test_average_covers_all_phases(tmp_path: Path) -> None:
    ema = EMA(0.5, parts=["action_projection", "generator.*.lora_*"])
    callbacks = [FreezeBackboneFirst(**LORA, unfreeze_at_step=3), ema]
    trainer = fit(tmp_path, Adapted(), *callbacks)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    average = torch.load(tmp_path / "last.ckpt", weights_only=True)["ema_state_dict"]
    assert {part_of(name) for name in average} == {"action", "lora"}


def test_callbacks_with_the_same_name_are_refused(tmp_path: Path) -> None:
    callbacks = [FreezeBackboneFirst([part], unfreeze_at_step=1) for part in ("generator.0", "generator.2")]
    with pytest.raises(MisconfigurationException, match=r"need different names, got \['backbone', 'backbone'\]"):
        fit(tmp_path, Adapted(), *callbacks)


def test_adapter_that_froze_its_base_is_named(tmp_path: Path) -> None:
    module = Adapted()
    for name, parameter in module.generator.named_parameters():
        parameter.requires_grad_("lora_" in name)
    with pytest.raises(MisconfigurationException, match=r"No parameter of `generator` .* Leave the freezing to"):
        fit(tmp_path, module, FreezeBackboneFirst(**BACKBONE, unfreeze_at_step=1))


@pytest.mark.parametrize(
    ("part", "named"),
    [(LORA, r"`generator\.\*\.lora_\*`"), (BACKBONE, r"`generator` without `generator\.\*\.lora_\*`")],
    ids=["lora", "backbone"],
)
def test_message_about_mixed_groups_says_which_parameters_to_take_out(
    part: dict[str, Any], named: str, tmp_path: Path
) -> None:
    callback = FreezeBackboneFirst(**part, unfreeze_at_step=1, warmup_steps=2)
    with pytest.raises(MisconfigurationException, match=rf"build AdamW.*<those of {named}>.*<all others>"):
        fit(tmp_path, Adapted(one_group=True), callback)

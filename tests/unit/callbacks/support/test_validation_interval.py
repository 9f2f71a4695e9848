"""Which validations are due."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_action.callbacks.support.validation_interval import EveryNValidations
from tests.support.short_fits import quiet_trainer


class Due(EveryNValidations):
    def __init__(self, every_n_validations: int) -> None:
        super().__init__(every_n_validations)
        self.seen: list[bool] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append(self.is_due(trainer))


def trainer_for(folder: Path, due: Due, max_epochs: int) -> Trainer:
    options: dict[str, Any] = {"limit_train_batches": 1, "limit_val_batches": 1, "num_sanity_val_steps": 1}
    return quiet_trainer(folder, due, max_epochs=max_epochs, **options)


def test_every_nth_is_due_without_sanity_checks_and_across_a_resumed_fit(tmp_path: Path) -> None:
    first = Due(3)
    trainer = trainer_for(tmp_path, first, max_epochs=4)
    trainer.fit(BoringModel())
    assert first.seen == [False, False, False, True, False]
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed = Due(3)
    trainer_for(tmp_path, resumed, max_epochs=7).fit(BoringModel(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert [seen for seen in resumed.seen][-3:] == [False, True, False]


def test_validations_of_their_own_count_too(tmp_path: Path) -> None:
    due = Due(2)
    trainer = trainer_for(tmp_path, due, max_epochs=1)
    for _ in range(4):
        trainer.validate(BoringModel(), verbose=False)
    assert due.seen == [False, True, False, True]


def test_the_interval_is_checked() -> None:
    with pytest.raises(ValueError, match="every_n_validations must be at least 1, got 0"):
        Due(0)

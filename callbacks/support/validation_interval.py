"""Callbacks that look at the model at some validations, not at all of them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from .arguments import check_at_least


class EveryNValidations(Callback):
    """Counts validations, without sanity checks and across resumed fits, so that a subclass can ask `is_due`.

    Raises:
        ValueError: `every_n_validations` is below 1.
    """

    def __init__(self, every_n_validations: int) -> None:
        super().__init__()
        check_at_least(1, every_n_validations=every_n_validations)
        self.every_n_validations = every_n_validations
        self._num_validations = 0

    @property
    def state_key(self) -> str:
        said = {"every_n_validations": self.every_n_validations}
        return f"{type(self).__qualname__}{said}"

    def state_dict(self) -> dict[str, Any]:
        return {"num_validations": self._num_validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._num_validations = state_dict["num_validations"]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._num_validations += 1

    def is_due(self, trainer: Trainer) -> bool:
        """Tell whether the running validation is one to look at; the answer is the same on all ranks."""
        return not trainer.sanity_checking and self._num_validations % self.every_n_validations == 0

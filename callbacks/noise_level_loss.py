"""The loss by noise level."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from .support import log_writing
from .support.arguments import check_at_least
from .support.collectives import sum_over_ranks, world_size


class NoiseLevelLoss(Callback):
    """Logs the mean loss of each bin of noise levels, over all frames since it was last logged.

    The loss of a diffusion model goes up and down with the noise levels that happen to be drawn; that of a bin can be
    compared from step to step, and says at which levels a change helps. Training is logged as
    `loss/noise_level/<bin>`, each run of validation as `loss/noise_level_validation/<bin>`; `0100-0200` is the bin of
    timesteps from 100 to 200, the upper end of the last one included. A bin that no frame fell into is left out.

    It works with any LightningModule whose `training_step`, and `validation_step` if that is to be shown, returns a
    dict that holds two tensors of one shape: a loss and a timestep for each frame, or for each sample. Otherwise it
    says so once, and logs nothing. Batches are added up on the device, and nothing waits for it, or for other ranks,
    except at logged steps.

    Losses by noise level are shown so by Nichol and Dhariwal (2021, arXiv:2102.09672, figure 2).

    Args:
        num_bins: Number of bins of equal width.
        max_timestep: Largest timestep, where the last bin ends; 1 if noise levels go from 0 to 1.
        loss: Name of the losses in the dict.
        timestep: Name of the timesteps in the dict.
        every_n_steps: Steps from one logged step to the next. Default: `log_every_n_steps` of the Trainer.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        num_bins: int = 10,
        max_timestep: float = 1000.0,
        loss: str = "loss_per_frame",
        timestep: str = "timestep",
        every_n_steps: int | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, every_n_steps=every_n_steps, num_bins=num_bins)
        if max_timestep <= 0:
            raise ValueError(f"max_timestep must be above 0, got {max_timestep}")
        self.num_bins = num_bins
        self.max_timestep = max_timestep
        self.loss = loss
        self.timestep = timestep
        self.every_n_steps = every_n_steps

        # The sum of the losses and the number of frames of each bin, on this rank; that of training is in checkpoints.
        self._training = torch.zeros(2, num_bins, dtype=torch.float64)
        self._validation = self._training

        # These are known only during a fit.
        self._has_warned = False

    @property
    def state_key(self) -> str:
        said = {"loss": self.loss, "timestep": self.timestep, "num_bins": self.num_bins}
        return f"{type(self).__qualname__}{said}"

    def state_dict(self) -> dict[str, Any]:
        # A checkpoint holds what the first rank says. The mean serves all: they add up to the same again.
        return {"training": (sum_over_ranks(self._training.clone()) / world_size()).tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._training = torch.tensor(state_dict["training"], dtype=torch.float64)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # This happens here because a checkpoint is restored later.
        self._training = torch.zeros(2, self.num_bins, dtype=torch.float64)
        self._has_warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = _on_device(self._training, pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._training = self._add(self._training, outputs, "training_step")
        if log_writing.has_stepped(trainer) and log_writing.is_logging_step(trainer, self.every_n_steps):
            self._log(trainer, self._training, "loss/noise_level", log_writing.current_step(trainer))
            self._training = torch.zeros_like(self._training)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation = _on_device(torch.zeros(2, self.num_bins, dtype=torch.float64), pl_module.device)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        # Showing validation is up to the module, so that a step that returns something else is not worth a warning.
        if isinstance(outputs, dict) and self.loss in outputs:
            self._validation = self._add(self._validation, outputs, "validation_step")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, self._validation, "loss/noise_level_validation", log_writing.current_step(trainer))

    def _add(self, sums: Tensor, outputs: Any, source: str) -> Tensor:
        """The sums with those of a batch added."""
        names = (self.loss, self.timestep)
        losses, timesteps = (outputs.get(name) if isinstance(outputs, dict) else None for name in names)
        if not (isinstance(losses, Tensor) and isinstance(timesteps, Tensor) and losses.shape == timesteps.shape):
            self._warn(outputs, source)
            return sums
        values = losses.detach().flatten().to(sums)
        # Multiplied first, so that a timestep at the border of two bins falls into the upper one without rounding.
        bins = timesteps.detach().flatten().to(sums) * self.num_bins / self.max_timestep
        bins = bins.long().clamp(0, self.num_bins - 1)
        return sums.index_add(1, bins, torch.stack([values, torch.ones_like(values)]))

    def _log(self, trainer: Trainer, sums: Tensor, tag: str, step: int) -> None:
        losses, counts = sum_over_ranks(sums.clone()).tolist()
        bins = zip(_bin_names(self.num_bins, self.max_timestep), losses, counts, strict=True)
        log_writing.scalars(trainer, {f"{tag}/{name}": loss / count for name, loss, count in bins if count}, step)

    def _warn(self, outputs: Any, source: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            got = sorted(map(str, outputs)) if isinstance(outputs, dict) else type(outputs).__name__
            rank_zero_warn(
                f"NoiseLevelLoss logs nothing: it expects {source} to return a dict with two tensors of one shape, "
                f"{self.loss!r} and {self.timestep!r}, and got {got}"
            )


def _on_device(sums: Tensor, device: torch.device) -> Tensor:
    """A tensor as exact as the device can: over a long interval, float32 would lose digits."""
    return sums.to(device, torch.float32 if device.type == "mps" else torch.float64)


def _bin_names(num_bins: int, max_timestep: float) -> list[str]:
    """Lower and upper end, of one length so that they sort: `0100-0200`, `0.10-0.20`."""
    width = max_timestep / num_bins
    decimals = 0 if width.is_integer() else max(2, 1 - math.floor(math.log10(width)))
    length = len(f"{max_timestep:.{decimals}f}")
    ends = [f"{index * width:0{length}.{decimals}f}" for index in range(num_bins + 1)]
    return [f"{low}-{high}" for low, high in pairwise(ends)]

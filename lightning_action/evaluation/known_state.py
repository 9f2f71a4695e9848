"""Knowledge of a DataModule about its own videos: where the object is, and what other actions would have shown.

DataModules have pixels in [-1, 1], and the evaluation in [0, 1]: `position_reader` and `simulator` stand between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from lightning_action.batch import Batch, from_unit_range, to_unit_range

ReadPositions = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]
"""Function from (video in [0, 1], batch) to positions in pixels `[B, T, 2]`, and whether they were found `[B, T]`."""
Simulate = Callable[[Batch], tuple[Tensor, Tensor]]
"""Function from a batch to the true video in [0, 1] and positions under its actions, whatever they are."""


@runtime_checkable
class StateReader(Protocol):
    """A DataModule that knows where its object is: simulators do, recorded data does not."""

    def read_positions(self, video: Tensor, batch: Batch, split: str) -> tuple[Tensor, Tensor]:
        """Read positions in pixels `[B, T, 2]` off a video in [-1, 1], and whether the object is there, `[B, T]`."""
        ...


@runtime_checkable
class Simulator(Protocol):
    """A DataModule that knows what other actions show: exact counterfactuals."""

    def simulate(self, batch: Batch, split: str) -> tuple[Tensor, Tensor]:
        """Play the actions of a batch from the starts of its samples.

        Args:
            batch: `sample_id` `[B]` of samples of the split, and any `action` `[B, rows, columns]`.
            split: Split that the samples are from.

        Returns:
            Videos `[B, T, 3, H, W]` in [-1, 1], and positions of the object in pixels, `[B, T, 2]`; NaN where nobody
            knows them, as batches without `position` say.
        """
        ...


@runtime_checkable
class CheckedSimulator(Simulator, Protocol):
    """A simulator that may turn out to be none: an environment does not always play the same episode again."""

    def can_simulate(self, split: str) -> bool:
        """Tell whether `simulate` gives what other actions show; every rank must ask."""
        ...


def position_reader(datamodule: object, split: str) -> ReadPositions | None:
    """Return what reads positions off the videos of a split; None for data whose state nobody knows."""
    if not isinstance(datamodule, StateReader):
        return None
    return lambda video, batch: datamodule.read_positions(from_unit_range(video), batch, split)


def simulator(datamodule: object, split: str) -> Simulate | None:
    """Return what plays other actions from the starts of a split; None for data that nobody can play again."""
    if not isinstance(datamodule, Simulator):
        return None
    if isinstance(datamodule, CheckedSimulator) and not datamodule.can_simulate(split):
        return None

    def simulate(batch: Batch) -> tuple[Tensor, Tensor]:
        video, positions = datamodule.simulate(batch, split)
        return to_unit_range(video), positions

    return simulate

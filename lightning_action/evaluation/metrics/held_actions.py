"""Displacement by slow actions that are held, and drift of an object that should stand still."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric, mean

FRACTIONS = (0.04, 0.08, 0.15)


class HeldActions(EpisodeMetric):
    """Displacement under an action that is held from the first generated frame to the last, by its size.

    Small errors that fluctuate cancel in random actions; where one action is held they add up. With `d` the true
    displacement over the whole video and `g` the generated one, `held_gain_0.04 = sum g d / sum d d` over episodes,
    directions and both axes, the slope of a line through the origin, at 0.04 of the largest action; ideal 1, blind 0.
    `held_drift_px` is the mean distance of what is seen under zero actions from where it should be at the end; ideal 0.
    The definition is this project's own.

    Args:
        fractions: Sizes of the actions, as fractions of the largest.
    """

    def __init__(self, fractions: Sequence[float] = FRACTIONS, **kwargs: Any) -> None:
        super().__init__(["moved", "should_move", "drift"], **kwargs)
        self.fractions = tuple(fractions)

    def update(self, moved: Tensor, should_move: Tensor, drift: Tensor) -> None:
        """Add episodes.

        Args:
            moved: Generated displacements in pixels, `[B, fractions, directions, 2]`.
            should_move: True displacements of the same shape.
            drift: Generated less true displacement under zero actions, `[B, 2]`.

        Raises:
            ValueError: The shapes are not as above.
        """
        if moved.shape != should_move.shape or moved.ndim != 4 or moved.shape[1] != len(self.fractions):
            raise ValueError(
                f"expected displacements [B, {len(self.fractions)}, directions, 2] of one shape, got "
                f"{list(moved.shape)} and {list(should_move.shape)}"
            )
        self._add(moved=moved, should_move=should_move, drift=drift)

    def figures(self, episodes: dict[str, Tensor]) -> dict[str, float]:
        slopes = _slopes(
            episodes["moved"].transpose(0, 1).flatten(1), episodes["should_move"].transpose(0, 1).flatten(1)
        )
        return {
            **dict(zip(self._gains, slopes.tolist(), strict=True)),
            "held_drift_px": mean(episodes["drift"].norm(dim=-1)),
        }

    def per_episode(self) -> dict[str, Tensor]:
        episodes = self.episodes()
        slopes = _slopes(episodes["moved"].flatten(2), episodes["should_move"].flatten(2))
        return {
            **dict(zip(self._gains, slopes.unbind(1), strict=True)),
            "held_drift_px": episodes["drift"].norm(dim=-1),
        }

    @property
    def _gains(self) -> list[str]:
        return [f"held_gain_{fraction:g}" for fraction in self.fractions]


def _slopes(moved: Tensor, should_move: Tensor) -> Tensor:
    """Fit lines through the origin along the last axis; NaN where nothing should move."""
    moved, should_move = moved.double(), should_move.double()
    return (moved * should_move).sum(dim=-1) / should_move.square().sum(dim=-1)

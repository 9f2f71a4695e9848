"""Test of whether actions help a model to predict: losses under true actions against losses under others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric, mean_where

LEVELS = (0, 200, 400, 600, 800, 1000)
OtherActions = Literal["swapped", "shuffled", "null"]
OTHER_ACTIONS: tuple[OtherActions, ...] = get_args(OtherActions)


class FrameLosses(Protocol):
    """Losses of the latent frames of a batch, `[B, F]` each, as `LossGap.update` describes them."""

    @property
    def per_frame(self) -> Tensor: ...

    @property
    def timestep(self) -> Tensor: ...

    @property
    def per_frame_moving(self) -> Tensor | None: ...


class LossGap(EpisodeMetric):
    """Loss under other actions minus loss under the true ones, matched in sample, noise and timestep.

    With `l(a)` the squared error of the velocity under actions `a`, averaged over the latent frames of a sample,

        gap = l(a') - l(a),   relative_gap = gap / l(a),   win_rate = P[l(a) < l(a')], a tie counts half,

    each the mean over samples: permutation importance (Breiman 2001, doi:10.1023/A:1010933404324; Fisher et al. 2018,
    arXiv:1801.01489) of the actions for a flow-matching loss (Lipman et al. 2022, arXiv:2210.02747). Actions decide
    what happens at high noise, and matter little at low noise, where the picture shows it already; so each figure is
    also taken over the frames of one range of noise levels, `_0_200` and so on. And over the moving region alone
    (`_moving`), without which a small object on a still background makes the gap vanish. A model that is blind to
    actions has gap 0 and win rate 0.5; one that uses them has a gap above 0 and win rate 1.

    Args:
        actions: Kind of the other actions, which begins the names: `swapped`, those of another sample; `shuffled`, the
            sample's own rows in another order; `null`, none.
        levels: Borders of the ranges of noise levels in [0, 1000]; the last one belongs to the last range.
    """

    def __init__(self, actions: OtherActions, levels: Sequence[int] = LEVELS, **kwargs: Any) -> None:
        ranges = {f"_{low}_{high}": (low, high) for low, high in zip(levels, levels[1:], strict=False)}
        suffixes, figures = ("", *ranges, "_moving"), ("gap", "relative_gap", "win_rate")
        super().__init__([f"{actions}_{figure}{suffix}" for suffix in suffixes for figure in figures], **kwargs)
        self.actions, self.ranges, self.last_level = actions, ranges, levels[-1]

    def update(
        self,
        true: Tensor,
        other: Tensor,
        timestep: Tensor,
        true_moving: Tensor | None = None,
        other_moving: Tensor | None = None,
    ) -> None:
        """Add samples.

        Args:
            true: Loss of each latent frame under the true actions, `[B, F]`.
            other: Loss under the other actions at the same noise, `[B, F]`.
            timestep: Noise level of each frame in [0, 1000], `[B, F]`.
            true_moving: Loss under the true actions in the moving region of each frame, `[B, F]`, NaN where nothing
                moves; see `mean_where` and `motion.latent_motion`.
            other_moving: The same under the other actions.

        Raises:
            ValueError: Shapes differ.
        """
        unknown = torch.full_like(true, math.nan)
        moving = [unknown if loss is None else loss for loss in (true_moving, other_moving)]
        shapes = [list(tensor.shape) for tensor in (true, other, timestep, *moving)]
        if true.ndim != 2 or any(shape != shapes[0] for shape in shapes):
            raise ValueError(f"expected losses and timesteps [B, F] of one shape, got {shapes}")
        values = self._compare("", true.mean(dim=1), other.mean(dim=1))
        for suffix, (low, high) in self.ranges.items():
            inside = (timestep >= low) & ((timestep < high) | (timestep == high) & (high == self.last_level))
            values |= self._compare(suffix, *(mean_where(loss, inside, dim=1) for loss in (true, other)))
        values |= self._compare("_moving", *(loss.nanmean(dim=1) for loss in moving))
        self._add(**values)

    def by_noise_level(self) -> list[list[float]]:
        """Give lower and upper border, gap and win rate of each range of noise levels; every rank must call it."""
        figures = self.figures(self.episodes())
        return [
            [low, high, *(figures[f"{self.actions}_{name}{suffix}"] for name in ("gap", "win_rate"))]
            for suffix, (low, high) in self.ranges.items()
        ]

    def _compare(self, suffix: str, true: Tensor, other: Tensor) -> dict[str, Tensor]:
        gap = other - true
        won = torch.where(gap.isnan(), math.nan, wins(true, other))
        figures = {"gap": gap, "relative_gap": gap / true, "win_rate": won}
        return {f"{self.actions}_{name}{suffix}": values for name, values in figures.items()}


def wins(true: Tensor, other: Tensor) -> Tensor:
    """Score 1 where the loss under the true actions is the lower one, 0.5 at a tie, else 0; `[B]`.

    The mean over losses that are matched in sample, noise and timestep is the win rate; chance is 0.5.
    """
    return (true < other).float() + 0.5 * (true == other).float()

"""Actions that a model reads off videos, against those that were given: column by column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_action.evaluation.metrics.action_following import (
    best_lag,
    centred,
    correlation,
    gain_and_r2,
    slope_shares,
)
from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric, mean
from lightning_action.evaluation.metrics.inverse_dynamics_model import Column

# Columns among which cross-talk is told: twelve pairs are as many as a reader takes in.
_MAX_CROSSED = 4
# What is read, and what was given, of which a gain is the slope.
_GAINS = {"idm_gain": ("read", "action"), "idm_gain_other": ("read_other", "action_other")}


class ReadingQuality(EpisodeMetric):
    """Quality with which actions are read off videos, column by column, beside what can be had without looking.

    - `r2_<column>` of continuous columns: `1 - sum (read - given)^2 / sum (given - mean)^2`; ideal 1, and 0 for who
      says the mean.
    - `correlation_<column>` of all columns, classes as one-hot vectors; chance is 0.
    - `accuracy_<column>` of switches and classes, and `chance_<column>`, the share of the most frequent value.

    Coefficient of determination for continuous columns and accuracy for keys are what VPT reports of its
    inverse-dynamics model (Baker et al. 2022, arXiv:2206.11795). Chance is a classifier that always says the most
    frequent value.

    Args:
        columns: Columns of an action row.
    """

    def __init__(self, columns: Sequence[Column], **kwargs: Any) -> None:
        super().__init__(["read", "action"], **kwargs)
        self.columns = tuple(columns)

    def update(self, read: Tensor, action: Tensor) -> None:
        """Add videos: rows that were read off them, and their actions, `[B, rows, columns]`."""
        self._add(read=read, action=action)

    def figures(self, episodes: dict[str, Tensor]) -> dict[str, float]:
        result = {}
        pairs = [episodes[name].reshape(-1, len(self.columns)).double().unbind(-1) for name in ("read", "action")]
        for column, read, action in zip(self.columns, *pairs, strict=True):
            features = (column.features(values) for values in (read, action))
            result[f"correlation_{column.name}"] = correlation(*features)
            if column.kind == "continuous":
                spread = (action - action.mean()).square().sum()
                result[f"r2_{column.name}"] = (1 - (read - action).square().sum() / spread).item()
            else:
                result[f"accuracy_{column.name}"] = mean((read == action).double())
                most = action.long().bincount().max() if len(action) else torch.tensor(math.nan)
                result[f"chance_{column.name}"] = most.item() / max(len(action), 1)
        return result


class ActionsReadBack(EpisodeMetric):
    """Test of whether actions read off generated videos answer to those that were given, column by column.

    `c` is the name of a column; classes are compared as one-hot vectors. Correlations, gains and cross-talk are those
    of means over a latent frame: within one, a codec smears what moves.

    - `idm_correlation_c`, `idm_correlation_real_c`: correlation of what is read with what was given, on generated and
      on real videos; the latter is the ceiling, and where it is low, nothing is known of that column. Chance is 0, and
      of a column that is never given another value it is NaN. Without a column they are means over all others.
    - `idm_gain_c`: least-squares slope of what is read on what was given, over the same slope on real videos; ideal
      1, blind 0, inverted -1.
    - `idm_gain_other_c`: the same where a video was generated under another sample's actions. It is near 0 while
      `idm_gain_c` is 1 where a model tells from the first frames what will be done, and does not listen.
    - `idm_lag_frames`, `idm_lag_correlation`: pixel frames by which generated motion comes late, as in
      `ActionFollowing`, each column weighted by `idm_correlation_real_c`; ideal 0.
    - `idm_cross_talk_a_to_b`, of two to four continuous columns: how much more of column b is read for each unit of a
      that was given than on real videos, all else equal and both in deviations of the given actions; ideal 0, and 1
      both ways where the columns are swapped.

    Reading actions back off generated videos is that of GameWorld Score (Matrix-Game, Zhang et al. 2025,
    arXiv:2506.18701). Gain, lag and cross-talk are those of `ActionFollowing`; to measure them against real videos is
    this project's own.

    Args:
        columns: Columns of an action row.
        temporal_compression_ratio: Number of pixel frames of a latent frame.
        rows_per_frame: Number of action rows of a pixel frame.
    """

    def __init__(
        self, columns: Sequence[Column], temporal_compression_ratio: int = 4, rows_per_frame: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(["read", "read_real", "action", "read_other", "action_other"], **kwargs)
        self.columns, self.rows_per_frame = tuple(columns), rows_per_frame
        self.rows_per_latent = temporal_compression_ratio * rows_per_frame

    def update(self, read: Tensor, read_real: Tensor, action: Tensor, read_other: Tensor, action_other: Tensor) -> None:
        """Add episodes; all are rows `[B, rows, columns]`.

        Args:
            read: Actions read off generated videos.
            read_real: Actions read off the real videos of the same episodes.
            action: Actions of these episodes.
            read_other: Actions read off videos that were generated from the same starts under other actions.
            action_other: Rows of those other actions.
        """
        self._add(read=read, read_real=read_real, action=action, read_other=read_other, action_other=action_other)

    def figures(self, episodes: dict[str, Tensor]) -> dict[str, float]:
        rows = self._rows(episodes)
        return self._figures(rows, self._ceilings(rows))

    def per_episode(self) -> dict[str, Tensor]:
        # What is read shrinks alike in all episodes, and one alone tells little of it.
        rows = self._rows(self.episodes())
        if not len(rows["action"]):
            return {}
        ceilings = self._ceilings(rows)
        return {
            **self._figures_of_each(lambda episodes: self._figures(self._rows(episodes), ceilings)),
            **self._gains_of_each(rows, ceilings),
            **self._cross_talk(rows),
        }

    def _gains_of_each(self, rows: dict[str, Tensor], ceilings: Sequence[tuple[float, float]]) -> dict[str, Tensor]:
        """Share each gain among the episodes, by what each does to it: the mean of the shares is the gain.

        The slope in one episode alone is that of few latent frames, and is none where its actions do not vary.
        """
        result = {}
        for index, (column, (slope_real, _)) in enumerate(zip(self.columns, ceilings, strict=True)):
            real = self._slope_shares(index, rows, ("read_real", "action"))
            for name, pair in _GAINS.items():
                shares = self._slope_shares(index, rows, pair) / (slope_real if slope_real > 0 else math.nan)
                # To first order, as of any quotient of means.
                result[f"{name}_{column.name}"] = shares + shares.mean() * (1 - real / slope_real)
        return result

    def _slope_shares(self, index: int, rows: dict[str, Tensor], names: Sequence[str]) -> Tensor:
        """Share the slope of one on the other among the episodes: `[episodes]`, the mean of which is the slope."""
        count = len(rows["action"])
        read, given = (by_episode(centred(each), count) for each in self._of_column(index, rows, names))
        along, square = (read * given).sum(dim=(1, 2)), given.square().sum(dim=(1, 2))
        slope_of_all = along.sum() / square.sum()
        return slope_of_all + (along - slope_of_all * square) / square.mean()

    def _rows(self, episodes: dict[str, Tensor]) -> dict[str, Tensor]:
        count = len(episodes["action"])
        shape = (count, -1 if count else 0, len(self.columns))
        return {name: episodes[name].reshape(shape).double() for name in self.names}

    def _ceilings(self, rows: dict[str, Tensor]) -> list[tuple[float, float]]:
        """Fit what is read off real videos to what was given, of each column: slope and correlation."""
        pairs = [self._of_column(index, rows, ("read_real", "action")) for index in range(len(self.columns))]
        return [(gain_and_r2(*pair)[0], agreement(*pair)) for pair in pairs]

    def _of_column(self, index: int, rows: dict[str, Tensor], names: Sequence[str]) -> list[Tensor]:
        features = self.columns[index].features
        return [self._over_latents(features(rows[name][..., index])) for name in names]

    def _figures(self, rows: dict[str, Tensor], ceilings: Sequence[tuple[float, float]]) -> dict[str, float]:
        result = self._correlations(rows)
        for index, (column, (slope_real, _)) in enumerate(zip(self.columns, ceilings, strict=True)):
            for name, pair in _GAINS.items():
                gain = gain_and_r2(*self._of_column(index, rows, pair))[0]
                result[f"{name}_{column.name}"] = gain / slope_real if slope_real > 0 else math.nan
        crossed = {name: shares.mean().item() for name, shares in self._cross_talk(rows).items()}
        return {**result, **self._lag(rows, [most for _, most in ceilings]), **crossed}

    def _correlations(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Correlate what is read with what was given, of each column, and on average."""
        result: dict[str, float] = {}
        for name, read in (("idm_correlation", "read"), ("idm_correlation_real", "read_real")):
            found = {
                f"{name}_{column.name}": agreement(*self._of_column(index, rows, (read, "action")))
                for index, column in enumerate(self.columns)
            }
            result |= {name: mean(torch.tensor(list(found.values()))), **found}
        return result

    def _over_latents(self, values: Tensor) -> Tensor:
        """Average `[B, rows, D]` over the rows of each latent frame: `[B F, D]`; what fills none is left out."""
        whole = values.shape[1] - values.shape[1] % self.rows_per_latent
        return values[:, :whole].unflatten(1, (-1, self.rows_per_latent)).mean(dim=2).flatten(0, 1)

    def _lag(self, rows: dict[str, Tensor], most: Sequence[float]) -> dict[str, float]:
        """Compare all columns at once, in deviations and classes as one-hot, each as much as real videos show it."""
        of_frames = []
        for name in ("read", "action"):
            columns = zip(self.columns, rows[name].unbind(-1), most, strict=True)
            # NaN is no weight either.
            told = [max(0.0, weight) * standardised(column.features(values)) for column, values, weight in columns]
            of_frames.append(torch.cat(told, dim=-1).unflatten(1, (-1, self.rows_per_frame)).flatten(2))
        lag, lag_correlation = best_lag(*of_frames)
        return {"idm_lag_frames": float(lag), "idm_lag_correlation": lag_correlation}

    def _cross_talk(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Share cross-talk among the episodes, `[episodes]` by name: its mean is that of all."""
        crossed = [index for index, column in enumerate(self.columns) if column.kind == "continuous"]
        if not 2 <= len(crossed) <= _MAX_CROSSED:
            return {}
        action, read, real = (self._over_latents(rows[name][..., crossed]) for name in ("action", "read", "read_real"))
        scale = deviations(action)
        unit = torch.where(scale > 0, scale, 1.0)
        names = [self.columns[index].name for index in crossed]
        result = {}
        for to, name_to in enumerate(names):
            more = slope_shares(
                by_episode((read - real)[:, to] / unit[to], len(rows["action"])),
                by_episode(action / unit, len(rows["action"])),
            )
            for given, name in enumerate(names):
                if given != to:
                    told = more[:, given] if scale[to] > 0 else math.nan * more[:, given]
                    result[f"idm_cross_talk_{name}_to_{name_to}"] = told
        return result


def by_episode(values: Tensor, count: int) -> Tensor:
    """Take rows `[B n, ...]` apart into those of each of B episodes, of which there may be none."""
    return values.unflatten(0, (count, len(values) // max(count, 1)))


def agreement(read: Tensor, given: Tensor) -> float:
    """Correlate vectors `[n, D]` with others; NaN where those do not vary, and 0 where only what is read does not."""
    return correlation(read, given) if bool(centred(given).any()) else math.nan


def deviations(values: Tensor) -> Tensor:
    """Compute the standard deviation of each component of vectors `[n, D]`, 0 where it does not vary."""
    return centred(values).square().mean(dim=0).sqrt()


def standardised(values: Tensor) -> Tensor:
    """Centre components of `[B, rows, D]` and divide them by their deviation; those that do not vary are 0."""
    flat = values.flatten(0, 1)
    scale = deviations(flat)
    return (centred(flat) / torch.where(scale > 0, scale, 1.0)).unflatten(0, values.shape[:2])

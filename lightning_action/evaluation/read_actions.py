"""Actions that a model reads off videos, against those that were given: column by column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_action.evaluation.action_following import best_lag, correlation, partial_slopes
from lightning_action.evaluation.episode_metric import EpisodeMetric, mean
from lightning_action.evaluation.inverse_dynamics_model import Column

# Columns among which cross-talk is told: twelve pairs are as many as a reader takes in.
_MAX_CROSSED = 4


class ReadingQuality(EpisodeMetric):
    """How well actions are read off videos, column by column, beside what can be had without looking.

    - `r2_<column>` of continuous columns: `1 - sum (read - given)^2 / sum (given - mean)^2`; ideal 1, and 0 for who
      says the mean.
    - `correlation_<column>` of all columns, classes as one-hot vectors; chance is 0.
    - `accuracy_<column>` of switches and classes, and `chance_<column>`, the share of the most frequent value.

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
    """Do actions that are read off generated videos answer to those that were given, column by column?

    `c` is the name of a column; classes are compared as one-hot vectors. Correlations, gains and cross-talk are those
    of means over a latent frame: within one, a codec smears what moves.

    - `idm_correlation_c`, `idm_correlation_real_c`: correlation of what is read with what was given, on generated and
      on real videos; the latter is the ceiling, and where it is low, nothing is known of that column. Chance is 0.
      Without a column they are means over all of them.
    - `idm_gain_c`: least-squares slope of what is read on what was given, over the same slope on real videos; ideal
      1, blind 0, inverted -1.
    - `idm_gain_other_c`: the same where a video was generated under another sample's actions. It is near 0 while
      `idm_gain_c` is 1 where a model tells from the first frames what will be done, and does not listen.
    - `idm_lag_frames`, `idm_lag_correlation`: pixel frames by which generated motion comes late, as in
      `ActionFollowing`; ideal 0.
    - `idm_cross_talk_a_to_b`, of two to four continuous columns: how much more of column b is read for each unit of a
      that was given than on real videos, all else equal and both in deviations of the given actions; ideal 0, and 1
      both ways where the columns are swapped.

    Args:
        columns: Columns of an action row.
        temporal_compression_ratio: Number of pixel frames of a latent frame.
        rows_per_frame: Number of action rows of a pixel frame.
    """

    read: list[Tensor]

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
            action_other: Those other actions.
        """
        self._add(read=read, read_real=read_real, action=action, read_other=read_other, action_other=action_other)

    def figures(self, episodes: dict[str, Tensor]) -> dict[str, float]:
        rows = {
            name: episodes[name].reshape(len(episodes[name]), -1, len(self.columns)).double() for name in self.names
        }
        result = self._correlations(rows)
        for index, column in enumerate(self.columns):
            own = {name: self._over_latents(column.features(values[..., index])) for name, values in rows.items()}
            slope_real = slope(own["read_real"], own["action"])
            gains = [slope(own["read"], own["action"]), slope(own["read_other"], own["action_other"])]
            for name, gain in zip(("idm_gain", "idm_gain_other"), gains, strict=True):
                result[f"{name}_{column.name}"] = gain / slope_real if slope_real > 0 else math.nan
        return {**result, **self._lag(rows), **self._cross_talk(rows)}

    def per_episode(self) -> dict[str, Tensor]:
        rows = self.episodes()
        count = len(rows["action"])
        each = [self._correlations({name: values[i : i + 1] for name, values in rows.items()}) for i in range(count)]
        return {name: torch.tensor([figures[name] for figures in each]) for name in (each[0] if each else ())}

    def _correlations(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Correlate what is read with what was given, of each column, and on average."""
        result: dict[str, float] = {}
        for name, read in (("idm_correlation", "read"), ("idm_correlation_real", "read_real")):
            found = {
                f"{name}_{column.name}": correlation(
                    *(self._over_latents(column.features(rows[key][..., index])) for key in (read, "action"))
                )
                for index, column in enumerate(self.columns)
            }
            result |= {name: mean(torch.tensor(list(found.values()))), **found}
        return result

    def _over_latents(self, values: Tensor) -> Tensor:
        """Average `[B, rows, D]` over the rows of each latent frame: `[B F, D]`; what fills none is left out."""
        whole = values.shape[1] - values.shape[1] % self.rows_per_latent
        return values[:, :whole].unflatten(1, (-1, self.rows_per_latent)).mean(dim=2).flatten(0, 1)

    def _lag(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Compare all columns at once, each in its own deviations and classes as one-hot."""
        read, action = (
            torch.cat(
                [column.features(values) for column, values in zip(self.columns, each.unbind(-1), strict=True)], -1
            )
            for each in (rows["read"], rows["action"])
        )
        of_frames = [_standardised(each).unflatten(1, (-1, self.rows_per_frame)).flatten(2) for each in (read, action)]
        lag, lag_correlation = best_lag(*of_frames)
        return {"idm_lag_frames": float(lag), "idm_lag_correlation": lag_correlation}

    def _cross_talk(self, rows: dict[str, Tensor]) -> dict[str, float]:
        crossed = [index for index, column in enumerate(self.columns) if column.kind == "continuous"]
        if not 2 <= len(crossed) <= _MAX_CROSSED:
            return {}
        action, read, real = (self._over_latents(rows[name][..., crossed]) for name in ("action", "read", "read_real"))
        scale = action.std(dim=0)
        names = [self.columns[index].name for index in crossed]
        result = {}
        for to, name_to in enumerate(names):
            slopes, slopes_real = (partial_slopes(each[:, to] / scale[to], action / scale) for each in (read, real))
            for given, name in enumerate(names):
                if given != to:
                    result[f"idm_cross_talk_{name}_to_{name_to}"] = slopes[given] - slopes_real[given]
        return result


def slope(read: Tensor, given: Tensor) -> float:
    """Fit the least-squares slope of vectors `[n, D]` on others; NaN where those do not vary."""
    a, b = (each - each.mean(dim=0) for each in (read, given))
    total = b.square().sum()
    return ((a * b).sum() / total).item() if total > 0 else math.nan


def _standardised(values: Tensor) -> Tensor:
    flat = values.flatten(0, 1)
    scale = flat.std(dim=0)
    return (values - flat.mean(dim=0)) / torch.where(scale > 0, scale, 1.0)

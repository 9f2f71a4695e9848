"""Test of whether actions can be read off a video, by a model that was trained to read them off real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric, ratio

SIGNIFICANCE = 0.001


class InverseDynamicsAccuracy(EpisodeMetric):
    """Share of actions that an inverse-dynamics model reads off generated videos, between its chance and its ceiling.

    As in VPT (Baker et al. 2022, arXiv:2206.11795) the model is trained on real videos; its accuracy on videos that
    were generated under known actions is the keyboard accuracy of GameWorld Score (Matrix-Game, Zhang et al. 2025,
    arXiv:2506.18701). It says nothing without that on real ones, so

        idm_normalised = (idm_accuracy - idm_chance) / (idm_accuracy_real - idm_chance),

    ideal 1, blind 0, where `idm_chance` is the share of the most frequent action, which is all that can be had without
    looking. `idm_is_informative` is 1 where a model that is right by chance would read that share of real actions
    rightly, or more, with a probability (exact binomial tail, `idm_p_value`) below 0.001; else a low accuracy says
    nothing about the videos, and the normalised one is NaN. Rows over which a column keeps its value are one trial of
    that probability: they are no independent ones.

    An action of several columns is as many trials; chance then takes the most frequent value of each column. The
    normalisation is this project's own.

    Args:
        num_classes: Number of kinds of actions; of several columns, that of each.
    """

    def __init__(self, num_classes: int | Sequence[int], **kwargs: Any) -> None:
        super().__init__(["correct", "correct_real", "labels", "trials"], **kwargs)
        self.num_classes = [num_classes] if isinstance(num_classes, int) else list(num_classes)

    def update(self, read_generated: Tensor, read_real: Tensor, action: Tensor) -> None:
        """Add episodes.

        Args:
            read_generated: Actions read off generated videos, whole numbers `[B, rows]`, or `[B, rows, columns]`.
            read_real: Actions read off the real videos of the same episodes.
            action: Actions that were given.

        Raises:
            ValueError: Shapes differ, or the columns are not those of the metric.
        """
        if not read_generated.shape == read_real.shape == action.shape:
            shapes = [list(each.shape) for each in (read_generated, read_real, action)]
            raise ValueError(f"expected actions [B, rows] of one shape, got {shapes}")
        columns = torch.atleast_3d(action).long().unbind(dim=-1)
        counts = [F.one_hot(each, number).sum(dim=1) for each, number in zip(columns, self.num_classes, strict=True)]
        self._add(
            correct=(read_generated == action).flatten(1).sum(dim=1),
            correct_real=(read_real == action).flatten(1).sum(dim=1),
            labels=torch.cat(counts, dim=-1),
            trials=torch.stack([1 + (each[:, 1:] != each[:, :-1]).sum(dim=1) for each in columns]).sum(dim=0),
        )

    def figures(self, episodes: dict[str, Tensor]) -> dict[str, float]:
        labels = episodes["labels"].reshape(-1, sum(self.num_classes)).sum(dim=0)
        rows, most = int(labels.sum()), sum(int(each.max()) for each in labels.split(self.num_classes))
        trials = int(episodes["trials"].sum())
        accuracy, real = (ratio(int(episodes[name].sum()), rows) for name in ("correct", "correct_real"))
        chance = ratio(most, rows)
        p_value = binomial_tail(round(real * trials) if trials else 0, trials, chance)
        informative = p_value < SIGNIFICANCE
        return {
            "idm_accuracy": accuracy,
            "idm_accuracy_real": real,
            "idm_chance": chance,
            "idm_normalised": ratio(accuracy - chance, real - chance) if informative else math.nan,
            "idm_is_informative": float(informative),
            "idm_p_value": p_value,
        }

    def per_episode(self) -> dict[str, Tensor]:
        episodes = self.episodes()
        rows, over_all = episodes["labels"].sum(dim=-1), self.figures(episodes)
        chance, real = over_all["idm_chance"], over_all["idm_accuracy_real"]
        accuracy = episodes["correct"] / rows
        reach = ratio(1, real - chance) if over_all["idm_is_informative"] else math.nan
        return {
            "idm_accuracy": accuracy,
            "idm_accuracy_real": episodes["correct_real"] / rows,
            "idm_normalised": (accuracy - chance) * reach,
        }


def binomial_tail(successes: int, trials: int, chance: float) -> float:
    """Compute the probability of that many successes or more, each with probability `chance`; NaN without a trial."""
    if trials == 0:
        return math.nan
    hits = torch.arange(successes, trials + 1, dtype=torch.float64)
    misses = trials - hits
    log_ways = math.lgamma(trials + 1) - (hits + 1).lgamma() - (misses + 1).lgamma()
    chances = torch.tensor([chance, 1 - chance], dtype=torch.float64)
    log_probability = log_ways + hits.xlogy(chances[0]) + misses.xlogy(chances[1])
    return min(1.0, log_probability.exp().sum().item())

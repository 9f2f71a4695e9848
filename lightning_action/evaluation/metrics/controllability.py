"""Share of what varies that the actions decide, and share that the noise decides."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric, ratios


class Controllability(EpisodeMetric):
    """Variance between actions over variance between noises, of a feature of the video, such as where the object ends.

    With `f(a, z)` the feature under actions `a` and noise `z` from one start, variances unbiased and summed over the
    axes of the feature,

        controllability_ratio = E_z Var_a f / E_a Var_z f,
        action_share = E_z Var_a f / (E_z Var_a f + E_a Var_z f),

    expectations over starts too: a signal-to-noise ratio in the sense of the analysis of variance (Fisher 1925). A
    blind model has 0 in both, as every noise is used under all actions; what is decided by the actions alone has a
    share of 1 and no ratio (NaN). A start with an undefined feature is left out. It says how much actions change, not
    whether they change the right thing: inverted actions score the same.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(["action_variance", "noise_variance"], **kwargs)

    def update(self, features: Tensor) -> None:
        """Add starts.

        Args:
            features: Features `[B, actions, noises, D]`, of two actions and two noises or more; four each are better.

        Raises:
            ValueError: The shape of the features is not as above.
        """
        if features.ndim != 4 or min(features.shape[1:3]) < 2:
            raise ValueError(
                "expected features [B, actions, noises, D] of at least 2 actions and 2 noises, got "
                f"{list(features.shape)}"
            )
        spread = {axis: features.double().var(dim=axis).sum(dim=-1).mean(dim=1) for axis in (1, 2)}
        self._add(action_variance=spread[1], noise_variance=spread[2])

    def _derived(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        action, noise = values["action_variance"], values["noise_variance"]
        return {
            "controllability_ratio": ratios(action, noise),
            "action_share": ratios(action, action + noise),
            **values,
        }

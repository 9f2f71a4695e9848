"""There and back: actions, then their opposites."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric, ratios


class RoundTrip(EpisodeMetric):
    """Test of whether a video comes back to its start when its actions are played and then undone.

    For a video `x_0 ... x_2T` under `T` actions and their opposites in reverse order, means over pixels in [0, 1]:

        round_trip = 1 - mean |x_0 - x_2T|,   ideal 1
        mirror = 1 - mean_i |x_i - x_(2T-i)|, i < T,   ideal 1
        excursion = mean |x_0 - x_T|, how far it went
        recovery = 1 - mean |x_0 - x_2T| / excursion,   ideal 1; 0 for one that stays where it went

    The mirror is the scenario consistency of GameWorld Score (Matrix-Game, Zhang et al. 2025, arXiv:2506.18701),
    without its search over shifts. A video that stands still has `round_trip` and `mirror` 1, which is why the
    excursion stands beside it: there it is 0, and the recovery NaN. Where walls stop an object, the opposite does not
    undo; choose actions that keep away from them. The other figures are this project's own.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(["round_trip", "mirror", "excursion"], **kwargs)

    def update(self, video: Tensor) -> None:
        """Add videos `[B, 2T + 1, 3, H, W]` in [0, 1].

        Raises:
            ValueError: The number of frames is even, or 1.
        """
        frames = video.shape[1]
        if frames < 3 or frames % 2 == 0:
            raise ValueError(f"expected videos of 2T + 1 frames, T actions and their opposites, got {frames} frames")
        middle = frames // 2
        # Frame i against frame 2T - i, for i < T.
        apart = (video[:, :middle] - video.flip(1)[:, :middle]).abs().mean(dim=(2, 3, 4))
        self._add(
            round_trip=1 - apart[:, 0],
            mirror=1 - apart.mean(dim=1),
            excursion=(video[:, 0] - video[:, middle]).abs().mean(dim=(1, 2, 3)),
        )

    def _derived(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**values, "recovery": 1 - ratios(1 - values["round_trip"], values["excursion"])}

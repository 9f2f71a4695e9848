"""Response of the actions' effect to guidance on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_action.evaluation.metrics.action_following import gain_and_r2
from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0)


class GuidanceResponse(EpisodeMetric):
    """Gain of the motion at each scale of action guidance, at the same noise.

    Guidance is that of Ho and Salimans (2022, arXiv:2207.12598), scale 0 without actions, 1 with them and no guidance.
    `gain_at_scale_1_5` is the least-squares slope of generated on true displacements over a latent frame, both axes
    together; near 0 at scale 0, ideal 1 at scale 1. `gain_rises` is 1 where no scale has a lower gain than the one
    before and the last a higher one than the first, both by more than the tolerance; `saturates_at_scale` is the lowest
    scale whose gain is the highest one but for the tolerance, and NaN where that is the last scale or the gain does not
    rise. A blind model has gain 0 at all scales, which do not rise. The figures are this project's own.

    Args:
        scales: Guidance scales in rising order.
        temporal_compression_ratio: Number of pixel frames of a latent frame.
        tolerance: Difference of gains that counts as none.

    Raises:
        ValueError: The scales are fewer than two, or do not rise.
    """

    def __init__(
        self,
        scales: Sequence[float] = SCALES,
        temporal_compression_ratio: int = 4,
        tolerance: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(["moved", "should_move"], **kwargs)
        if len(scales) < 2 or sorted(set(scales)) != list(scales):
            raise ValueError(f"expected two guidance scales or more, in rising order, got {list(scales)}")
        self.scales = tuple(scales)
        self.temporal_compression_ratio = temporal_compression_ratio
        self.tolerance = tolerance

    def update(self, positions: Tensor, target: Tensor) -> None:
        """Add episodes, from the last given frame on.

        Args:
            positions: Positions read off the videos of all scales, in pixels, `[B, scales, T, 2]`.
            target: Positions that the simulator knows, `[B, T, 2]`.

        Raises:
            ValueError: The shapes are not as above.
        """
        if positions.shape != (len(target), len(self.scales), *target.shape[1:]):
            raise ValueError(
                f"expected positions [B, {len(self.scales)}, T, 2] for a target [B, T, 2], got "
                f"{list(positions.shape)} for {list(target.shape)}"
            )
        step = self.temporal_compression_ratio
        self._add(moved=positions[:, :, ::step].diff(dim=2), should_move=target[:, ::step].diff(dim=1))

    def figures(self, episodes: dict[str, Tensor]) -> dict[str, float]:
        moved, should_move = episodes["moved"], episodes["should_move"].flatten()
        gains = [gain_and_r2(each.flatten(), should_move)[0] for each in moved.unbind(1)]
        return {**dict(zip(map(_name, self.scales), gains, strict=True)), **self._course(gains)}

    def per_episode(self) -> dict[str, Tensor]:
        return self._figures_of_each(self.figures)

    def _course(self, gains: list[float]) -> dict[str, float]:
        if any(map(math.isnan, gains)):
            return {"gain_rises": math.nan, "saturates_at_scale": math.nan}
        never_falls = all(b - a >= -self.tolerance for a, b in zip(gains, gains[1:], strict=False))
        rises = never_falls and gains[-1] - gains[0] > self.tolerance
        highest = next(s for s, gain in zip(self.scales, gains, strict=True) if gain >= max(gains) - self.tolerance)
        saturates = rises and highest < self.scales[-1]
        return {"gain_rises": float(rises), "saturates_at_scale": highest if saturates else math.nan}


def _name(scale: float) -> str:
    return f"gain_at_scale_{scale:g}".replace(".", "_")

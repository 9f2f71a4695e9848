"""Changes that other actions make, from the same start and with the same noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric, check_videos, mean_where, ratios
from lightning_action.evaluation.metrics.motion import moving_region


class CounterfactualDivergence(EpisodeMetric):
    """Test of whether other actions change what they would in reality: two videos of one start and one noise.

    With `g`, `g'` the videos generated under actions `a`, `a'` and `x`, `x'` what a simulator shows under them, means
    over pixels and frames from the first one that may differ:

        counterfactual_divergence = mean |(g - g') - (x - x')|,   ideal 0
        counterfactual_ratio = counterfactual_divergence / mean |x - x'|,   ideal 0; copying and blind models have 1
        generated_difference = mean |g - g'|,   0 for a blind model; ideal `true_difference = mean |x - x'|`
        generated_difference_moving = the same where x moves,   0 for a blind model, however small the object is
        difference_before = mean |g - g'| over the generated frames before,   0 for a causal model

    The difference of differences is that of the judge worldproof (0.1.0), which counts in 255ths; it cancels what is
    wrong with both videos alike. `generated_difference` alone is diversity, not obedience: noise that is not matched
    raises it. Without `x'` the figures that need it are NaN.

    Args:
        num_initial_frames: Number of pixel frames at the start that were given, and do not count.
    """

    def __init__(self, num_initial_frames: int = 1, **kwargs: Any) -> None:
        names = ["counterfactual_divergence", "generated_difference", "generated_difference_moving"]
        names += ["true_difference", "difference_before"]
        super().__init__(names, **kwargs)
        self.num_initial_frames = num_initial_frames

    def update(
        self,
        video: Tensor,
        video_other: Tensor,
        truth: Tensor | None = None,
        truth_other: Tensor | None = None,
        first_difference: Tensor | None = None,
    ) -> None:
        """Add pairs of videos `[B, T, 3, H, W]` in [0, 1].

        Args:
            video: Videos generated under some actions.
            video_other: Videos generated under others, with the same noise.
            truth: True videos under the former.
            truth_other: True videos under the latter.
            first_difference: First pixel frame that may differ, `[B]`: the first one of the latent frame to which the
                first different action row belongs; None says all that were generated.

        Raises:
            ValueError: Shapes differ.
        """
        check_videos(video, video_other, *(each for each in (truth, truth_other) if each is not None))
        change = video - video_other
        unknown = torch.full_like(change, math.nan)
        true_change = unknown if truth is None or truth_other is None else truth - truth_other
        start = self.num_initial_frames
        first = torch.full((len(video),), start) if first_difference is None else first_difference
        frames = torch.arange(video.shape[1], device=video.device)
        after = frames >= first.to(video.device).clamp_min(start)[:, None]
        size = {
            "counterfactual_divergence": change - true_change,
            "generated_difference": change,
            "true_difference": true_change,
        }
        by_frame = {name: each.abs().mean(dim=(2, 3, 4)) for name, each in size.items()}
        before = mean_where(by_frame["generated_difference"], ~after & (frames >= start), dim=1)
        moves = torch.zeros_like(change[:, :, 0], dtype=torch.bool) if truth is None else moving_region(truth)
        moves &= after[:, :, None, None]
        self._add(
            difference_before=before,
            generated_difference_moving=mean_where(change.abs().mean(dim=2), moves, dim=(1, 2, 3)),
            **{name: mean_where(each, after, dim=1) for name, each in by_frame.items()},
        )

    def _derived(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        share = ratios(values["counterfactual_divergence"], values["true_difference"])
        return {**values, "counterfactual_ratio": share}


class CrossSwap(EpisodeMetric):
    """Test of whether a video follows the actions that it was given, or the video that its start comes from.

    The start of one episode is continued under the actions of another one, and the path read off it, from its own
    beginning, is compared with the paths of both: `cross_swap_accuracy` is the share of episodes whose path is nearer
    to that of the owner of the actions than to that of the owner of the start, a tie counts half. Ideal 1; a model that
    continues what the start suggests has 0, one that moves at random 0.5. Distances are average displacement errors
    (Gupta et al. 2018, arXiv:1803.10892).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(["cross_swap_accuracy", "error_to_action_owner_px", "error_to_start_owner_px"], **kwargs)

    def update(self, positions: Tensor, action_owner: Tensor, start_owner: Tensor) -> None:
        """Add paths `[B, T, 2]` in pixels, from the last given frame on.

        Args:
            positions: Positions read off generated videos.
            action_owner: True positions under the actions that were given; best those of a simulator from the same
                start, for walls stop one and not the other.
            start_owner: True positions of the episode that the start comes from.

        Raises:
            ValueError: Shapes differ.
        """
        if not positions.shape == action_owner.shape == start_owner.shape:
            shapes = [list(each.shape) for each in (positions, action_owner, start_owner)]
            raise ValueError(f"expected positions [B, T, 2] of one shape, got {shapes}")
        path, *owners = (each[:, 1:] - each[:, :1] for each in (positions, action_owner, start_owner))
        to_action, to_start = ((path - owner).norm(dim=-1).mean(dim=1) for owner in owners)
        nearer = (to_action < to_start).float() + 0.5 * (to_action == to_start).float()
        self._add(
            cross_swap_accuracy=torch.where((to_action - to_start).isnan(), math.nan, nearer),
            error_to_action_owner_px=to_action,
            error_to_start_owner_px=to_start,
        )

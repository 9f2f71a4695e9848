"""Classifier-free guidance by prompts and by actions: velocities under other conditions push that of a video's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lightning_action.diffusion.flow_matching import NUM_TRAIN_TIMESTEPS


class Branch(NamedTuple):
    """Conditions that a velocity is computed under, for all videos of a batch.

    Args:
        takes_prompt: Whether the prompt is the video's own; the negative one otherwise.
        takes_action: Whether the actions are the video's own; there are none otherwise.
    """

    takes_prompt: bool = True
    takes_action: bool = True


@dataclass(frozen=True)
class Guidance:
    """Weights of guidance by prompts and actions (Ho & Salimans 2022, arXiv:2207.12598).

    With v of the video's own prompt and actions, v_negative of the negative prompt with the same actions, and v_null of
    the same prompt without actions, it is `v + (w_prompt - 1) (v - v_negative) + (w_action - 1) (v - v_null)`.
    So w = 1 is no guidance, and with one of the two alone it is the usual `v_negative + w_prompt (v - v_negative)`, or
    `v_null + w_action (v - v_null)`. That the directions of two conditions add up is composition (Liu et al. 2022,
    arXiv:2206.01714). At w = 0 the condition is left out everywhere.

    Args:
        prompt_scale: Weight w_prompt.
        action_scale: Weight w_action.
        interval: Lowest and highest timestep, in [0, 1000], at which there is guidance (Kynkaanniemi et al. 2024,
            arXiv:2404.07724).
    """

    prompt_scale: float = 1.0
    action_scale: float = 1.0
    interval: tuple[float, float] = (0.0, float(NUM_TRAIN_TIMESTEPS))

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Conditions that velocities are needed under, the first of which is the one that is pushed."""
        own = Branch(self.prompt_scale != 0, self.action_scale != 0)
        without_prompt = [own._replace(takes_prompt=False)] if self.prompt_scale not in (0, 1) else []
        without_action = [own._replace(takes_action=False)] if self.action_scale not in (0, 1) else []
        return (own, *without_prompt, *without_action)

    def combine(self, velocities: Sequence[Tensor], timestep: float) -> Tensor:
        """Compute the guided velocity from that of each branch.

        Args:
            velocities: Velocity under the conditions of each of `branches`.
            timestep: Noise level, in [0, 1000].
        """
        own, *others = velocities
        if not self.interval[0] <= timestep <= self.interval[1]:
            return own
        guided = own
        scales = [scale for scale in (self.prompt_scale, self.action_scale) if scale not in (0, 1)]
        for other, scale in zip(others, scales, strict=True):
            guided = guided + (scale - 1) * (own - other)
        return guided


NO_GUIDANCE = Guidance()

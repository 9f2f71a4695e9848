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
        takes_prompt: True if the prompt is the video's own; the negative one otherwise.
        takes_action: True if the actions are the video's own; there are none otherwise.
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
        return (self._own, *(branch for branch, _ in self._others))

    @property
    def takes_negative_prompt(self) -> bool:
        """True if a velocity is needed under the negative prompt."""
        return not all(branch.takes_prompt for branch in self.branches)

    def combine(self, velocities: Sequence[Tensor], timestep: float) -> Tensor:
        """Compute the guided velocity from that of each branch.

        Args:
            velocities: Velocity under the conditions of each of `branches`.
            timestep: Noise level, in [0, 1000].
        """
        return self.push(velocities) if self.interval[0] <= timestep <= self.interval[1] else velocities[0]

    def push(self, velocities: Sequence[Tensor]) -> Tensor:
        """Compute the guided velocity from that of each branch, whatever the noise level."""
        own, *others = velocities
        guided = own
        for other, (_, scale) in zip(others, self._others, strict=True):
            guided = guided + (scale - 1) * (own - other)
        return guided

    @property
    def _own(self) -> Branch:
        return Branch(self.prompt_scale != 0, self.action_scale != 0)

    @property
    def _others(self) -> list[tuple[Branch, float]]:
        """Conditions that the velocity is pushed away from, with their weights."""
        without_prompt, without_action = self._own._replace(takes_prompt=False), self._own._replace(takes_action=False)
        weighted = [(without_prompt, self.prompt_scale), (without_action, self.action_scale)]
        return [(branch, scale) for branch, scale in weighted if scale not in (0, 1)]


NO_GUIDANCE = Guidance()

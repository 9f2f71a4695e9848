"""Trajectory distillation: the teacher's own Euler steps say where the student should land.

What CausVid (Yin et al. 2024, arXiv:2412.07772, section 4.3) and Self Forcing begin with (regression on ends of the
teacher's paths), but that no path is made in advance: each is followed from a real clip with noise, and thrown away.
"""

from __future__ import annotations

from torch import Tensor

from lightning_action.distillation.landing import LandingDistillation
from lightning_action.distillation.score import LatentClip, Noised


class ActionTrajectoryDistillation(LandingDistillation):
    """Trajectory distillation under actions, as the start of a few-step student.

    A real clip gets noise, block by block at a level of its own. The teacher follows its path from there to the end,
    under the past, the prompt and the actions; where it ends, the student should land in one step. Nothing that is
    learned is its own aim, as it is in consistency distillation; a training step takes a pass of the teacher, without
    gradient, for each level.

    Args:
        args: Arguments of `LandingDistillation`.
        kwargs: Arguments of `LandingDistillation` by their names.
    """

    def _aim(self, clip: LatentClip, noised: Noised, places: Tensor) -> Tensor:
        """Follow the teacher's path to its end: as many passes on all ranks, whatever they drew."""
        last = len(self.levels) - 1
        for _ in range(last):
            places = (places + 1).clamp(max=last)
            noised = self._follow_teacher(clip, noised, places)
        return noised.latents

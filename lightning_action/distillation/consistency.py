"""Causal consistency distillation: an average of the student says where it should land, one step further down.

Consistency distillation is by Song et al. (2023, arXiv:2303.01469, algorithm 2), its guided form for latents by Luo et
al. (2023, arXiv:2310.04378).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lightning_action.distillation.landing import LandingDistillation, landing
from lightning_action.distillation.score import LatentClip, Noised, ScoreNetwork
from lightning_action.distributed.sharding import local_part
from lightning_action.ranges import require_numbers


class ActionConsistencyDistillation(LandingDistillation):
    """Consistency distillation under actions, from the teacher-forced model, as the start of a few-step student.

    A real clip gets noise, block by block at a level of its own. The teacher goes one Euler step down from there, under
    the past, the prompt and the actions. Where the student lands from before the step is drawn to where its average,
    the target, lands from behind it.

    Args:
        args: Arguments of `GenerativeModule`.
        target_decay: Share of the target that each step of the student keeps.
        kwargs: Arguments of `LandingDistillation` by their names.
    """

    target: ScoreNetwork

    def __init__(self, *args: Any, target_decay: float = 0.9, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require_numbers({"target_decay": target_decay}, 0, 1, without_high=True)
        self.target_decay = target_decay

    def _build_beside(self) -> None:
        """Build the target, which starts as the student does."""
        # It sees the actions, as the student does, also where the teacher does not.
        self.target = self._build_score(self._factories, weights_follow=False, sight="causal", blind=False)
        self.target.requires_grad_(False).eval()
        self._move_target(keep=0.0)

    def _aim(self, clip: LatentClip, noised: Noised, places: Tensor) -> Tensor:
        """Let the target land from one Euler step of the teacher further down."""
        nearer = self._follow_teacher(clip, noised, places + 1)
        return landing(nearer, self.target.velocity(clip, nearer))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and let the target follow: here, and not in a hook behind it, so that checkpoints have both."""
        super().optimizer_step(*args, **kwargs)
        self._move_target(self.target_decay)

    @torch.no_grad()
    def _move_target(self, keep: float) -> None:
        student = nn.ModuleList(part for part in (self.generator, self.action_projection) if part is not None)
        for module in self.target.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # which a backward pass does for others
        pairs = zip(self.target.parameters(), student.parameters(), strict=True)
        for mine, its in pairs:
            local_part(mine).lerp_(local_part(its), 1 - keep)

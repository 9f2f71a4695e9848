"""A rollout of a student that goes on from one batch to the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_action.action.schema import ActionSchema
from lightning_action.batch import Batch, after_start
from lightning_action.generation.batch_generator import RolloutStart
from lightning_action.generation.rollout import CausalRollout


@dataclass(frozen=True)
class GoingRollout:
    """A rollout, and what it had with its last batch.

    Args:
        session: Session, whose cache stays as it is while prompts and weights do.
        start: Start of the last chunk.
        last: Last latents, which the next chunk starts from, `[B, F0, C, h, w]`.
        action: Action rows of the last batch, `[B, rows, columns]`; None for none.
        has_action: Samples that have an action, `[B]` bool; None for all.
        num_chunks: Number of chunks so far.
        num_updates: Number of times that the student had changed.
    """

    session: CausalRollout
    start: RolloutStart
    last: Tensor
    action: Tensor | None
    has_action: Tensor | None
    num_chunks: int
    num_updates: int

    def fits(self, start: RolloutStart, batch: Batch) -> bool:
        """Tell whether a batch has as many clips, as large and as long, and actions for the same of them."""
        same_size = len(self.start.text) == len(start.text) and self.start.shape == start.shape
        return same_size and _same(self.action, batch.get("action")) and _same(self.has_action, batch.get("has_action"))

    def next(self, start: RolloutStart, batch: Batch, schema: ActionSchema) -> tuple[RolloutStart, Batch]:
        """Let a batch begin with the last latents, and with the action rows that these were made under."""
        action, rows = batch.get("action"), schema.num_rows(self.last.shape[1])
        if action is not None and self.action is not None and rows:
            batch = {**batch, "action": after_start(self.action[:, -rows:], action, rows)}
        return start._replace(initial=self.last), batch


def _same(before: Tensor | None, now: Tensor | None) -> bool:
    """Tell whether two tensors are of one shape, and equal if they say yes or no; or there are none."""
    if before is None or now is None:
        return before is now
    return before.shape == now.shape and (before.dtype != torch.bool or torch.equal(before, now))

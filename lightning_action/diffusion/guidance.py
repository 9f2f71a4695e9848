"""Action guidance: `v_null + w (v_action - v_null)`."""

from __future__ import annotations

from torch import Tensor


def guide(velocity_action: Tensor, velocity_null: Tensor, scale: float) -> Tensor:
    """Move from the velocity without actions (w = 0) through the one with actions (w = 1) and beyond."""
    return velocity_null + scale * (velocity_action - velocity_null)

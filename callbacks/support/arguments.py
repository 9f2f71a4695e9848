"""Checks of the arguments that callbacks are made with; they raise a ValueError that names the argument."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def check_at_least(minimum: float, **arguments: float | None) -> None:
    """Refuse numbers below a minimum; None is no number to check."""
    for name, value in arguments.items():
        if value is not None and value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_actions(actions: Mapping[str, Sequence[float]]) -> None:
    """Refuse action rows by name that are none, empty, or of several widths."""
    widths = {len(row) for row in actions.values()}
    if len(widths) != 1 or 0 in widths:
        raise ValueError(f"actions must be rows of one width, and at least one, got {actions}")


def check_scales(scales: Sequence[float]) -> None:
    """Refuse factors of actions that are none, or not finite."""
    if not scales or not all(map(math.isfinite, scales)):
        raise ValueError(f"scales must be finite numbers, and at least one, got {scales}")

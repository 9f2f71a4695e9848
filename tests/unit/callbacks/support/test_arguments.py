"""Checks that the callbacks share; their own tests hold their messages."""

import pytest

from lightning_action.callbacks.support.arguments import check_at_least, check_scales


def test_the_argument_out_of_range_is_named() -> None:
    check_at_least(1, steps=1, frames=2, rows=None)
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        check_at_least(1, steps=1, frames=0, rows=None)


def test_scales_are_finite() -> None:
    check_scales([-1.0, 0.0])
    with pytest.raises(ValueError, match="finite numbers"):
        check_scales([1.0, float("nan")])

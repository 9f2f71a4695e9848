"""Numbers that people give, refused where they cannot be meant."""

from __future__ import annotations

import math
from collections.abc import Mapping


def require_numbers(
    values: Mapping[str, object],
    low: float = -math.inf,
    high: float = math.inf,
    *,
    whole: bool = False,
    without_low: bool = False,
    without_high: bool = False,
) -> None:
    """Refuse what is no finite number of a range.

    Args:
        values: Numbers by the names under which they were given.
        low: Least number that is allowed.
        high: Largest number that is allowed.
        whole: Allow integers only.
        without_low: Refuse `low` itself.
        without_high: Refuse `high` itself.

    Raises:
        ValueError: A number is out of range; the message names the first, and what was expected.
    """
    for name, value in values.items():
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if number:
            assert isinstance(value, int | float)
            too_low = value < low or (without_low and value == low)
            too_high = value > high or (without_high and value == high)
            if math.isfinite(value) and not too_low and not too_high:
                continue
        kind = "a whole number" if whole else "a finite number"
        bounds = [f"{'above' if without_low else 'of at least'} {low}"] if low > -math.inf else []
        bounds += [f"{'below' if without_high else 'of at most'} {high}"] if high < math.inf else []
        raise ValueError(f"{name} must be {' '.join([kind, ' and '.join(bounds)]).strip()}, got {value!r}")

"""Action spaces of gymnasium for the rows of an `ActionSchema`, and back from an action to rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_action.action.schema import ActionPart, ActionSchema

if TYPE_CHECKING:
    from gymnasium import Space


def action_space(schema: ActionSchema, num_rows: int | None = None) -> Space[Any]:
    """Describe an action: one row, or `num_rows` of them.

    A single part is a `Box` from its low to its high, a `Discrete`, or a `MultiBinary`. Several continuous parts are
    one `Box`, several discrete ones one `MultiDiscrete`, others a `Dict` by their names. Rows stand before columns.

    Args:
        schema: Meaning of an action row.
        num_rows: Number of rows; None for a single one, which has no axis of its own.

    Raises:
        ValueError: Parts that a `Dict` would hold by their names have the same one.
    """
    from gymnasium import spaces

    kinds = {part.kind for part in schema.parts}
    if len(schema.parts) == 1 or len(kinds) > 1 or kinds == {"multi_hot"}:
        named = {part.name: _space_of([part], num_rows) for part in schema.parts}
        if len(named) < len(schema.parts):
            names = ", ".join(part.name for part in schema.parts)
            raise ValueError(f"actions are a Dict by the names of their parts, which must differ, got {names}")
        return spaces.Dict(named) if len(named) > 1 else named[schema.parts[0].name]
    return _space_of(schema.parts, num_rows)


def action_rows(schema: ActionSchema, action: Any, num_rows: int | None = None) -> np.ndarray:
    """Turn an action of `action_space` into rows `[rows, columns]`, float32; a single one is `[1, columns]`.

    Raises:
        ValueError: The action is not of the size of the space.
    """
    values = [action[part.name] for part in schema.parts] if isinstance(action, dict) else [action]
    widths = schema.part_widths if isinstance(action, dict) else [schema.num_columns]
    rows = num_rows or 1
    columns = []
    for value, width in zip(values, widths, strict=True):
        value = np.asarray(value, dtype=np.float32)
        if value.size != rows * width:
            raise ValueError(f"expected an action of {rows} x {width} values, got one of shape {value.shape}")
        columns.append(value.reshape(rows, width))
    return np.concatenate(columns, axis=1)


def _space_of(parts: list[ActionPart], num_rows: int | None) -> Space[Any]:
    """The space of parts of one kind."""
    from gymnasium import spaces

    lead = () if num_rows is None else (num_rows,)
    kind, size = parts[0].kind, parts[0].size
    if kind == "multi_hot":
        return spaces.MultiBinary((*lead, size) if lead else size)
    if kind == "discrete":
        if len(parts) == 1:
            return spaces.MultiDiscrete(np.full(lead, size)) if lead else spaces.Discrete(size)
        return spaces.MultiDiscrete(np.tile([part.size for part in parts], (*lead, 1)))
    low, high = np.array([bounds for part in parts for bounds in part.bounds], dtype=np.float32).T
    return spaces.Box(np.tile(low, (*lead, 1)), np.tile(high, (*lead, 1)), dtype=np.float32)

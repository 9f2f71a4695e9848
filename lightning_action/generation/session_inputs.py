"""Inputs of a `WorldSession`: what a caller gives, looked at before anything changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from lightning_action.action.schema import ActionSchema
from lightning_action.batch import from_unit_range
from lightning_action.ranges import require_numbers
from lightning_action.seeding import require_seeds

Prompt = str | Sequence[str] | None
# How far pixels may lie outside [0, 1]: resizing overshoots a little.
_PIXEL_TOLERANCE = 0.05


def given_prompts(prompt: Prompt, num_worlds: int) -> list[str]:
    """Take the prompt of all worlds, or one of each; None is the empty one.

    Raises:
        ValueError: The prompts are no texts, or of another number.
    """
    prompts = [prompt or ""] * num_worlds if prompt is None or isinstance(prompt, str) else list(prompt)
    if len(prompts) != num_worlds or not all(isinstance(each, str) for each in prompts):
        raise ValueError(f"expected a prompt, or {num_worlds} of them, got {prompt!r}")
    return prompts


def given_numbers(sample_id: Iterable[Any], num_worlds: int) -> list[int]:
    """Take the number of each world, to which its noise belongs.

    Raises:
        ValueError: The numbers are not whole, out of range, or of another number of worlds.
    """
    try:
        numbers = [index(number) for number in sample_id]
    except TypeError as error:
        raise ValueError(f"sample_id is a whole number for each world, got {sample_id!r}") from error
    if len(numbers) != num_worlds:
        raise ValueError(f"expected sample_id of {num_worlds} worlds, got {numbers}")
    require_seeds(*numbers)
    return numbers


def given_worlds(worlds: Sequence[int] | Tensor, num_worlds: int) -> list[int]:
    """Take some of the worlds by their places.

    Raises:
        ValueError: The list is empty, is a mask, or holds a number that is no world's.
    """
    refusal = f"expected one or more worlds by their numbers from 0 to {num_worlds - 1}, got {worlds!r}"
    try:
        places = [index(world) for world in worlds]
    except TypeError as error:
        raise ValueError(refusal) from error
    # A mask would pass as the numbers 0 and 1.
    is_mask = any(torch.as_tensor(world).dtype == torch.bool for world in worlds)
    if is_mask or not places or not all(0 <= place < num_worlds for place in places):
        raise ValueError(refusal)
    return places


def given_frames(frames: Tensor, num_worlds: int) -> Tensor:
    """Turn frames in [0, 1] to [-1, 1], as they are inside.

    Raises:
        ValueError: The frames are no videos `[num_worlds, T, 3, H, W]`, or outside [0, 1].
    """
    if frames.ndim != 5 or len(frames) != num_worlds or frames.shape[2] != 3 or not frames.is_floating_point():
        raise ValueError(
            f"expected frames of floats [{num_worlds}, T, 3, H, W] in [0, 1], got {frames.dtype} {list(frames.shape)}"
        )
    if frames.numel() and not bool(((frames >= -_PIXEL_TOLERANCE) & (frames <= 1 + _PIXEL_TOLERANCE)).all()):
        raise ValueError(
            f"expected frames in [0, 1], got values from {frames.min().item():g} to {frames.max().item():g}"
        )
    return from_unit_range(frames)


def given_rows(actions: Any, frames: range, schema: ActionSchema, num_worlds: int) -> Tensor | None:
    """Take the action rows of some latent frames; None stays None where there would be some.

    Raises:
        ValueError: The rows are not `[num_worlds, rows, columns]`, those of these frames.
    """
    if actions is None and len(schema.rows_of_frames(frames)):
        return None
    if actions is None:
        return torch.zeros(num_worlds, 0, schema.num_columns)
    rows = _on_host(actions)
    if rows.ndim != 3 or len(rows) != num_worlds:
        raise ValueError(f"expected actions [{num_worlds}, rows, columns], got {list(rows.shape)}")
    schema.encode_frames(rows, frames)
    return rows


def given_row(action: Any, schema: ActionSchema, num_worlds: int) -> Tensor:
    """Take one action of each world, `[B, columns]`, or of all alike, `[columns]`, as rows `[B, 1, columns]`.

    Raises:
        ValueError: The action has another shape, or does not fit the schema.
    """
    row = _on_host(action)
    if row.ndim not in (1, 2) or (row.ndim == 2 and len(row) != num_worlds):
        raise ValueError(
            f"an action is [columns] or [{num_worlds}, columns], with {schema.num_columns} columns, got "
            f"{list(row.shape)}"
        )
    rows = row.expand(num_worlds, -1)[:, None]
    schema.encode_rows(rows)
    return rows


def given_rows_wanted(actions: Any, num_rows: int, schema: ActionSchema, num_worlds: int) -> Tensor:
    """Take all action rows that a block wants, `[B, num_rows, columns]`.

    Raises:
        ValueError: The rows have another shape, or do not fit the schema.
    """
    rows = _on_host(actions)
    if rows.ndim != 3 or tuple(rows.shape[:2]) != (num_worlds, num_rows):
        raise ValueError(
            f"expected actions [{num_worlds}, {num_rows}, {schema.num_columns}], the rows that are missing until the "
            f"next block, got {list(rows.shape)}"
        )
    schema.encode_rows(rows)
    return rows


def given_size(video: Tensor | None, frame_size: tuple[int, int] | None) -> tuple[int, int]:
    """Take the height and width of the worlds, which only one of the two gives.

    Raises:
        ValueError: Both give a size, or it is no whole numbers.
    """
    if video is not None and frame_size is not None:
        raise ValueError(f"first_frames have a size, {list(video.shape[-2:])} (H, W): leave frame_size out")
    height, width = video.shape[-2:] if video is not None else frame_size or (0, 0)
    require_numbers({"height": height, "width": width}, 1, whole=True)
    return height, width


def _on_host(actions: Any) -> Tensor:
    """Bring action rows to the CPU: they are few, and looked at before they are taken."""
    return torch.as_tensor(actions).cpu()

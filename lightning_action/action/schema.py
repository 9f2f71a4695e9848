"""Definition of an action: the columns of its rows, and which rows belong to which latent frame.

A causal video VAE with temporal compression r gives latent frame 0 one pixel frame and every later one r of them, so L
latent frames stand for `T = 1 + r (L - 1)` pixel frames. Three conventions say which action rows those are, here for r
= 4:

| alignment    | rows       | latent frame 0 | latent frame i >= 1                                             |
|--------------|------------|----------------|-----------------------------------------------------------------|
| `transition` | `4 (L-1)`  | no action      | rows `4i-4 ... 4i-1`: row k leads from pixel frame k to k + 1   |
| `state`      | `4 (L-1)+1`| row 0, 4 times | rows `4i-3 ... 4i`: row k is recorded with pixel frame k        |
| `per_latent` | `L`        | row 0          | row i                                                           |

Actions that come s times as often as pixel frames (`rows_per_frame`) are s rows for each of the rows above.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, count
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

# Limit in halves of the range from low to high: with mean and deviation as bounds some values lie outside, but not
# so far.
_FAR_OUTSIDE = 4

Kind = Literal["continuous", "discrete", "multi_hot"]
Alignment = Literal["transition", "state", "per_latent"]
Combine = Literal["concat", "mean", "sum", "last"]


@dataclass(frozen=True)
class ActionPart:
    """Group of neighbouring columns of an action row.

    Args:
        name: Name in messages and plots.
        kind: Kind of the columns: `continuous` (`size` columns), `discrete` (one column of classes from 0 to
            `size - 1`), or `multi_hot` (`size` columns of 0 and 1).
        size: Number of columns, or of classes.
        low: Value of each continuous column that maps to -1; one number serves all.
        high: Value of each continuous column that maps to 1. With mean and deviation, give mean - std and mean + std.
        labels: Label of each column, or of each class, in pictures. Default: `name`, with a number. Labels are no part
            of what an action means: schemas that differ in nothing else are equal.
    """

    name: str = "action"
    kind: Kind = "continuous"
    size: int = 2
    low: float | list[float] = -1.0
    high: float | list[float] = 1.0
    labels: list[str] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _require_one_of(f"the kind of action part {self.name!r}", self.kind, get_args(Kind))
        if self.size < 1:
            raise ValueError(f"action part {self.name!r} needs a size of at least 1, got {self.size}")
        lengths = [len(bound) for bound in (self.low, self.high) if not isinstance(bound, float | int)]
        if any(length != self.size for length in lengths):
            raise ValueError(f"action part {self.name!r} needs one bound or {self.size}, got {self.low}, {self.high}")
        low, high = self._bounds(torch.float32)
        if not bool((torch.isfinite(high - low) & (low < high)).all()):
            raise ValueError(
                f"action part {self.name!r} needs low < high in every column, finite and apart in float32, got "
                f"{self.low}, {self.high}"
            )
        if self.labels is not None and not len(self.labels) == len(set(self.labels)) == self.size:
            raise ValueError(f"action part {self.name!r} needs {self.size} different labels, got {self.labels}")

    def to_dict(self) -> dict[str, Any]:
        """Give plain lists, numbers and strings; labels only where there are some."""
        return {name: value for name, value in asdict(self).items() if name != "labels" or value is not None}

    @property
    def num_columns(self) -> int:
        """Columns of the raw row."""
        return 1 if self.kind == "discrete" else self.size

    @property
    def column_names(self) -> list[str]:
        """Name of each column: that of the part, with a number where it has several."""
        count = self.num_columns
        return [self.name] if count == 1 else [f"{self.name}_{column}" for column in range(count)]

    @property
    def bounds(self) -> list[tuple[float, float]]:
        """Lowest and highest value of each column."""
        if self.kind != "continuous":
            return [(0.0, float(self.size - 1 if self.kind == "discrete" else 1))] * self.num_columns
        low, high = self._bounds(torch.float64)
        return list(zip(low.tolist(), high.tolist(), strict=True))

    @property
    def rest(self) -> list[float]:
        """Value of each column where nothing is done: 0 if that is within its bounds, else the middle."""
        return [0.0 if low <= 0 <= high else (low + high) / 2 for low, high in self.bounds]

    def probes(self, strength: float) -> Iterator[tuple[str, int, float]]:
        """Yield label, column and value of each class, each switch, and each number above and below rest.

        Args:
            strength: Share of the way from rest to a bound that a number goes.
        """
        if self.kind == "discrete":
            names = self.labels or [f"{self.name} {value}" for value in range(self.size)]
            yield from ((label, 0, float(value)) for value, label in enumerate(names))
            return
        names = self.labels or self.column_names
        if self.kind == "multi_hot":
            yield from ((label, column, 1.0) for column, label in enumerate(names))
        else:
            for column, (label, rest, (low, high)) in enumerate(zip(names, self.rest, self.bounds, strict=True)):
                for sign, end in (("+", high), ("-", low)):
                    if end != rest:
                        yield sign + label, column, rest + strength * (end - rest)

    def encode(self, raw: Tensor) -> Tensor:
        """Encode raw columns `[..., num_columns]` as `[..., size]`, about [-1, 1] or one-hot.

        Raises:
            ValueError: A class or switch is outside its range.
        """
        if self.kind == "continuous":
            low, high = (bound.to(raw.device) for bound in self._bounds(raw.dtype))
            encoded = 2 * (raw - low) / (high - low) - 1
            if bool((encoded.abs() > _FAR_OUTSIDE).any()):
                warnings.warn(
                    f"action part {self.name!r} goes from {raw.min().item():g} to {raw.max().item():g}, far outside "
                    f"[low, high] = [{self.low}, {self.high}]: check its units",
                    stacklevel=2,
                )
            return encoded
        upper = self.size - 1 if self.kind == "discrete" else 1
        if bool(((raw < 0) | (raw > upper) | (raw != raw.round())).any()):
            raise ValueError(
                f"{self.kind} action part {self.name!r} takes whole numbers from 0 to {upper}, got values from "
                f"{raw.min().item():g} to {raw.max().item():g}"
            )
        if self.kind == "multi_hot":
            return raw
        return F.one_hot(raw.squeeze(-1).long(), self.size).to(raw.dtype)

    def _bounds(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        bounds = tuple(torch.as_tensor(bound, dtype=dtype).expand(self.size) for bound in (self.low, self.high))
        return bounds[0], bounds[1]


@dataclass(frozen=True)
class ActionSchema:
    """The map from action rows to one vector for each latent frame.

    Args:
        parts: Parts of a row, in the order of its columns.
        alignment: Rule that says which rows belong to which latent frame: `transition` (row k leads from pixel frame k
            to k + 1), `state` (row k is recorded with pixel frame k), or `per_latent`.
        combine: Way in which the rows of a latent frame become one vector: side by side, mean, sum, or the last one.
        temporal_compression_ratio: Number r of pixel frames of one latent frame.
        rows_per_frame: Number s of action rows of one pixel frame: 3 for actions at 30 Hz and a video of 10 frames a
            second.
    """

    parts: list[ActionPart] = field(default_factory=lambda: [ActionPart()])
    alignment: Alignment = "transition"
    combine: Combine = "concat"
    temporal_compression_ratio: int = 4
    rows_per_frame: int = 1

    def __post_init__(self) -> None:
        _require_one_of("alignment", self.alignment, get_args(Alignment))
        _require_one_of("combine", self.combine, get_args(Combine))
        if not self.parts or self.temporal_compression_ratio < 1:
            raise ValueError(
                "expected at least one action part and temporal_compression_ratio >= 1, got "
                f"{len(self.parts)} parts and {self.temporal_compression_ratio}"
            )
        if self.rows_per_frame < 1 or (self.rows_per_frame > 1 and self.alignment == "per_latent"):
            raise ValueError(
                "expected rows_per_frame >= 1, and 1 with alignment per_latent, whose rows do not belong to pixel "
                f"frames, got {self.rows_per_frame}"
            )

    @property
    def num_columns(self) -> int:
        """Width of a raw action row."""
        return sum(part.num_columns for part in self.parts)

    @property
    def column_names(self) -> list[str]:
        """Name of each column of a raw action row."""
        return [name for part in self.parts for name in part.column_names]

    @property
    def part_widths(self) -> list[int]:
        """Width of each part in a raw action row."""
        return [part.num_columns for part in self.parts]

    @property
    def action_dim(self) -> int:
        """Width of a latent frame's action vector: what the action projection takes."""
        width = sum(part.size for part in self.parts)
        return width * self._rows_per_latent if self.combine == "concat" else width

    @property
    def can_be_scaled(self) -> bool:
        """True if multiples of a row are weaker and stronger actions: all columns are numbers, and 0 is their rest."""
        return all(part.kind == "continuous" and not any(part.rest) for part in self.parts)

    def probe_rows(self, strength: float) -> dict[str, list[float]]:
        """List rows that do one thing each, by label: those of `ActionPart.probes`, with all other columns at rest.

        A label that stands there already, as that of two columns of one name, is followed by a number.
        """
        rest = [value for part in self.parts for value in part.rest]
        rows: dict[str, list[float]] = {}
        first = 0
        for part in self.parts:
            for label, column, value in part.probes(strength):
                numbered = (f"{label} ({number})" for number in count(2))
                name = next(each for each in chain([label], numbered) if each not in rows)
                rows[name] = [*rest[: first + column], value, *rest[first + column + 1 :]]
            first += part.num_columns
        return rows

    @property
    def _rows_per_latent(self) -> int:
        return 1 if self.alignment == "per_latent" else self.temporal_compression_ratio * self.rows_per_frame

    def num_rows(self, num_latents: int) -> int:
        """Number of action rows that `num_latents` latent frames take."""
        return self.rows_of(num_latents - 1).stop

    def rows_of(self, latent: int) -> range:
        """Return the action rows of a latent frame, as in the table above; none for the first frame of `transition`."""
        if self.alignment == "per_latent":
            return range(latent, latent + 1)
        is_state = self.alignment == "state"
        if latent == 0:
            return range(int(is_state))
        rows = self._rows_per_latent
        return range(rows * (latent - 1) + is_state, rows * latent + is_state)

    def rows_of_frames(self, frames: range) -> range:
        """Return the action rows of some latent frames, one after the other."""
        if not len(frames):
            return range(0)
        return range(self.rows_of(frames[0]).start, self.rows_of(frames[-1]).stop)

    def num_latents(self, num_rows: int) -> int:
        """Number of latent frames that `num_rows` action rows are for.

        Raises:
            ValueError: The rows are for no whole number of latent frames; the message shows the rules.
        """
        if self.alignment == "per_latent":
            latents, rest = num_rows, 0
        else:
            latents, rest = divmod(num_rows - (self.alignment == "state"), self._rows_per_latent)
            latents += 1
        if rest or latents < 1:
            raise ValueError(f"{num_rows} action rows fit no whole number of latent frames. {self._rules()}")
        return latents

    def encode(self, actions: Tensor, num_latents: int) -> tuple[Tensor, Tensor]:
        """Encode action rows as one vector for each latent frame.

        Args:
            actions: Action rows as they are, `[B, rows, num_columns]`; whole numbers may come as integers.
            num_latents: Number L of latent frames of the video they belong to.

        Returns:
            Vectors `[B, L, action_dim]`, and whether a frame has an action at all, `[B, L]` bool.

        Raises:
            ValueError: The width or the number of rows does not fit, or a value is not finite.
        """
        return self.encode_frames(actions, range(num_latents))

    def encode_frames(self, actions: Tensor, frames: range) -> tuple[Tensor, Tensor]:
        """Encode the action rows of some latent frames of a video, those of `rows_of_frames`; otherwise as `encode`."""
        self._require_shape(actions, frames)
        present = torch.ones(actions.shape[0], len(frames), dtype=torch.bool, device=actions.device)
        if self.alignment == "transition" and frames.start == 0:
            present[:, :1] = False
        return self._combine(self._group(self.encode_rows(actions), frames)), present

    def encode_rows(self, rows: Tensor) -> Tensor:
        """Encode rows one by one, `[B, rows, num_columns]` as `[B, rows, width]`, not yet by latent frame.

        Raises:
            ValueError: The width does not fit, or a value is not finite or outside what its part takes.
        """
        if rows.ndim != 3 or rows.shape[-1] != self.num_columns:
            raise ValueError(
                f"action rows must have {self.num_columns} columns of {', '.join(part.name for part in self.parts)}, "
                f"[B, rows, {self.num_columns}], got {list(rows.shape)}"
            )
        self._require_finite(rows)
        rows = rows if rows.is_floating_point() else rows.float()
        columns = rows.split(self.part_widths, dim=-1)
        return torch.cat([part.encode(raw) for part, raw in zip(self.parts, columns, strict=True)], dim=-1)

    def check(self, actions: Tensor, num_latents: int) -> None:
        """Refuse rows that do not belong to `num_latents` latent frames.

        Raises:
            ValueError: The rows do not belong to them; the message has both shapes and the three alignment rules.
        """
        self._require_shape(actions, range(num_latents))
        self._require_finite(actions)

    def to_dict(self) -> dict[str, Any]:
        """Give plain lists, numbers and strings, for a checkpoint."""
        return {**asdict(self), "parts": [part.to_dict() for part in self.parts]}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ActionSchema:
        """The schema that `to_dict` wrote."""
        return ActionSchema(**{**values, "parts": [ActionPart(**part) for part in values["parts"]]})

    def _require_shape(self, actions: Tensor, frames: range) -> None:
        expected = (len(self.rows_of_frames(frames)), self.num_columns)
        if not frames or actions.ndim != 3 or tuple(actions.shape[1:]) != expected:
            from_where = f" from {frames.start} on" if frames.start else ""
            raise ValueError(
                f"actions for {len(frames)} latent frames{from_where} must be [B, {expected[0]}, {expected[1]}] (rows, "
                f"columns of {', '.join(part.name for part in self.parts)}), got {list(actions.shape)}. "
                f"{self._rules(None if frames.start else len(frames))}"
            )

    @staticmethod
    def _require_finite(actions: Tensor) -> None:
        if not bool(torch.isfinite(actions).all()):
            bad = (~torch.isfinite(actions)).nonzero()[0].tolist()
            raise ValueError(f"actions hold a value that is not finite, first at [sample, row, column] = {bad}")

    def _group(self, encoded: Tensor, frames: range) -> Tensor:
        """Group `[B, rows, width]` as `[B, L, rows of a latent frame, width]`."""
        if self.alignment == "per_latent":
            return encoded[:, :, None]
        rows = self._rows_per_latent
        if frames.start == 0 and self.alignment == "state":
            encoded = torch.cat([encoded[:, :1].expand(-1, rows - 1, -1), encoded], dim=1)
        elif frames.start == 0:
            encoded = F.pad(encoded, (0, 0, rows, 0))
        return encoded.unflatten(1, (len(frames), rows))

    def _combine(self, grouped: Tensor) -> Tensor:
        if self.combine == "concat":
            return grouped.flatten(2)
        if self.combine == "mean":
            return grouped.mean(dim=2)
        if self.combine == "sum":
            return grouped.sum(dim=2)
        return grouped[:, :, -1]

    def _rules(self, num_latents: int | None = None) -> str:
        ratio = self.temporal_compression_ratio * self.rows_per_frame
        if num_latents is None:
            counts = ("L", f"{ratio} (L - 1)", f"{ratio} (L - 1) + 1", "L")
        else:
            steps = ratio * (num_latents - 1)
            counts = (str(num_latents), str(steps), str(steps + 1), str(num_latents))
        return (
            "Rows for {} latent frames: transition {}, state {}, per_latent {}; ".format(*counts)
            + f"this schema says {self.alignment}"
        )


def _require_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}, got {value!r}")

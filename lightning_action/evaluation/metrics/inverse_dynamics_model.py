"""A small network that reads actions off pixels, where nobody knows the state."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_action.action.schema import ActionPart, ActionSchema, Kind
from lightning_action.atomic import creating_folder, write_json
from lightning_action.weights.safetensors_files import read_safetensors, write_safetensors

WEIGHTS, DESCRIPTION = "model.safetensors", "inverse_dynamics.json"
# Larger frames are made smaller, so that a fit takes minutes on two cores.
MAX_SIDE = 96
# Frames around each step from frame k to k + 1, counted from k: a pair alone does not tell a push from inertia.
_AROUND = (-1, 0, 1, 2)
# Changes between frames are small beside the frames.
_CHANGE_SCALE = 4.0
_READ_AT_A_TIME = 256
_GRID, _HIDDEN = 4, 192
_GROUPS = 8


@dataclass(frozen=True)
class Column:
    """A column of an action row, and what training actions are in it.

    Args:
        name: Name in figures and messages.
        kind: Kind of its values, as in `ActionPart`.
        num_classes: Number of classes; values of a continuous column are in three, the thirds of the training actions.
        mean: Mean of the training actions.
        std: Standard deviation of the training actions.
        thirds: Values between the thirds of the training actions.
    """

    name: str
    kind: Kind
    num_classes: int
    mean: float = 0.0
    std: float = 1.0
    thirds: tuple[float, float] = (0.0, 0.0)

    @property
    def num_outputs(self) -> int:
        """Numbers that a network gives for it: a value, the logit of a switch, or the logits of the classes."""
        return self.num_classes if self.kind == "discrete" else 1

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of outputs `[N, num_outputs]` for action values `[N]`."""
        if self.kind == "discrete":
            return F.cross_entropy(output, target.long())
        if self.kind == "multi_hot":
            return F.binary_cross_entropy_with_logits(output[:, 0], target)
        return F.mse_loss(output[:, 0], (target - self.mean) / self.std)

    def value(self, output: Tensor) -> Tensor:
        """Turn outputs `[..., num_outputs]` into action values `[...]`."""
        if self.kind == "discrete":
            return output.argmax(dim=-1).to(output)
        if self.kind == "multi_hot":
            return (output[..., 0] > 0).to(output)
        return output[..., 0] * self.std + self.mean

    def classes(self, values: Tensor) -> Tensor:
        """Sort action values into classes, whole numbers of the same shape."""
        if self.kind != "continuous":
            return values.long()
        low, high = self.thirds
        return (values > low).long() + (values > high).long()

    def features(self, values: Tensor) -> Tensor:
        """Write action values `[...]` as numbers that can be correlated, `[..., num_outputs]`: classes are one-hot."""
        if self.kind == "discrete":
            return F.one_hot(values.long(), self.num_classes).to(values)
        return values[..., None]


class InverseDynamicsModel(nn.Module):
    """Reads the action rows between two frames off the four frames around them.

    A convolutional network with group normalisation (Wu and He 2018, arXiv:1803.08494) of about half a million
    parameters, which reads frames of any size of 16 pixels or more; those whose longer side exceeds 96 pixels are made
    that small. As in VPT (Baker et al. 2022, arXiv:2206.11795) it also looks at what comes after the action.

    Args:
        schema: Meaning of the action rows.
        columns: Columns of a row, see `columns_of`.
        channels: Numbers of channels of its layers, each of which halves the size.
    """

    def __init__(self, schema: ActionSchema, columns: Sequence[Column], channels: Sequence[int] = (32, 64, 96)) -> None:
        super().__init__()
        self.schema, self.columns, self.channels = schema, tuple(columns), tuple(channels)
        self.rows_per_step = schema.rows_per_frame
        sizes = [3 * len(_AROUND), *channels]
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False)):
            kernel = 5 if number == 0 else 3
            layers += [nn.Conv2d(before, after, kernel, 2, kernel // 2), nn.GroupNorm(_GROUPS, after), nn.SiLU()]
        self.encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(_GRID), nn.Flatten())
        self._widths = [column.num_outputs for column in self.columns]
        width = self.rows_per_step * sum(self._widths)
        self.head = nn.Sequential(nn.Linear(channels[-1] * _GRID**2, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, width))

    @property
    def num_classes(self) -> list[int]:
        """Number of classes of each column."""
        return [column.num_classes for column in self.columns]

    def forward(self, windows: Tensor) -> Tensor:
        """Read windows `[N, 4, 3, h, w]`, see `windows`: outputs `[N, rows of a step, outputs of all columns]`."""
        changes = _CHANGE_SCALE * windows.diff(dim=1)
        seen = torch.cat([windows[:, -_AROUND[0]], changes.flatten(1, 2)], dim=1)
        output: Tensor = self.head(self.encoder(seen))
        return output.unflatten(1, (self.rows_per_step, -1))

    def loss(self, windows: Tensor, rows: Tensor) -> Tensor:
        """Compute the mean loss over columns: squared error of normalised values, cross-entropy of classes.

        Args:
            windows: Frames around steps, `[N, 4, 3, h, w]`.
            rows: Action rows of the frames, `[N, rows of a step, columns]`.
        """
        outputs = self(windows).flatten(0, 1).split(self._widths, dim=-1)
        targets = rows.flatten(0, 1).unbind(-1)
        losses = [column.loss(*pair) for column, *pair in zip(self.columns, outputs, targets, strict=True)]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def read(self, video: Tensor) -> Tensor:
        """Read the action rows off videos.

        Args:
            video: Videos, `[B, T, 3, H, W]` in [0, 1].

        Returns:
            Rows `[B, rows, columns]`, those of `rows_between_frames`.
        """
        windows = self.windows(video.float()).flatten(0, 1)
        # The precision that a test generates in is no reason to read less exactly.
        with torch.autocast(video.device.type, enabled=False):
            outputs = torch.cat([self(part) for part in windows.split(_READ_AT_A_TIME)])
        parts = outputs.split(self._widths, dim=-1)
        values = [column.value(part) for column, part in zip(self.columns, parts, strict=True)]
        return torch.stack(values, dim=-1).unflatten(0, (len(video), video.shape[1] - 1)).flatten(1, 2)

    def windows(self, video: Tensor) -> Tensor:
        """Gather the frames around each step of videos `[B, T, 3, H, W]`: `[B, T - 1, 4, 3, h, w]`; the ends repeat."""
        count = video.shape[1]
        steps = torch.arange(count - 1, device=video.device)[:, None]
        around = (steps + torch.tensor(_AROUND, device=video.device)).clamp(0, count - 1)
        return shrunk(video)[:, around]

    def require_reads(self, schema: ActionSchema) -> None:
        """Refuse actions that mean something else than those it was trained on.

        Raises:
            ValueError: The model was trained on actions that mean something else.
        """
        own, wanted = _meaning(self.schema), _meaning(schema)
        if own != wanted:
            raise ValueError(
                f"the inverse-dynamics model reads the actions {own}, this model takes {wanted}: train one on the data "
                "of this model with `python main.py inverse-dynamics`"
            )


def shrunk(video: Tensor, max_side: int = MAX_SIDE) -> Tensor:
    """Make frames `[B, T, 3, H, W]` smaller until no side is longer than `max_side`; small ones stay."""
    height, width = video.shape[-2:]
    scale = max_side / max(height, width)
    if scale >= 1:
        return video
    size = [max(1, round(side * scale)) for side in (height, width)]
    small = F.interpolate(video.flatten(0, 1), size=size, mode="bilinear", antialias=True, align_corners=False)
    return small.unflatten(0, video.shape[:2])


def rows_between_frames(action: Tensor, schema: ActionSchema) -> Tensor:
    """Take the action rows that lead from each pixel frame to the next.

    Args:
        action: Action rows `[B, rows, columns]` of L latent frames, as the schema says.
        schema: Meaning of the rows. With `state`, row k leads to frame k, and that of frame 0 is left out; with
            `per_latent`, a row leads to each pixel frame of its latent frame.

    Returns:
        Rows `[B, s (T - 1), columns]`, with T the number of pixel frames and s the rows of one.
    """
    if schema.alignment == "transition":
        return action
    later = action[:, 1:]
    return later if schema.alignment == "state" else later.repeat_interleave(schema.temporal_compression_ratio, dim=1)


def classes_of(columns: Sequence[Column], rows: Tensor) -> Tensor:
    """Sort action rows `[..., columns]` into classes, column by column."""
    pairs = zip(columns, rows.unbind(-1), strict=True)
    return torch.stack([column.classes(values) for column, values in pairs], dim=-1)


def columns_of(schema: ActionSchema, rows: Tensor, names: Sequence[str] = ()) -> list[Column]:
    """Describe the columns of an action row.

    Args:
        schema: Meaning of the rows.
        rows: Training actions, `[n, columns]`.
        names: Names of the columns; without any, they have those of their parts, with numbers.
    """
    owners = [(part, name) for part in schema.parts for name in part.column_names]
    given = names or [name for _, name in owners]
    parts = [part for part, _ in owners]
    return [_column(*each) for each in zip(parts, given, rows.double().T, strict=True)]


def _column(part: ActionPart, name: str, values: Tensor) -> Column:
    if part.kind != "continuous":
        return Column(name, part.kind, part.size if part.kind == "discrete" else 2)
    low, high = values.quantile(torch.tensor([1 / 3, 2 / 3], dtype=values.dtype)).tolist()
    spread = values.std(correction=0).item()
    return Column(name, part.kind, 3, values.mean().item(), spread if spread > 0 else 1.0, (low, high))


def _meaning(schema: ActionSchema) -> str:
    parts = ", ".join(f"{part.name} ({part.kind}, {part.size})" for part in schema.parts)
    return f"{parts}; {schema.alignment}, {schema.rows_per_frame} rows a frame"


def save_inverse_dynamics(
    folder: Path, model: InverseDynamicsModel, held_out: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Write a model, with what it can do, as a folder that is whole or not there.

    Args:
        folder: Folder that is made.
        model: Trained model.
        held_out: Figures of the model on held-out real frames.
        overwrite: True replaces a folder that is there.

    Raises:
        FileExistsError: The folder is there, and is not to be replaced.
    """
    description = {
        "schema": model.schema.to_dict(),
        "columns": [asdict(column) for column in model.columns],
        "channels": list(model.channels),
        "held_out": held_out,
    }
    with creating_folder(folder, overwrite) as temporary:
        write_safetensors(temporary / WEIGHTS, model.state_dict(), {})
        write_json(temporary / DESCRIPTION, description)


def load_inverse_dynamics(folder: str | Path) -> InverseDynamicsModel:
    """Read a model that `save_inverse_dynamics` wrote.

    Raises:
        FileNotFoundError: The folder or a file in it is missing.
        ValueError: Files are broken, or belong to different models.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"no inverse-dynamics model at {folder}: `python main.py inverse-dynamics` makes one")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        columns = [Column(**{**column, "thirds": tuple(column["thirds"])}) for column in told["columns"]]
        model = InverseDynamicsModel(ActionSchema.from_dict(told["schema"]), columns, told["channels"])
        model.load_state_dict(read_safetensors(Path(folder) / WEIGHTS))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{folder} is no inverse-dynamics model ({problem}): make it again") from error
    return model.eval()

"""The actions that a caller of the pipeline hands in, checked and turned into modulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_action.action.projection import (
    ActionModulationProjection,
    SummedModulation,
    by_condition,
    null_where_absent,
)

ActionInputs = Mapping[str, Any]
Action = Tensor | Mapping[str, Tensor] | list[Tensor] | tuple[Tensor, ...]

_SHAPES = {
    "action_features": {2: "[B, A]", 3: "[B, F, A]"},
    "action_modulation": {4: "[B, F, 6, D]", 5: "[B, F, num_layers, 6, D]"},
}
_PRESENT = "action_present"


@dataclass(frozen=True)
class ActionToModulation:
    """What a generator is told about some frames of a batch, from features, or from modulation that is ready.

    Args:
        projection: features to modulation.
        scale: multiplies what the projection gives.
        num_layers: of the generator.
        dim: width D of the generator.
    """

    projection: ActionModulationProjection | SummedModulation
    scale: float
    num_layers: int
    dim: int

    def __call__(self, action: Action, batch_size: int, num_frames: int) -> Tensor:
        """Modulation of `num_frames` frames, `[B, F, 6, D]` or `[B, F, num_layers, 6, D]`.

        Args:
            action: features `[B, A]` or `[B, F, A]`, for `SummedModulation` a dict or list of them by condition; or
                modulation.
            batch_size: B.
            num_frames: F; features `[B, A]` are the same for all of them.

        Raises:
            ValueError: the action has another shape.
        """
        weight = next(self.projection.parameters())
        action = _named(action)
        if isinstance(action, Tensor) and action.ndim > 3:
            modulation = action.to(weight)
        else:
            modulation = self._project(_every_frame(action, num_frames, weight))
        expected = [[batch_size, num_frames, *layers, 6, self.dim] for layers in ([], [self.num_layers])]
        if list(modulation.shape) not in expected:
            raise ValueError(
                f"expected actions for a batch of {batch_size} and {num_frames} latent frames, features [B, A] or "
                f"[B, F, A], or modulation {expected[0]} or {expected[1]}; got modulation {list(modulation.shape)}"
            )
        return modulation

    def whole_video(self, inputs: ActionInputs, batch_size: int, num_frames: int, num_initial: int) -> Tensor:
        """Modulation of a video whose first `num_initial` frames are known, from the `action_inputs` of a call.

        Raises:
            ValueError: a key is unknown or missing, or a value has another shape or is not finite.
        """
        action, present = _read(inputs)
        tensors = [*action.values()] if isinstance(action, Mapping) else [action]
        lengths = {tensor.shape[1] for tensor in tensors if tensor.ndim > 2}
        lengths |= set() if present is None else {present.shape[1]}
        length = max(lengths, default=num_frames)
        if len(lengths) > 1 or length not in (num_frames, num_frames - num_initial):
            raise ValueError(
                f"action_inputs are for {' and '.join(map(str, sorted(lengths)))} latent frames: expected "
                f"{num_frames}, one for each of the video, or {num_frames - num_initial}, one for each generated"
            )
        modulation = self(action, batch_size, length)
        if present is not None:
            if len(present) != batch_size:
                raise ValueError(f"{_PRESENT} is for a batch of {len(present)}, the noise for one of {batch_size}")
            modulation = null_where_absent(modulation, present.to(modulation.device))
        nothing = modulation.new_zeros(batch_size, num_frames - length, *modulation.shape[2:])
        return torch.cat([nothing, modulation], dim=1)

    def _project(self, features: Tensor | Mapping[str, Tensor]) -> Tensor:
        if isinstance(features, Mapping) != isinstance(self.projection, SummedModulation):
            raise ValueError(
                "expected a dict or list of features by condition for SummedModulation, one tensor of features for "
                f"another projection; got {type(features).__name__} for {type(self.projection).__name__}"
            )
        return self.projection(features) * self.scale


def _named(action: Action) -> Tensor | Mapping[str, Tensor]:
    return by_condition(action) if isinstance(action, list | tuple) else action


def _every_frame(
    features: Tensor | Mapping[str, Tensor], num_frames: int, like: Tensor
) -> Tensor | Mapping[str, Tensor]:
    def expanded(values: Tensor) -> Tensor:
        return (values[:, None].expand(-1, num_frames, -1) if values.ndim == 2 else values).to(like)

    if isinstance(features, Mapping):
        return {name: expanded(values) for name, values in features.items()}
    return expanded(features)


def _read(inputs: ActionInputs) -> tuple[Tensor | Mapping[str, Tensor], Tensor | None]:
    """The one kind of action there is, and which frames have it."""
    kinds = [kind for kind in _SHAPES if kind in inputs]
    if len(kinds) != 1 or inputs.keys() - {*_SHAPES, _PRESENT}:
        raise ValueError(
            f"action_inputs hold either {' or '.join(_SHAPES)}, and {_PRESENT} where some frames have no action; got "
            f"{', '.join(map(str, inputs)) or 'nothing'} (other keys need a process_action that reads them)"
        )
    action, present = _named(inputs[kinds[0]]), inputs.get(_PRESENT)
    for values in action.values() if isinstance(action, Mapping) else [action]:
        _check(kinds[0], values)
    if present is not None and (present.ndim != 2 or present.dtype != torch.bool):
        raise ValueError(f"{_PRESENT} must be bool [B, F], got {present.dtype} {list(present.shape)}")
    return action, present


def _check(kind: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor) or tensor.ndim not in _SHAPES[kind]:
        found = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{kind} must be {' or '.join(_SHAPES[kind].values())}, got {found}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{kind} hold NaN or infinity")

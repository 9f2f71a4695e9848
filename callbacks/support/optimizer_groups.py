"""Changes that `FreezeBackboneFirst` makes to optimizers: fresh state, and a learning rate around a step."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

# The entries of an optimizer's state that such a step does change, and their value before the first step.
_INITIAL_STATE = {"step": 0.0, "mu_product": 1.0}


class BackboneGroup:
    """One parameter group of an optimizer, found by its index: loading a checkpoint replaces the group itself."""

    def __init__(self, optimizer: Optimizer, index: int) -> None:
        self.optimizer = optimizer
        self.index = index
        self._scheduled: float | Tensor | None = None
        self._handles: list[RemovableHandle] = []

    @property
    def options(self) -> dict[str, Any]:
        return self.optimizer.param_groups[self.index]

    def replace_learning_rate(self, learning_rate: Callable[[dict[str, Any]], float | Tensor]) -> None:
        """Give the group another learning rate during each step, and only then: schedulers never see it.

        Raises:
            MisconfigurationException: The optimizer calls no hooks around its steps.
        """
        if not calls_hooks(self.optimizer):
            raise MisconfigurationException(
                f"{type(self.optimizer).__name__} calls no hooks around its steps (it does not call the __init__ of "
                "torch.optim.Optimizer), so that FreezeBackboneFirst cannot warm up or replace its learning rate: "
                "leave out warmup_steps and learning_rate."
            )

        def before_step(*_: Any) -> None:
            self._put_back()
            self._scheduled = self.options["lr"]
            self.options["lr"] = learning_rate(self.options)

        self._handles = [
            self.optimizer.register_step_pre_hook(before_step),
            self.optimizer.register_step_post_hook(lambda *_: self._put_back()),
        ]

    def restore_learning_rate(self) -> None:
        """Undo `replace_learning_rate`, also after a step that failed half-way."""
        self._put_back()
        for handle in self._handles:
            handle.remove()

    def _put_back(self) -> None:
        if self._scheduled is not None:
            self.options["lr"], self._scheduled = self._scheduled, None


def calls_hooks(optimizer: Optimizer) -> bool:
    """Tell whether torch has prepared the optimizer to call step hooks, unlike some that wrap another."""
    # The public methods that register hooks are there in any case, and fail without it.
    return hasattr(optimizer, "_optimizer_step_post_hooks")


@isolate_rng()
@torch.no_grad()
def materialize_state(optimizer: Optimizer, must_have_state: bool) -> None:
    """Create the state that the optimizer would create at its first step, for all its parameters, and move none.

    Checkpoints of sharded parameters can only be restored into an optimizer with the same entries, and torch creates
    what is missing in all or in none. An optimizer whose later steps would show that this was done is left alone.

    Raises:
        MisconfigurationException: The optimizer must have state, as its parameters are sharded, and would have to be
            left alone.
    """
    groups = optimizer.param_groups
    fresh = [[p for p in group["params"] if p.requires_grad and p not in optimizer.state] for group in groups]
    if not any(fresh):
        return
    # A copy of one without hooks would bring them to its class, whose instances have none to call.
    if calls_hooks(optimizer) and _leaves_no_trace(optimizer):
        optimizer.state.update(_initial_state(optimizer, fresh))
    elif must_have_state:
        raise MisconfigurationException(
            f"FreezeBackboneFirst cannot prepare the state of {type(optimizer).__name__} for a backbone that is "
            "sharded and trains later: its steps would not be those of an optimizer that was not prepared. Use "
            "another one, such as torch.optim.AdamW, or a strategy that does not shard."
        )


def _leaves_no_trace(optimizer: Optimizer) -> bool:
    """Tell whether a prepared optimizer takes the same steps, to the bit, as a new one, by trying small weights."""
    try:
        prepared, new = (_try_steps(optimizer, prepares) for prepares in (True, False))
        return all(map(torch.equal, prepared, new))
    except Exception:
        # Anything may keep it from being tried: hyperparameters in attributes, no step before train().
        return False


def _try_steps(optimizer: Optimizer, prepares: bool) -> list[Tensor]:
    """Weights and state of a twin of the optimizer after three steps of a small weight for each of its own."""
    trained = [[p for p in group["params"] if p.requires_grad] for group in optimizer.param_groups]
    weights = [[_small_like(parameter) for parameter in group] for group in trained]
    twin = _twin(optimizer, weights)
    if prepares:
        twin.state.update(_initial_state(optimizer, weights))
    everything = [weight for group in weights for weight in group]
    for step in range(3):
        for weight in everything:
            weight.grad = weight.detach().cos() + step
        twin.step()
    state = [value for weight in everything for _, value in sorted(twin.state[weight].items())]
    return [*everything, *map(torch.as_tensor, state)]


def _initial_state(optimizer: Optimizer, parameters: list[list[nn.Parameter]]) -> dict[Tensor, dict[str, Any]]:
    """State that a step with zero gradients, zero learning rate and no decay leaves in a twin of the optimizer."""
    twin = _twin(optimizer, parameters)
    for group in twin.param_groups:
        group.update({key: 0.0 for key in ("lr", "weight_decay") if key in group})
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    twin.step()
    state: dict[Tensor, dict[str, Any]] = {p: twin.state[p] for group in parameters for p in group}
    for parameter, entries in state.items():
        parameter.grad = None
        for key in entries.keys() & _INITIAL_STATE.keys():
            value, initial = entries[key], _INITIAL_STATE[key]
            entries[key] = value.fill_(initial) if isinstance(value, Tensor) else type(value)(initial)
    return state


def _twin(optimizer: Optimizer, parameters: list[list[nn.Parameter]]) -> Optimizer:
    """A new optimizer with the same options and other parameters, without the hooks."""
    twin = copy.copy(optimizer)
    twin.state = defaultdict(dict)
    pairs = zip(optimizer.param_groups, parameters, strict=True)
    twin.param_groups = [{**group, "params": params} for group, params in pairs]
    return twin


def _small_like(parameter: nn.Parameter) -> nn.Parameter:
    """A whole parameter with two values along each dimension of another."""
    values = torch.linspace(-1, 1, 2**parameter.ndim, device=parameter.device).reshape((2,) * parameter.ndim)
    return nn.Parameter(values.to(parameter.dtype))

"""What `FreezeBackboneFirst` does to optimizers: groups, fresh state, and a learning rate around a step."""

from collections.abc import Callable, Iterable
from itertools import compress
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import ASGD, LBFGS, Optimizer, Rprop, SparseAdam
from torch.utils.hooks import RemovableHandle

# What a step with zero gradients and no learning rate leaves behind in these cannot be told from, or turned back
# into, the state of an optimizer that never stepped.
_UNSUPPORTED_OPTIMIZERS = (ASGD, LBFGS, Rprop, SparseAdam)

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
        """Gives the group another learning rate during each step, and only then: schedulers never see it."""

        def before_step(*_: Any) -> None:
            self._put_back()
            self._scheduled = self.options["lr"]
            self.options["lr"] = learning_rate(self.options)

        def after_step(*_: Any) -> None:
            self._put_back()

        self._handles = [
            self.optimizer.register_step_pre_hook(before_step),
            self.optimizer.register_step_post_hook(after_step),
        ]

    def restore_learning_rate(self) -> None:
        """Undoes `replace_learning_rate`, also after a step that failed half-way."""
        self._put_back()
        for handle in self._handles:
            handle.remove()

    def _put_back(self) -> None:
        if self._scheduled is not None:
            self.options["lr"], self._scheduled = self._scheduled, None


@torch.no_grad()
def materialize_state(optimizer: Optimizer) -> None:
    """Creates the state that the optimizer would create at its first step, for all its parameters, and moves none.

    Parameters that have not trained yet have no state, and checkpoints of sharded parameters can only be restored into
    an optimizer with the same entries. All of them, because torch creates what is missing in all or in none.
    """
    if isinstance(optimizer, _UNSUPPORTED_OPTIMIZERS):
        raise MisconfigurationException(
            f"FreezeBackboneFirst cannot prepare the state of {type(optimizer).__name__} for a backbone that trains"
            " later. Use another optimizer, such as torch.optim.AdamW."
        )
    groups = optimizer.param_groups
    fresh = [p for group in groups for p in group["params"] if p.requires_grad and p not in optimizer.state]
    options: list[dict[str, Any]] = [{key: g[key] for key in ("lr", "weight_decay") if key in g} for g in groups]
    optimizer.zero_grad(set_to_none=True)
    for group, kept in zip(groups, options, strict=True):
        group.update(dict.fromkeys(kept, 0.0))
    for parameter in fresh:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, kept in zip(groups, options, strict=True):
        group.update(kept)
    for parameter in fresh:
        state = optimizer.state[parameter]
        for key in state.keys() & _INITIAL_STATE.keys():
            if isinstance(state[key], Tensor):
                state[key].fill_(_INITIAL_STATE[key])
            else:
                state[key] = type(state[key])(_INITIAL_STATE[key])


def split_group(optimizer: Optimizer, group: dict[str, Any], in_backbone: list[bool]) -> None:
    """Moves some parameters of a group into a new one with the same options, at the end of the optimizer."""
    options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    if "name" in options:
        # Two groups of one name are an error to LearningRateMonitor.
        options["name"] = f"{options['name']}_backbone"
    moved: list[Any] = list(compress(group["params"], in_backbone))
    stays = [not inside for inside in in_backbone]
    group["params"] = list(compress(group["params"], stays))
    if "param_names" in group:
        moved = list(zip(compress(group["param_names"], in_backbone), moved, strict=True))
        group["param_names"] = list(compress(group["param_names"], stays))
    optimizer.add_param_group({**options, "params": moved})


def mixed_group_message(optimizer: Optimizer, index: int, backbone: list[str], exclude: list[str]) -> str:
    """How to give the backbone a parameter group of its own, as an error says it."""
    name = type(optimizer).__name__
    condition = _condition(backbone) + (f" and not {_condition(exclude)}" if exclude else "")
    return f"""\
Parameter group {index} of {name} holds parameters of {quoted(backbone)} together with others. A learning rate or a
warm-up of its own needs a group of its own, and FreezeBackboneFirst cannot split a group that a learning rate scheduler
is attached to. Split it in configure_optimizers:

    from fnmatch import fnmatch
    backbone = {{name: p for name, p in self.named_parameters() if {condition}}}
    others = [p for name, p in self.named_parameters() if name not in backbone]
    {name}([{{"name": "others", "params": others}}, {{"name": "backbone", "params": backbone.values()}}], ...)"""


def _condition(parts: list[str]) -> str:
    # The dot after the name lets the pattern of a part fit a parameter that is the part itself.
    return f'any(fnmatch(f"{{name}}.", part) for part in {[f"{part}.*" for part in parts]})'


def quoted(names: Iterable[str]) -> str:
    """Names in backticks, with commas."""
    return ", ".join(f"`{name}`" for name in names)

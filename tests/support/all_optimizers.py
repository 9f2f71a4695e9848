"""Optimizers of all kinds for a module of a `backbone` and a `head`, torch's and as other people write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adagrad, AdamW, Optimizer
from transformers.optimization import Adafactor

from tests.support.foreign_optimizers import WithoutHooks


class CountsInItsGroup(SGD):
    """Takes smaller steps from step to step, and counts them beside its options."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            group["lr"] = 0.1 / group["count"]
        return super().step(closure)


class NeedsTrainMode(SGD):
    """As Schedule-Free optimizers do, it steps in train mode alone, which a hook of the module sets later."""

    is_training = False

    def step(self, closure: Any = None) -> Any:
        if not self.is_training:
            raise RuntimeError("call train() first")
        return super().step(closure)


class Draws(SGD):
    """Adds noise to its steps."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.add_(torch.randn_like(parameter), alpha=0.01)
        return loss


def named_groups(module: nn.Module) -> list[dict[str, Any]]:
    return [
        {"name": "head", "params": list(module.head.parameters())},
        {"name": "backbone", "params": list(module.backbone.parameters()), "lr": 0.02},
    ]


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "Adadelta": lambda m: torch.optim.Adadelta(named_groups(m)),
    "Adafactor": lambda m: torch.optim.Adafactor(named_groups(m)),
    "Adagrad": lambda m: Adagrad(named_groups(m), initial_accumulator_value=0.1),
    "Adam": lambda m: torch.optim.Adam(named_groups(m), amsgrad=True, weight_decay=0.1),
    "Adamax": lambda m: torch.optim.Adamax(named_groups(m)),
    "AdamW": lambda m: AdamW(named_groups(m)),
    "AdamW-fused": lambda m: AdamW(named_groups(m), fused=True),
    "AdamW-tensor-lr": lambda m: AdamW(named_groups(m)[:1] + [{"params": m.backbone.parameters()}], torch.tensor(0.01)),
    "ASGD": lambda m: torch.optim.ASGD(named_groups(m), t0=0),
    "LBFGS": lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=2),
    "NAdam": lambda m: torch.optim.NAdam(named_groups(m)),
    "RAdam": lambda m: torch.optim.RAdam(named_groups(m)),
    "RMSprop": lambda m: torch.optim.RMSprop(named_groups(m), centered=True, momentum=0.9),
    "Rprop": lambda m: torch.optim.Rprop(named_groups(m)),
    "SGD": lambda m: SGD(named_groups(m), lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True),
    "SGD-dampened": lambda m: SGD(named_groups(m), lr=0.01, momentum=0.9, dampening=0.5),
    "transformers.Adafactor": lambda m: Adafactor([{"params": list(m.parameters())}]),
    "counts": lambda m: CountsInItsGroup(named_groups(m), lr=0.01),
    "train-mode": lambda m: NeedsTrainMode(named_groups(m), lr=0.01),
    "draws": lambda m: Draws(named_groups(m), lr=0.01),
    "without-hooks": lambda m: WithoutHooks(AdamW(named_groups(m))),
}
# Their steps show whether they were prepared.
LEFT_ALONE = {"ASGD", "LBFGS", "Rprop", "SGD-dampened", "train-mode", "draws", "without-hooks"}

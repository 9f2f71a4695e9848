"""Frozen networks are run without gradient and in their own precision."""

from __future__ import annotations

import torch
from torch import nn

from lightning_action.frozen.interfaces import frozen_pass


def test_neither_gradient_nor_autocast() -> None:
    network, inputs = nn.Linear(3, 2), torch.randn(5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outside = network(inputs)
        with frozen_pass(torch.device("cpu")):
            inside = network(inputs)
    assert outside.dtype == torch.bfloat16 and outside.requires_grad
    assert inside.dtype == torch.float32 and not inside.requires_grad

"""Strategies for Lightning's Trainer that share a model out over devices."""

from lightning_action.strategies.fsdp1 import FSDP1Strategy
from lightning_action.strategies.fsdp2 import FSDP2Strategy

__all__ = ["FSDP1Strategy", "FSDP2Strategy"]

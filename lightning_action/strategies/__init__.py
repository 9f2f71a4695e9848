"""Strategies for Lightning's Trainer that share a model out over devices."""

from __future__ import annotations

from lightning.pytorch.strategies import FSDPStrategy, Strategy

from lightning_action.strategies.fsdp2 import FSDP2Strategy

__all__ = ["FSDP2Strategy"]


def require_supported(strategy: Strategy | str) -> None:
    """Refuse the first generation of FSDP, which torch gives up.

    Args:
        strategy: of a Trainer, or its name or class path.

    Raises:
        ValueError: names what to use.
    """
    is_first = isinstance(strategy, FSDPStrategy) or strategy in ("fsdp", "fsdp_cpu_offload")
    if is_first or (isinstance(strategy, str) and strategy.endswith(".FSDPStrategy")):
        raise ValueError(
            "trainer.strategy is FSDP of the first generation, which torch gives up: shard with --config "
            "configs/fsdp.yaml in its place, or in Python with lightning_action.FSDP2Strategy"
        )

"""Fully sharded data parallel (FSDP2) for Lightning's Trainer, with what its own strategy leaves to the user."""

from __future__ import annotations

import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

Path_ = str | Path
_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FSDP2Strategy(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer states over all devices; works on CPU (gloo) as on GPU (NCCL).

    The LightningModule shards itself in `configure_model`, as `ActionVideoModule` does. A checkpoint is written beside
    its place and moved there when it is whole, so that a fit that is killed leaves the last one usable. One of a single
    file holds what a fit on one device would write: a run goes on with any number of devices, sharded or not.

    Args:
        save_distributed_checkpoint: each rank writes its own shard into a folder; False gathers everything on rank 0,
            which writes one file.
        process_group_backend: None takes the device's own.
        timeout: how long a rank waits for another.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        super().__init__("auto", 1, save_distributed_checkpoint, process_group_backend, timeout)

    def setup_environment(self) -> None:
        # Lightning's "auto" is the number of nodes: on a single one it shards nothing and feeds all ranks the same.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: L.Trainer) -> None:
        """Refuse a module that would silently train apart.

        Raises:
            MisconfigurationException: a parameter that trains is not sharded.
        """
        super().setup(trainer)
        parameters = self._module.named_parameters()
        whole = [name for name, value in parameters if value.requires_grad and not isinstance(value, DTensor)]
        if whole:
            raise MisconfigurationException(
                f"expected every parameter that trains to be sharded, but {len(whole)} are not, {whole[0]} first: "
                "their gradients would not be summed over the ranks; shard them in configure_model with "
                "lightning_action.sharding.shard"
            )

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state as torch's optimizers number it, where it is gathered into one file; on rank 0 alone."""
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        named = get_optimizer_state_dict(self._module, optimizer, options=_FULL)
        numbers = {name: number for number, name in enumerate(self._names_of_parameters(optimizer))}
        return _renamed(named, numbers) if self.global_rank == 0 else {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Path_, storage_options: Any | None = None) -> None:
        path = Path(self.broadcast(str(filepath)))
        temporary = path.with_name(f".{path.name}-being-written")
        if self.global_rank == 0:
            _remove(temporary)
        self.barrier()
        super().save_checkpoint(checkpoint, temporary, storage_options)
        self.barrier()
        if self.global_rank == 0:
            _move_into_place(temporary, path)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Path_, weights_only: bool | None = None) -> dict[str, Any]:
        """A sharded folder of any number of ranks, or a single file, sharded run or not."""
        path = Path(self.broadcast(str(checkpoint_path)))
        if path.is_dir():
            return super().load_checkpoint(path, weights_only)
        checkpoint: dict[str, Any] = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
        set_model_state_dict(self._module, checkpoint.pop("state_dict"), options=_FULL)
        for optimizer, numbered in zip(self.optimizers, checkpoint.pop("optimizer_states", []), strict=False):
            names = dict(enumerate(self._names_of_parameters(optimizer)))
            set_optimizer_state_dict(self._module, optimizer, _renamed(numbered, names), options=_FULL)
        return checkpoint

    @property
    def _module(self) -> nn.Module:
        module = self.lightning_module
        assert module is not None
        return module

    def _names_of_parameters(self, optimizer: Optimizer) -> list[str]:
        """In the order in which an optimizer numbers its parameters."""
        names = {parameter: name for name, parameter in self._module.named_parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _renamed(state: dict[str, Any], names: dict[Any, Any]) -> dict[str, Any]:
    """An optimizer's state with other keys for its parameters."""
    return {
        "state": {names[key]: value for key, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[key] for key in group["params"]]} for group in state["param_groups"]
        ],
    }


def _move_into_place(temporary: Path, path: Path) -> None:
    """Replace what stands at `path`; where folders are involved that takes two steps, so the old one is set aside."""
    old = path.with_name(f".{path.name}-old")
    _remove(old)
    if path.is_dir() or (path.exists() and temporary.is_dir()):
        os.replace(path, old)
    os.replace(temporary, path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

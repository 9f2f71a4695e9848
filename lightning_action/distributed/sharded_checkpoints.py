"""Checkpoints of sharded fits: folders and files that any number of devices goes on with, sharded or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.optim import Optimizer

from lightning_action.atomic import move_into_place, naming_the_disk, remove
from lightning_action.callbacks.support.shard_reading import load_shards, read_shard_metadata
from lightning_action.weights.tensor_files import load_pickle
from lightning_action.weights.values import is_finite

Path_ = str | Path
# File that Lightning, too, puts beside the shards of a checkpoint.
_METADATA_FILE = "meta.pt"


class ShardedCheckpoints(ParallelStrategy):
    """Reads and writes checkpoints of parameters that FSDP2 has sharded; the first base of a strategy.

    A checkpoint is written beside its place and moved there when it is whole. A folder is of torch's distributed
    checkpoint format, laid out as Lightning's `ModelParallelStrategy` does; a file is what one device would write.
    """

    save_distributed_checkpoint: bool

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return shards, or the whole on rank 0."""
        state: dict[str, Any] = get_model_state_dict(self._sharded, options=self._options)
        return state if self.save_distributed_checkpoint or self.global_rank == 0 else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return shards by name, or on rank 0 the whole as torch's optimizers number it."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        named = get_optimizer_state_dict(self._sharded, optimizer, options=self._options)
        if self.save_distributed_checkpoint:
            return named
        numbers = {name: number for number, name in enumerate(self._names_of_parameters(optimizer))}
        return _renamed(named, numbers) if self.global_rank == 0 else {}

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        """`load_checkpoint` has done it."""

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """`load_checkpoint` has done it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Path_, storage_options: Any | None = None) -> None:
        """Write a folder or a file.

        Raises:
            TypeError: Storage options are given, which folders have no use for.
        """
        if storage_options is not None:
            raise TypeError(f"{type(self).__name__} takes no storage_options, got {storage_options!r}")
        path = Path(self.broadcast(str(filepath)))
        temporary = path.with_name(_temporary(path.name))
        if self.global_rank == 0:
            for unfinished in path.parent.glob(_temporary("*")):
                remove(unfinished)
        self.barrier()
        with naming_the_disk(path, temporary):
            if self.save_distributed_checkpoint:
                self._write_folder(checkpoint, temporary)
            elif self.global_rank == 0:
                temporary.parent.mkdir(parents=True, exist_ok=True)
                torch.save(checkpoint, temporary)
        self.barrier()
        if self.global_rank == 0:
            move_into_place(temporary, path)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Path_, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a folder of any number of ranks, or a single file of one device or of this class.

        Raises:
            ValueError: The checkpoint is of another model, its optimizer trained other parameters, its weights are not
                finite, or it would run code.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        is_folder = path.is_dir()
        if is_folder:
            read_shard_metadata(path)
        checkpoint = read_entries(path, weights_only is not False)
        try:
            if is_folder:
                self._load_folder(path)
            else:
                self._take_from(checkpoint)
        except (KeyError, ValueError, CheckpointException) as error:
            raise ValueError(
                f"{path} does not fit this run ({type(error).__name__}: {error}): go on with the model and the "
                "optimizer groups it was trained with (model.lora, model.optimization.train_backbone), or begin a new "
                "run from its weights: `export --format wan`, then model.pretrained"
            ) from error
        self._require_finite(path)
        return checkpoint

    def _require_finite(self, path: Path) -> None:
        """Let all ranks refuse together, lest some wait for those that did."""
        shards = (value for value in self._sharded.state_dict().values() if isinstance(value, Tensor))
        if not self.reduce_boolean_decision(all(map(is_finite, shards))):
            raise ValueError(f"{path} holds weights that are NaN or infinite: take an earlier checkpoint")

    def _write_folder(self, checkpoint: dict[str, Any], path: Path) -> None:
        state = {"state_dict": checkpoint.pop("state_dict")}
        state |= {f"optimizer_{index}": each for index, each in enumerate(checkpoint.pop("optimizer_states", []))}
        save_shards(state, checkpoint_id=path)
        if self.global_rank == 0:
            torch.save(checkpoint, path / _METADATA_FILE)

    def _load_folder(self, path: Path) -> None:
        state = {"state_dict": get_model_state_dict(self._sharded)}
        load_shards(state, path)
        set_model_state_dict(self._sharded, state["state_dict"], options=StateDictOptions(strict=self._strict))
        for index, optimizer in enumerate(self.optimizers):
            named = {f"optimizer_{index}": get_optimizer_state_dict(self._sharded, optimizer)}
            load_shards(named, path)
            set_optimizer_state_dict(self._sharded, optimizer, named[f"optimizer_{index}"])

    def _take_from(self, checkpoint: dict[str, Any]) -> None:
        options = StateDictOptions(full_state_dict=True, strict=self._strict)
        set_model_state_dict(self._sharded, checkpoint.pop("state_dict"), options=options)
        for optimizer, numbered in zip(self.optimizers, checkpoint.pop("optimizer_states", []), strict=False):
            _require_same_groups(optimizer, numbered)
            names = dict(enumerate(self._names_of_parameters(optimizer)))
            set_optimizer_state_dict(self._sharded, optimizer, _renamed(numbered, names), options=options)

    @property
    def _sharded(self) -> nn.Module:
        assert self.model is not None
        return self.model

    @property
    def _strict(self) -> bool:
        return self.lightning_module is None or self.lightning_module.strict_loading

    @property
    def _options(self) -> StateDictOptions:
        whole = not self.save_distributed_checkpoint
        return StateDictOptions(full_state_dict=whole, cpu_offload=True)

    def _names_of_parameters(self, optimizer: Optimizer) -> list[str]:
        """List names in the order in which an optimizer numbers its parameters."""
        module = self.lightning_module
        assert module is not None
        names = {parameter: name for name, parameter in module.named_parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def read_entries(path: str | Path, weights_only: bool = True) -> dict[str, Any]:
    """Read a checkpoint in one file; of a folder of shards all but weights and optimizer states."""
    file = Path(path) / _METADATA_FILE if Path(path).is_dir() else Path(path)
    if weights_only:
        return load_pickle(file)
    return torch.load(file, mmap=True, map_location="cpu", weights_only=False)


def _require_same_groups(optimizer: Optimizer, state: dict[str, Any]) -> None:
    theirs, ours = (
        [len(group["params"]) for group in groups] for groups in (state["param_groups"], optimizer.param_groups)
    )
    if theirs != ours:
        raise ValueError(f"its optimizer has groups of {theirs} parameters, that of this run of {ours}")


def _temporary(name: str) -> str:
    return f".{name}-being-written"


def _renamed(state: dict[str, Any], names: dict[Any, Any]) -> dict[str, Any]:
    """Return an optimizer's state with other keys for its parameters."""
    return {
        "state": {names[key]: value for key, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[key] for key in group["params"]]} for group in state["param_groups"]
        ],
    }

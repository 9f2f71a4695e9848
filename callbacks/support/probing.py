"""Samples to look at a model with, and how to look without leaving a trace in its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from .part_names import is_named

GENERATE = "generate(batch) -> video [B, T, 3, H, W] in [0, 1]"
PROBE_ACTIONS = "probe_actions(strength) -> ({name: action row}, whether rows can be scaled)"

Batch: TypeAlias = dict[str, Any]
"""A dict with `action` `[B, rows, columns]`. What else in it has B entries has one for each sample."""


@contextmanager
def leaving_no_trace(pl_module: nn.Module) -> Iterator[None]:
    """Set eval mode without gradient; afterwards modes, random states and shards are what they were."""
    modes = {module: module.training for module in pl_module.modules()}
    with isolate_rng(), torch.no_grad():
        pl_module.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            drop_gathered_parameters(pl_module)


def is_sharded(module: nn.Module) -> bool:
    """Tell whether ranks hold parts of parameters, with FSDP2 or tensor parallelism."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def refuse_hidden_parameters(strategy: Strategy, owner: str) -> None:
    """Refuse strategies that keep parameters, or their gradients, in buffers of their own.

    Raises:
        MisconfigurationException: The strategy hides parameters; the message names it and what to use.
    """
    if any(is_named(strategy, name) for name in ("DeepSpeedStrategy", "FSDPStrategy")):
        raise MisconfigurationException(
            f"{owner} cannot read parameters under {type(strategy).__name__}, which keeps them in buffers of its own: "
            "use ModelParallelStrategy (FSDP2) or DDP, or remove the callback"
        )


def drop_gathered_parameters(module: nn.Module) -> None:
    """Make FSDP gather its parameters again when they are needed.

    A module that has not gone through a backward pass, because it was validated or is frozen, holds on to them.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def settle_gradient_dtypes(module: nn.Module) -> None:
    """Make FSDP2 choose again in which dtypes it sums and keeps gradients; all ranks call it together.

    It chooses at its first pass, and a group of parameters of which none requires gradients then has none.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            # There is no other public way, and it gathers one group at a time.
            part.unshard()
            part.reshard()


def require_method(pl_module: LightningModule, owner: str, signature: str) -> None:
    """Refuse a LightningModule that lacks a method, given as `method(argument, ...) -> what it returns`.

    Raises:
        MisconfigurationException: The method is missing; the message names the callback, the method and its arguments.
    """
    if not callable(getattr(pl_module, signature.partition("(")[0], None)):
        raise MisconfigurationException(f"{owner} needs a method {signature}, and {type(pl_module).__name__} has none")


def take_samples(batch: Any, indices: slice, owner: str) -> Batch:
    """Copy some samples of a batch to the CPU; of those with an action where `has_action` `[B]` tells which.

    Raises:
        MisconfigurationException: The batch is no dict with `action` `[B, rows, columns]`.
    """
    places = _acting(batch, owner)[indices]

    def take(value: Any) -> Any:
        # By places, not as a slice, with which all of the batch would stay in memory.
        if isinstance(value, Tensor):
            return value[places].detach().cpu()
        return type(value)(value[place] for place in places) if isinstance(value, list | tuple) else value[places]

    return _with_rows(batch, len(batch["action"]), take)


def take_sample(batch: Any, index: int, owner: str) -> Batch:
    """Take one sample as `take_samples` does, the last if there are fewer, as a batch of one."""
    index = min(index, len(_acting(batch, owner)) - 1)
    return take_samples(batch, slice(index, index + 1), owner)


def _acting(batch: Any, owner: str) -> list[int]:
    """Places of the samples that have an action; all where none has one."""
    _check_batch(batch, owner)
    told = batch.get("has_action")
    acting: list[int] = [] if told is None else told.nonzero().flatten().tolist()
    return acting or list(range(len(batch["action"])))


def with_actions(sample: Batch, actions: Tensor) -> Batch:
    """Repeat a batch of one sample for each of the actions `[N, rows, columns]`, which replace its own, or none."""
    count = len(actions)

    def repeat(value: Any) -> Any:
        return value * count if isinstance(value, list | tuple) else value[[0] * count]

    batch = _with_rows(sample, 1, repeat)
    batch.pop("has_action", None)
    return batch | {"action": actions.to(sample["action"].dtype)}


def other_actions(action: Tensor) -> Tensor:
    """Give each sample of `[B, rows, columns]` the actions of the one before; one alone gets its own backwards."""
    return action.roll(1, dims=0) if len(action) > 1 else action.flip(1)


def first_validation_samples(trainer: Trainer, count: int, owner: str) -> list[Batch]:
    """The first samples of the first validation dataloader, batch by batch; none if the fit does not validate.

    Call it from `on_train_start` on, where the dataloaders exist. The batches pass through the transfer hooks of the
    LightningModule, and the global random state does not move.
    """
    batches: list[Batch] = []
    if trainer.val_dataloaders is None:
        return batches
    with isolate_rng():
        for batch in CombinedLoader(trainer.val_dataloaders).flattened[0]:
            batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            batches.append(take_samples(batch, slice(count), owner))
            count -= len(batches[-1]["action"])
            if count <= 0:
                break
    return batches


def check_action_width(owner: str, action: Tensor, rows: Tensor) -> None:
    """Refuse action rows `[N, columns]` that a batch's `action` cannot hold.

    Raises:
        MisconfigurationException: The widths differ, or fractions were to become whole numbers.
    """
    if action.shape[-1] != rows.shape[-1]:
        raise MisconfigurationException(
            f"{owner}(actions=...) has rows of {rows.shape[-1]} columns, and the batch's 'action' "
            f"{tuple(action.shape)} has {action.shape[-1]}: give each action {action.shape[-1]} numbers"
        )
    if not action.is_floating_point() and bool((rows != rows.round()).any()):
        raise MisconfigurationException(
            f"{owner}: the batch's 'action' holds whole numbers ({action.dtype}), and some of the scaled actions are "
            "none; with classes, scales: [1.0] is the only one that makes sense"
        )


def generate(pl_module: LightningModule, batch: Batch, num_videos: int, owner: str) -> Tensor:
    """Videos `[B, T, 3, H, W]` that a LightningModule generates for a batch, which is moved to its device.

    Raises:
        MisconfigurationException: The method returns something else than videos, or not `num_videos` of them; the
            message says what.
    """
    videos = pl_module.generate(move_data_to_device(batch, pl_module.device))  # type: ignore[operator]
    if isinstance(videos, Tensor) and videos.ndim == 5 and len(videos) == num_videos and videos.shape[2] == 3:
        return videos
    got = tuple(videos.shape) if isinstance(videos, Tensor) else type(videos).__name__
    raise MisconfigurationException(
        f"{owner} expects generate(batch) to return {num_videos} videos [B, T, 3, H, W], got {got}"
    )


def format_row(row: Sequence[float]) -> str:
    """An action row, short enough for a label."""
    # The sum has no negative zero.
    shown = [f"{value + 0.0:g}" for value in row[:4]]
    return f"({', '.join(shown)}{', ...' if len(row) > 4 else ''})"


def _check_batch(batch: Any, owner: str) -> None:
    if not isinstance(batch, dict) or not isinstance(batch.get("action"), Tensor) or batch["action"].ndim != 3:
        got = sorted(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
        raise MisconfigurationException(
            f"{owner} needs batches that are dicts with 'action' [B, rows, columns], got {got}"
        )


def _with_rows(value: Any, size: int, change: Callable[[Any], Any]) -> Any:
    """Change every entry of a batch, in dicts too, that has one item for each of `size` samples; keep the rest."""
    if isinstance(value, dict):
        return {name: _with_rows(item, size, change) for name, item in value.items()}
    # Arrays have a number of dimensions, as tensors do.
    has_rows = isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0
    return change(value) if has_rows and len(value) == size else value

"""Fits with the callbacks that log statistics, on two processes; writes what was logged as JSON.

Called by test_statistics_distributed.py on two processes, with a folder.
"""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.utils.data import DataLoader, DistributedSampler

from lightning_action.callbacks import (
    ActionModulationMonitor,
    GradientStatistics,
    NoiseLevelLoss,
    ThroughputMonitor,
)
from lightning_action.callbacks.support.gradient_sums import GradientSums, reduce
from tests.support import short_fits
from tests.support.someones_dit import MovingSpots, SomeonesDiT

GLOBAL_BATCH, NUM_SAMPLES, NUM_VALIDATION = 4, 40, 8
# The last step is not logged, so that something is pending when the fit ends.
MAX_STEPS = 5
NAN_FROM_STEP = 2

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "ddp": DDPStrategy,
    "fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
}


def loader(num_samples: int, num_ranks: int, rank: int) -> DataLoader[dict[str, Tensor]]:
    """The same samples at every step, however many ranks share them."""
    samples = MovingSpots(num_samples)
    sampler: DistributedSampler[Any] = DistributedSampler(samples, num_ranks, rank, shuffle=False)
    return DataLoader(samples, batch_size=GLOBAL_BATCH // num_ranks, sampler=sampler)


def callbacks() -> list[Callback]:
    names = {"projection": "action_encoder", "time_projection": "transformer.time_mlp", "layers": "transformer.layers"}
    return [
        ActionModulationMonitor(**names, table="table"),  # type: ignore[arg-type]
        GradientStatistics(["transformer.layers.*", "transformer.embed"]),
        NoiseLevelLoss(num_bins=4),
        ThroughputMonitor(),
    ]


def build_module(per_layer: bool) -> SomeonesDiT:
    """In float64: Adam would make much of the last digit of a gradient that is nearly zero."""
    return SomeonesDiT(per_layer, weights=torch.float64)


def fit(
    folder: Path, module: LightningModule, watching: list[Callback], num_ranks: int = 1, rank: int = 0, **options: Any
) -> short_fits.Shown:
    """What the first rank logs; others show nothing."""
    logger = TensorBoardLogger(folder)
    defaults: dict[str, Any] = {"max_steps": MAX_STEPS, "log_every_n_steps": 2, "limit_val_batches": 1.0}
    defaults |= {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "val_check_interval": 4, "logger": logger}
    defaults |= {"num_sanity_val_steps": 0, "use_distributed_sampler": False}
    trainer = short_fits.quiet_trainer(folder, *watching, **defaults | options)
    trainer.fit(module, loader(NUM_SAMPLES, num_ranks, rank), loader(NUM_VALIDATION, num_ranks, rank))
    return short_fits.scalars(logger) if rank == 0 else {}


class NaNInTheLastRow(SomeonesDiT):
    """Of the gradient of a weight that FSDP2 splits by rows: the first rank's shard stays finite."""

    def configure_model(self) -> None:
        super().configure_model()
        assert self.transformer is not None
        self.transformer.layers[1].mix[0].register_forward_pre_hook(self.spoil_gradient)  # type: ignore[union-attr, index]

    def spoil_gradient(self, layer: nn.Module, _: Any) -> None:
        if self.global_step == NAN_FROM_STEP and self.training:
            layer.weight.register_hook(_spoil_last_row)  # type: ignore[operator, union-attr]


def _spoil_last_row(gradient: Tensor) -> Tensor:
    return torch.cat([gradient[:-1], torch.full_like(gradient[-1:], float("nan"))])


def stop(folder: Path, rank: int, strategy: Strategy) -> str:
    """What the fit is ended with, on this rank."""
    statistics = GradientStatistics(every_n_steps=100, stop_on_nonfinite=True)
    try:
        fit(folder, NaNInTheLastRow(), [statistics], 2, rank, strategy=strategy, devices=2, gradient_clip_val=None)
    except FloatingPointError as error:
        return str(error)
    return "not stopped"


def mixed_norm() -> float:
    """Norm over gradients of 12, 6, 1 and 5 ones: sharded, sharded on one mesh axis of two, on one rank, copied."""
    line, plane = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (2, 1))
    layouts: list[Any] = [(3, 4, line, [Shard(0)]), (3, 2, plane, [Replicate(), Shard(0)]), (1, 1, line, [Shard(0)])]
    parameters = [nn.Parameter(torch.zeros(5))]
    parameters[0].grad = torch.ones(5)
    for rows, columns, mesh, placements in layouts:
        parameters.append(nn.Parameter(distribute_tensor(torch.zeros(rows, columns), mesh, placements)))
        parameters[-1].grad = distribute_tensor(torch.ones(rows, columns), mesh, placements)
    sums = GradientSums(parameters)
    sums.add_gradients()
    reduce([sums])
    return sums.figures(range(len(parameters)))["norm"] ** 2


def on_all_ranks(value: Any) -> list[Any]:
    values = [value, value]
    dist.all_gather_object(values, value)
    return values


def main(folder: Path, rank: int) -> None:
    facts: dict[str, Any] = {}
    for name, build in STRATEGIES.items():
        for per_layer in (False, True):
            watching = callbacks()
            options = {"strategy": build(), "devices": 2}
            shown = fit(folder / name, build_module(per_layer), watching, 2, rank, **options)
            facts[f"{name} {per_layer}"] = {"shown": shown, "pending": watching[2].state_dict()}
        facts[name] = {"stopped": on_all_ranks(stop(folder / "stopped", rank, build()))}
    facts["mixed"] = mixed_norm()
    if rank == 0:
        (folder / "facts.json").write_text(json.dumps(facts))
    dist.barrier()
    # What a fit leaves behind that an exception ended must be gone before the process groups are.
    gc.collect()
    dist.destroy_process_group()

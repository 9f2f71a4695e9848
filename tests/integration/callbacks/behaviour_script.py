"""Fits and predictions with the callbacks that look at what a model does, on two processes; writes JSON.

Called by test_behaviour_distributed.py on two processes, with a folder.
"""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Subset

from lightning_action.callbacks import ActionSensitivity, DriftMonitor, PredictionWriter, RolloutLogger
from tests.support import short_fits
from tests.support.someones_dit import NUM_FRAMES, MovingSpots, SomeonesDiT

GLOBAL_BATCH, NUM_TRAINING, NUM_VALIDATION, NUM_PREDICTED = 4, 24, 4, 5

# Three frames: one alone, then a block of two.
BLOCKS: dict[str, Any] = {"temporal_compression_ratio": 1, "num_frame_per_block": 2, "independent_first_frame": True}

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "ddp": DDPStrategy,
    "fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
}


class Spots(MovingSpots):
    """With the names that samples have."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return super().__getitem__(index) | {"sample_id": index}


class Visible(SomeonesDiT):
    """The DiT with all that the callbacks ask for: what it predicts from pure noise is shown as a small video."""

    def __init__(self) -> None:
        super().__init__(zero_init=False, weights=torch.float64)
        self.num_generated = 0

    def predict_velocity(self, batch: dict[str, Any], timestep: float, seed: int) -> tuple[Tensor, Tensor]:
        shape = batch["latents"].shape
        action = torch.zeros(shape[0], shape[1], 2) if batch["action"] is None else batch["action"]
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        noised = {"latents": batch["latents"], "noise": noise, "timestep": torch.full(shape[:2], timestep)}
        predicted, velocity = self(noised, action)
        return predicted, velocity

    def generate(self, batch: dict[str, Any]) -> Tensor:
        self.num_generated += len(batch["latents"])
        predicted, _ = self.predict_velocity(batch, 1000.0, 3)
        pixels = predicted.sigmoid().flatten(2)[:, :, :18].unflatten(2, (3, 2, 3))
        return pixels.repeat_interleave(3, dim=-1).repeat_interleave(3, dim=-2)

    def generation_settings(self) -> dict[str, Any]:
        return {"seed": 3, "generation": {"num_inference_steps": 1}}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        known = {"sample_id": batch["sample_id"], "action": batch["action"], **self.generation_settings()}
        return {"video": self.generate(batch), **known}


class SpotsToPredict(LightningDataModule):
    """Shares the samples that are wanted between the ranks, the last of them twice if need be."""

    def __init__(self, num_ranks: int, rank: int) -> None:
        super().__init__()
        self.num_ranks, self.rank = num_ranks, rank
        self.is_wanted: Callable[[dict[str, Any]], bool] = lambda sample: True

    def select_predict_samples(self, is_wanted: Callable[[dict[str, Any]], bool]) -> None:
        self.is_wanted = is_wanted

    def predict_dataloader(self) -> DataLoader[Any]:
        samples = Spots(NUM_PREDICTED)
        wanted = Subset(samples, [index for index in range(len(samples)) if self.is_wanted(samples[index])])
        return DataLoader(wanted, sampler=DistributedSampler(wanted, self.num_ranks, self.rank, shuffle=False))


def build_trainer(folder: Path, *watching: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"max_steps": 6, "limit_val_batches": 1.0, "num_sanity_val_steps": 0}
    defaults |= {"use_distributed_sampler": False, "inference_mode": False}
    return short_fits.quiet_trainer(folder, *watching, **defaults | options)


def fit(folder: Path, num_ranks: int = 1, rank: int = 0, **options: Any) -> dict[str, Any]:
    """What the first rank logs, and the weights after the fit; validation is the same on all ranks."""
    logger, module = TensorBoardLogger(folder), Visible()
    watching = [
        ActionSensitivity(every_n_steps=2, num_samples=4, layers="transformer.layers"),
        RolloutLogger(num_samples=1, scales=[0.0, 1.0]),
        DriftMonitor(**BLOCKS, rollout_rows=NUM_FRAMES, num_rollouts=2),
    ]
    training = Spots(NUM_TRAINING)
    sampler: DistributedSampler[Any] = DistributedSampler(training, num_ranks, rank, shuffle=False)
    loader = DataLoader(training, batch_size=GLOBAL_BATCH // num_ranks, sampler=sampler)
    trainer = build_trainer(folder, *watching, logger=logger, **options)
    trainer.fit(module, loader, DataLoader(Spots(NUM_VALIDATION), batch_size=3))
    trainer.save_checkpoint(folder / "a.ckpt")
    if rank > 0:
        return {}
    shown = {tag: values for tag, values in short_fits.scalars(logger).items() if "/" in tag}
    images = short_fits.events(logger).Tags()["images"]
    return {"shown": shown, "images": sorted(images), "num_generated": module.num_generated}


def predict(
    folder: Path, num_ranks: int = 1, rank: int = 0, build: Callable[[], Strategy] | None = None
) -> dict[str, Any]:
    """Writes in two goes, the first of which is cut short, then measures; what the files and the log say of it."""

    def run(watching: Callback, limit: float = 1.0, **options: Any) -> int:
        module = Visible()
        options |= {} if build is None else {"strategy": build(), "devices": num_ranks}
        trainer = build_trainer(folder, watching, limit_predict_batches=limit, **options)
        data = SpotsToPredict(num_ranks, rank)
        trainer.predict(module, data, ckpt_path=folder / "a.ckpt", return_predictions=False)
        return module.num_generated

    num_generated = [run(PredictionWriter(str(folder / "predictions")), limit) for limit in (1, 1.0)]
    logger = TensorBoardLogger(folder)
    run(DriftMonitor(**BLOCKS), logger=logger)
    if rank > 0:
        return {}
    lines = (folder / "predictions" / "manifest.jsonl").read_text().splitlines()
    sample_ids = [json.loads(line)["sample_id"] for line in lines]
    return {"num_generated": num_generated, "sample_ids": sample_ids, "shown": short_fits.scalars(logger)}


def main(folder: Path, rank: int) -> None:
    facts = {}
    for name, build in STRATEGIES.items():
        fitted = fit(folder / name, 2, rank, strategy=build(), devices=2)
        facts[name] = {"fit": fitted, "predict": predict(folder / name, 2, rank, build)}
    if rank == 0:
        (folder / "facts.json").write_text(json.dumps(facts))
    dist.barrier()
    # What a fit leaves behind must be gone before the process groups are.
    gc.collect()
    dist.destroy_process_group()

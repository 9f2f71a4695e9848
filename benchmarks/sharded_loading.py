"""Memory that each rank takes to build a generator from weights, as a ratio of the peak to the size of the file.

`benchmarks/README.md` says what each figure means.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import ProcessException, start_processes

from benchmarks.loading import TINY, WAN_1_3B, memory_bytes, write
from lightning_action import ActionSchema, CausalWanModel
from lightning_action.assembly import Factories, InitialWeights
from lightning_action.atomic import write_json
from lightning_action.distributed.sharding import Sharding

STRATEGIES = ("whole", "fsdp2")
FILE = "model.safetensors"


def build_from(path: Path, generator: Callable[[], CausalWanModel], strategy: str) -> CausalWanModel:
    """Do what `ActionVideoModule.configure_model` does on a rank."""
    sharding = Sharding(param_dtype="float32")
    factories = Factories(generator, None, None, lora=None, train_backbone=True, seed=0)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    built = factories.build_generator(mesh if strategy == "fsdp2" else None, sharding, weights_follow=True)
    InitialWeights(str(path), lora=None, adapter=None, any_base=False).load(built, None, ActionSchema())
    return built


def measure_rank(rank: int, num_ranks: int, folder: Path, sizes: dict[str, Any], strategy: str) -> None:
    """Build on this rank from the file in the folder, and write the largest peak of all ranks beside it."""
    torch.set_num_threads(1)
    path, meeting = folder / FILE, f"file://{folder / strategy}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_ranks)
    before = memory_bytes("VmRSS")
    generator = build_from(path, partial(CausalWanModel, **sizes), strategy)
    added: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(added, memory_bytes("VmHWM") - before)
    if rank == 0:
        peak = {"added_to_file": max(added) / path.stat().st_size}
        (folder / f"{strategy}.json").write_text(json.dumps(peak))
    del generator
    gc.collect()
    dist.destroy_process_group()


def measure(sizes: dict[str, Any], num_ranks: int, folder: Path | None) -> dict[str, Any]:
    """Write a file, build from it on all ranks with each strategy, and delete it."""
    results: dict[str, Any] = {"torch": torch.__version__, "sizes": sizes, "num_ranks": num_ranks}
    # All ranks are forks of one process that has imported what takes long.
    get_context("forkserver").set_forkserver_preload(["lightning_action.assembly"])
    with tempfile.TemporaryDirectory(dir=folder) as name:
        temporary = Path(name).resolve()  # part of a URL
        write(temporary / FILE, sizes, "safetensors")
        for strategy in STRATEGIES:
            arguments = (num_ranks, temporary, sizes, strategy)
            try:
                start_processes(measure_rank, arguments, nprocs=num_ranks, start_method="forkserver")
            except ProcessException as error:
                raise RuntimeError(f"building with {strategy} failed:\n{error}") from error
            results[strategy] = json.loads((temporary / f"{strategy}.json").read_text())
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print JSON, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="Measure a small model, in seconds, in place of 1.3B.")
    parser.add_argument("--ranks", type=int, default=2, help="Processes on this machine.")
    parser.add_argument("--folder", type=Path, help="Folder for the file of 5.7 GB meanwhile.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="File that takes the result as well.")
    chosen = parser.parse_args(arguments)
    result = measure(TINY if chosen.tiny else WAN_1_3B, chosen.ranks, chosen.folder)
    print(json.dumps(result, indent=2))
    if chosen.json is not None:
        write_json(chosen.json, result)


if __name__ == "__main__":
    main()

"""Memory that each rank takes to build a generator from weights, as a ratio of the peak to the size of the file.

`benchmarks/README.md` says what each figure means.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.loading import TINY, WAN_1_3B, memory_bytes, write
from lightning_action import ActionSchema, CausalWanModel
from lightning_action.assembly import Factories, InitialWeights
from lightning_action.atomic import write_json
from lightning_action.distributed.sharding import Sharding

STRATEGIES = ("whole", "fsdp2")


def build_from(path: Path, generator: Callable[[], CausalWanModel], strategy: str) -> CausalWanModel:
    """Do what `ActionVideoModule.configure_model` does on a rank."""
    sharding = Sharding(param_dtype="float32")
    factories = Factories(generator, None, None, lora=None, train_backbone=True, seed=0)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    built = factories.build_generator(mesh if strategy == "fsdp2" else None, sharding, weights_follow=True)
    InitialWeights(str(path), lora=None, adapter=None, any_base=False).load(built, None, ActionSchema())
    return built


def measure_rank(path: Path, sizes: dict[str, Any], strategy: str, output: Path) -> None:
    """Build on this rank, and write the largest peak of all ranks; to be started by torchrun."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    before = memory_bytes("VmRSS")
    generator = build_from(path, partial(CausalWanModel, **sizes), strategy)
    added: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(added, memory_bytes("VmHWM") - before)
    if dist.get_rank() == 0:
        output.write_text(json.dumps({"added_to_file": max(added) / path.stat().st_size}))
    del generator
    gc.collect()
    dist.destroy_process_group()


def measure(sizes: dict[str, Any], num_ranks: int, folder: Path | None) -> dict[str, Any]:
    """Write a file, build from it on all ranks with each strategy, and delete it."""
    results: dict[str, Any] = {"torch": torch.__version__, "sizes": sizes, "num_ranks": num_ranks}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path, output = Path(temporary) / "model.safetensors", Path(temporary) / "peak.json"
        write(path, sizes, "safetensors")
        for strategy in STRATEGIES:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
            command += ["-m", "benchmarks.sharded_loading", "--measure", strategy, str(path), str(output)]
            command += ["--sizes", json.dumps(sizes)]
            done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"building with {strategy} failed:\n{done.stderr}")
            results[strategy] = json.loads(output.read_text())
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print JSON, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="Measure a small model, in seconds, in place of 1.3B.")
    parser.add_argument("--ranks", type=int, default=2, help="Processes on this machine.")
    parser.add_argument("--folder", type=Path, help="Folder for the file of 5.7 GB meanwhile.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="File that takes the result as well.")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.measure is not None:
        strategy, path, output = chosen.measure
        measure_rank(Path(path), chosen.sizes, strategy, Path(output))
        return
    result = measure(TINY if chosen.tiny else WAN_1_3B, chosen.ranks, chosen.folder)
    print(json.dumps(result, indent=2))
    if chosen.json is not None:
        write_json(chosen.json, result)


if __name__ == "__main__":
    main()

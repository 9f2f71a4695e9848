"""Memory that loading a checkpoint takes, as a ratio of the peak to the size of the file.

`benchmarks/README.md` says what each figure means.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_action import CausalWanModel
from lightning_action.atomic import write_json
from lightning_action.checkpoints.pretrained import load_generator
from lightning_action.weights.names import to_diffusers_name
from lightning_action.weights.safetensors_files import write_safetensors

WAN_1_3B = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}
TINY = {"dim": 768, "ffn_dim": 3072, "num_heads": 6, "num_layers": 10}
Result = TypeVar("Result")
FORMATS = ("safetensors", "diffusers", "pt")
TARGET = 1.3


def build(sizes: dict[str, Any], device: str) -> CausalWanModel:
    """The generator; on `meta` it takes no memory."""
    with torch.device(device):
        return CausalWanModel(**sizes)


def marked_tensors(sizes: dict[str, Any]) -> dict[str, Tensor]:
    """Zeros of which the first of each tensor is its number: they hardly take memory before they are written."""
    shapes = {name: tensor.shape for name, tensor in build(sizes, "meta").state_dict().items()}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for number, tensor in enumerate(tensors.values()):
        tensor.view(-1)[0] = number
    return tensors


def write(path: Path, sizes: dict[str, Any], kind: str) -> None:
    """Write a checkpoint in float32."""
    tensors = marked_tensors(sizes)
    if kind == "pt":
        torch.save({"generator": {f"model.{name}": tensor for name, tensor in tensors.items()}}, path)
    elif kind == "diffusers":
        write_safetensors(path, {to_diffusers_name(name): tensor for name, tensor in tensors.items()}, {})
    else:
        write_safetensors(path, tensors, {})


def memory_bytes(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (the peak) of this process, with the pages of mapped files that it holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measure_load(path: Path, sizes: dict[str, Any], device: str) -> dict[str, Any]:
    """Load the file into a new generator; meant for a process of its own, whose peak nothing else raised."""
    build({"dim": 8, "ffn_dim": 8, "num_heads": 2, "num_layers": 1}, device)  # torch loads code at the first use
    before = memory_bytes("VmRSS")
    generator = build(sizes, device)
    start = perf_counter()
    load_generator(generator, path)
    seconds, peak = perf_counter() - start, memory_bytes("VmHWM")
    size = path.stat().st_size
    marks = [tensor.view(-1)[0].item() for tensor in generator.state_dict().values()]
    return {
        "file_bytes": size,
        "num_tensors": len(marks),
        "before_bytes": before,
        "peak_bytes": peak,
        "peak_to_file": peak / size,
        "added_to_file": (peak - before) / size,
        "seconds": seconds,
        "loaded": marks == list(range(len(marks))),
    }


def in_a_process_of_its_own(function: Callable[..., Result], *args: Any) -> Result:
    """What a function returns in a new process, a fork of one that has imported what takes long."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["lightning_action.checkpoints.pretrained"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def measure(sizes: dict[str, Any], formats: Sequence[str], folder: Path | None) -> dict[str, Any]:
    """Write a file in each format, load it into a generator on each device, and delete it."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        needed = 4 * sum(tensor.numel() for tensor in build(sizes, "meta").state_dict().values())
        free = shutil.disk_usage(temporary).free
        if free < 1.1 * needed:
            raise OSError(
                f"{temporary} has {free / 1e9:.1f} GB free, {1.1 * needed / 1e9:.1f} are needed: give --folder"
            )
        for kind in formats:
            path = Path(temporary) / f"model.{'pt' if kind == 'pt' else 'safetensors'}"
            write(path, sizes, kind)
            for device in ("meta", "cpu"):
                results[f"{kind}_into_{device}"] = in_a_process_of_its_own(measure_load, path, sizes, device)
            path.unlink()
    return {"torch": torch.__version__, "sizes": sizes, "target_peak_to_file": TARGET, "loads": results}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print JSON, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="Measure a small model, in seconds, in place of 1.3B.")
    parser.add_argument(
        "--format", dest="formats", nargs="+", choices=FORMATS, default=FORMATS, help="Formats; default: all."
    )
    parser.add_argument("--folder", type=Path, help="Folder for 5.7 GB of files meanwhile.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="File that takes the result as well.")
    chosen = parser.parse_args(arguments)
    result = measure(TINY if chosen.tiny else WAN_1_3B, chosen.formats, chosen.folder)
    print(json.dumps(result, indent=2))
    if chosen.json is not None:
        write_json(chosen.json, result)


if __name__ == "__main__":
    main()

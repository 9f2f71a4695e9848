"""Memory of a student's gradient through its exit steps: beside copied keys and values, and the plain way.

The plain way keeps in the graph what each block's layers computed, with the keys and values of all that the block sees,
block by block. Layers that are computed again keep what goes into them, and all blocks share one copy of the past:
python -m benchmarks.distillation_memory
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_action import BlockCausality, CausalWanModel
from lightning_action.atomic import write_json
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import frame_noise
from lightning_action.distillation.self_rollout import SelfRollouts

WAYS = ("nothing", "plain", "checkpointed")
SIZES = {"normal": (256, 6, 16, 21), "tiny": (48, 2, 8, 9)}
_SCHEDULE = FlowMatchSchedule(5.0)


def gradient(way: str, dim: int, num_layers: int, side: int, num_frames: int) -> None:
    """Make a clip, and with another way than `nothing` take its gradient."""
    torch.manual_seed(0)
    shape = (16, side, side)
    generator = CausalWanModel(
        dim,
        2 * dim,
        4,
        num_layers,
        freq_dim=64,
        text_dim=32,
        text_len=8,
        activation_checkpointing=way == "checkpointed",
    )
    rollouts = SelfRollouts(generator, BlockCausality(3, 12, 3), _SCHEDULE, (1000.0, 750.0))
    text = torch.randn(1, 8, 32)
    session = rollouts.session(text, frame_noise(0, [0], shape), shape, num_frames)
    clip = rollouts.make(session, num_frames, 1, for_gradient=way != "nothing")
    if way != "nothing":
        clip.with_gradient(generator, text, _SCHEDULE, None).square().mean().backward()


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def measured(way: str, size: str) -> int:
    """The peak of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.distillation_memory", "--way", way, "--size", size]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print, and write, what each way takes over a clip without gradient, and the ratio of the two."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distillation_memory", description=__doc__)
    parser.add_argument("--way", choices=WAYS, help="measure one in this process, and print its bytes")
    parser.add_argument("--size", choices=SIZES, default="normal", help="size of the model and the clip")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    if options.way:
        gradient(options.way, *SIZES[options.size])
        print(peak_bytes())
        return
    base, plain, ours = (measured(way, options.size) for way in WAYS)
    figures = {"plain_mb": (plain - base) / 1e6, "ours_mb": (ours - base) / 1e6}
    figures["ours_to_plain"] = figures["ours_mb"] / figures["plain_mb"]
    for name, value in figures.items():
        print(f"| {name} | {value:.2f} |")
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()

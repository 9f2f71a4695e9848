"""Memory of a student's gradient through its exit steps: the plain way, beside the cache, and with layers recomputed.

The plain way lets the graph grow with the cache: the clean pass of each block is part of it, and its keys and values
are joined anew for each block that sees them. Beside the cache, blocks share one copy of the past, which is no part of
the graph; layers that are computed again keep what goes into them alone: python -m benchmarks.distillation_memory
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.loading import in_a_process_of_its_own, memory_bytes
from lightning_action import BlockCausality, CausalWanModel
from lightning_action.atomic import write_json
from lightning_action.diffusion.flow_matching import FlowMatchSchedule, clean_from_velocity
from lightning_action.diffusion.noise import frame_noise
from lightning_action.distillation.self_rollout import SelfRollout, SelfRollouts
from lightning_action.generation.sampling import Sampling
from lightning_action.generation.video import VideoGenerator
from lightning_action.generator.context import TextCache

WAYS = ("nothing", "plain", "beside_cache", "checkpointed")
# Width, layers, side of a latent frame, and latent frames.
_NORMAL, _TINY = (256, 6, 16, 21), (96, 3, 16, 9)
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
    causality, timesteps = BlockCausality(3, 12, 3), (1000.0, 750.0)
    text, noise = torch.randn(1, 8, 32), frame_noise(0, [0], shape)
    rollouts = SelfRollouts(VideoGenerator(generator, causality, Sampling(), _SCHEDULE), timesteps)
    session = rollouts.begin(text, noise, (num_frames, *shape))
    clip = rollouts.make(session, num_frames, 1, for_gradient=way != "nothing")
    if way == "plain":
        grown_with_cache(generator, clip, causality, text).square().mean().backward()
    elif way != "nothing":
        clip.with_gradient(generator, text, _SCHEDULE, None).square().mean().backward()


def grown_with_cache(generator: CausalWanModel, clip: SelfRollout, causality: BlockCausality, text: Tensor) -> Tensor:
    """The exit steps with gradient beside a past that is computed with gradient too, as a plain cache holds it."""
    prompt, blocks = generator.text_cache(text), []
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    for step in clip.exits:
        past = [kept[frame] for seen in causality.past(step.frames) for frame in seen]
        velocity = generator.denoise_after(past, step.frames, step.noisy, step.timestep, prompt)
        clean = clean_from_velocity(step.noisy, velocity, _SCHEDULE.sigma_at(step.timestep))
        blocks.append(clean)
        kept |= dict(zip(step.frames, written(generator, past, step.frames, clean, prompt), strict=True))
    return torch.cat(blocks, dim=1)


def written(
    generator: CausalWanModel, past: list[tuple[Tensor, Tensor]], frames: range, clean: Tensor, prompt: TextCache
) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each frame of a block, from its clean pass, in the graph."""
    layers: list[tuple[Tensor, Tensor]] = []
    hooks = [
        layer.get_submodule("self_attn").register_forward_hook(
            lambda module, given, _: layers.append(module.keys_values(given[0], given[1]))
        )
        for layer in generator.blocks
    ]
    generator.denoise_after(past, frames, clean, clean.new_zeros(clean.shape[:2]), prompt)
    for hook in hooks:
        hook.remove()
    keys, values = (torch.stack(each) for each in zip(*layers, strict=True))
    return list(zip(keys.chunk(len(frames), dim=2), values.chunk(len(frames), dim=2), strict=True))


def measured(way: str, sizes: tuple[int, int, int, int]) -> int:
    """The peak of this process after a way; meant for one of its own, whose peak nothing else raised."""
    gradient(way, *sizes)
    return memory_bytes("VmHWM")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print, and write, what each way takes over a clip without gradient, and the ratio of ours to the plain one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distillation_memory", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="Show in seconds that everything runs; measure nothing.")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args(arguments)
    sizes = _TINY if options.tiny else _NORMAL
    base, plain, beside, ours = (in_a_process_of_its_own(measured, way, sizes) for way in WAYS)
    peaks = {"plain_mb": plain, "beside_cache_mb": beside, "ours_mb": ours}
    figures = {name: (peak - base) / 1e6 for name, peak in peaks.items()}
    figures["ours_to_plain"] = figures["ours_mb"] / figures["plain_mb"]
    for name, value in figures.items():
        print(f"| {name} | {value:.2f} |")
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()

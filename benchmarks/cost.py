"""Cost of generating and conditioning, as ratios of two things measured in turn in one run.

`benchmarks/README.md` says what each figure means.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_action import ActionModulationProjection, BlockCausality, CausalRollout, CausalWanModel
from lightning_action.atomic import write_json
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import NoiseSource, frame_noise
from lightning_action.diffusion.samplers import Sampler, few_step
from lightning_action.evaluation.report.provenance import installed_version
from lightning_action.generation.rollout import rollout

Network = TypeVar("Network", bound=nn.Module)
Milliseconds = dict[str, list[float]]
Checks = dict[str, float | int | bool]
TIMESTEPS = (1000.0, 750.0, 500.0, 250.0)
TEXT_LEN, TEXT_DIM, ACTION_DIM = 32, 64, 8


@dataclass(frozen=True)
class Figure:
    """The ratio `numerator / denominator`, and the medians it comes from.

    Args:
        numerator: Name of what stands above the line.
        denominator: Name of what it is measured against.
        ratio: Median of the ratios of neighbouring measurements.
        numerator_ms: Median of the numerator, in milliseconds.
        denominator_ms: Median of the denominator, in milliseconds.
        target: Bound that the ratio should not exceed; None where nothing is promised.
    """

    numerator: str
    denominator: str
    ratio: float
    numerator_ms: float
    denominator_ms: float
    target: float | None = None


Report = tuple[dict[str, Figure], Checks]


@dataclass(frozen=True)
class Sizes:
    """Sizes of what is measured: the model, the videos, and how often.

    Args:
        dim: Width of the model.
        ffn_dim: Width of its feed-forward layers.
        num_heads: Attention heads.
        num_layers: Layers.
        channels: Latent channels.
        side: Latent rows and columns.
        num_frame_per_block: Latent frames of a block.
        local_attn_size: Window of the long video, in latent frames.
        sink_size: Sink of the long video, in latent frames.
        num_blocks: Blocks of the long video.
        compared_blocks: Blocks at its start and at its end that are compared.
        num_frames: Latent frames of every other video.
        num_training_frames: Latent frames of a teacher forcing pass; short, so that it can be repeated often.
        sequence_repeats: Measurements of a pass over many frames.
        block_repeats: Measurements of a pass over one block.
        video_repeats: Measurements of a whole video.
    """

    dim: int = 256
    ffn_dim: int = 1024
    num_heads: int = 4
    num_layers: int = 8
    channels: int = 16
    side: int = 16
    num_frame_per_block: int = 3
    local_attn_size: int = 12
    sink_size: int = 3
    num_blocks: int = 100
    compared_blocks: int = 10
    num_frames: int = 21
    num_training_frames: int = 9
    sequence_repeats: int = 48
    block_repeats: int = 100
    video_repeats: int = 6


TINY = Sizes(
    dim=24,
    ffn_dim=40,
    num_heads=2,
    num_layers=3,
    channels=4,
    side=8,
    local_attn_size=9,
    num_blocks=8,
    compared_blocks=2,
    num_frames=9,
    num_training_frames=6,
    sequence_repeats=2,
    block_repeats=3,
    video_repeats=2,
)


class Bench:
    """A model with random weights, and all that it takes to run it."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes = sizes
        self.device = device
        torch.manual_seed(0)
        self.generator = fill(
            CausalWanModel(
                dim=sizes.dim,
                ffn_dim=sizes.ffn_dim,
                num_heads=sizes.num_heads,
                num_layers=sizes.num_layers,
                in_dim=sizes.channels,
                out_dim=sizes.channels,
                text_dim=TEXT_DIM,
                text_len=TEXT_LEN,
            )
        ).to(device)
        self.shared = fill(ActionModulationProjection(ACTION_DIM, sizes.dim)).to(device)
        per_layer = ActionModulationProjection(ACTION_DIM, sizes.dim, num_layers=sizes.num_layers)
        self.per_layer = fill(per_layer).to(device)
        self.text = torch.randn(1, TEXT_LEN, TEXT_DIM).to(device)
        self.actions = torch.randn(1, sizes.num_frames, ACTION_DIM).to(device)
        self.sampler: Sampler = partial(few_step, timesteps=TIMESTEPS, schedule=FlowMatchSchedule())
        self.noise: NoiseSource = frame_noise(0, [0], self.latent_shape, device)
        self.unlimited = BlockCausality(sizes.num_frame_per_block)
        self.windowed = BlockCausality(sizes.num_frame_per_block, sizes.local_attn_size, sizes.sink_size)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of one latent frame, (C, H, W)."""
        return self.sizes.channels, self.sizes.side, self.sizes.side

    @cached_property
    def video(self) -> Tensor:
        """Noise of the size of a video, `[1, F, C, H, W]`."""
        return self.noise(range(self.sizes.num_frames), 0)

    def session(self, causality: BlockCausality) -> CausalRollout:
        """A fresh rollout."""
        return CausalRollout(
            self.generator, self.text, causality, self.sampler, self.noise, self.latent_shape, self.sizes.num_frames
        )

    def interleave(self, things: Mapping[str, Callable[[], object]], repeats: int) -> Milliseconds:
        """Measure by turns, each time beginning with the next one, so that whatever else runs here meets all alike."""
        names = list(things)
        times: Milliseconds = {name: [] for name in names}
        for repeat in range(repeats):
            first = repeat % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(self._milliseconds(things[name]))
        return times

    def _milliseconds(self, thing: Callable[[], object]) -> float:
        self._wait()
        start = perf_counter()
        thing()
        self._wait()
        return 1000 * (perf_counter() - start)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@torch.no_grad()
def fill(module: Network) -> Network:
    """Random weights for all that starts at zero, in evaluation mode."""
    for parameter in module.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    return module.eval()


def figure(times: Milliseconds, numerator: str, denominator: str, target: float | None = None) -> Figure:
    """Compare two of the things that were measured by turns."""
    above, below = times[numerator], times[denominator]
    ratio = median(a / b for a, b in zip(above, below, strict=True))
    return Figure(numerator, denominator, ratio, median(above), median(below), target)


def block_figures(bench: Bench) -> Report:
    """The first blocks of a long video after its window filled, and the last ones of the same video."""
    sizes = bench.sizes
    old, young = bench.session(bench.windowed), bench.session(bench.windowed)
    modulation = bench.shared(bench.actions)[:, : sizes.num_frame_per_block]
    before, address = old.cache.num_bytes, _addresses(old)
    for _ in range(sizes.num_blocks - sizes.compared_blocks):
        old.next_block(modulation)
    while young.block.start < sizes.local_attn_size:
        young.next_block(modulation)
    last, first = "last blocks", "first blocks after the window filled"
    times = bench.interleave(
        {last: partial(old.next_block, modulation), first: partial(young.next_block, modulation)},
        sizes.compared_blocks,
    )
    checks: Checks = {
        "blocks_generated": old.block.start // sizes.num_frame_per_block,
        "cache_bytes_before": before,
        "cache_bytes_after": old.cache.num_bytes,
        "cache_stayed_in_place": _addresses(old) == address,
    }
    return {"block_time_last_to_first": figure(times, last, first, target=1.1)}, checks


def _addresses(session: CausalRollout) -> tuple[int, int]:
    return session.cache.keys.data_ptr(), session.cache.values.data_ptr()


def action_figures(bench: Bench) -> Report:
    """Passes with actions, the projection included, and without; and without against itself, to show the noise."""
    figures: dict[str, Figure] = {}
    for name, forward, num_frames, repeats in (
        ("teacher_forcing", _teacher_forcing(bench), bench.sizes.num_training_frames, bench.sizes.sequence_repeats),
        ("denoise", _denoise(bench), bench.sizes.num_frame_per_block, bench.sizes.block_repeats),
    ):
        times = _with_and_without(bench, forward, bench.actions[:, :num_frames], repeats)
        figures[f"action_{name}"] = figure(times, "with actions", "without", target=1.03)
        figures[f"action_{name}_per_layer"] = figure(times, "with actions per layer", "without", target=1.03)
        figures[f"action_{name}_noise"] = figure(times, "without, again", "without")
    return figures, {}


def _with_and_without(
    bench: Bench, forward: Callable[[Tensor | None], Tensor], actions: Tensor, repeats: int
) -> Milliseconds:
    passes: dict[str, Callable[[], Tensor]] = {
        "with actions": lambda: forward(bench.shared(actions)),
        "without": lambda: forward(None),
        "with actions per layer": lambda: forward(bench.per_layer(actions)),
        "without, again": lambda: forward(None),
    }
    bench.interleave(passes, 1)
    return bench.interleave(passes, repeats)


def _teacher_forcing(bench: Bench) -> Callable[[Tensor | None], Tensor]:
    """One training pass, clean and noisy frames side by side."""
    video = bench.video[:, : bench.sizes.num_training_frames]
    timestep = torch.full(video.shape[:2], 500.0, device=bench.device)

    def forward(modulation: Tensor | None) -> Tensor:
        return bench.generator.teacher_forcing(video, video, timestep, bench.text, bench.unlimited, modulation)

    return forward


def _denoise(bench: Bench) -> Callable[[Tensor | None], Tensor]:
    """One denoising step behind a full window."""
    session = bench.session(bench.windowed)
    while session.block.start < bench.sizes.local_attn_size:
        session.append(bench.noise(session.block, 0))
    session.write_pending()
    noisy = bench.noise(session.block, 0)
    timestep = torch.full(noisy.shape[:2], 500.0, device=bench.device)
    text = bench.generator.text_cache(bench.text)

    def forward(modulation: Tensor | None) -> Tensor:
        return bench.generator.denoise(noisy, timestep, text, session.cache, modulation)

    return forward


def rollout_figures(bench: Bench) -> Report:
    """The same video with the cache and without."""
    modulation = bench.shared(bench.actions)
    videos = {
        "recomputed": partial(recomputed_video, bench, modulation),
        "cached": partial(cached_video, bench, modulation),
    }
    difference = (videos["recomputed"]() - videos["cached"]()).abs().max().item()
    times = bench.interleave(videos, bench.sizes.video_repeats)
    return {"rollout_recomputed_to_cached": figure(times, "recomputed", "cached")}, {
        "rollout_max_difference": difference
    }


def cached_video(bench: Bench, modulation: Tensor | None = None) -> Tensor:
    """Generate what is shipped: `[1, F, C, H, W]`, block by block under a cache."""
    return torch.cat(list(rollout(bench.session(bench.unlimited), bench.sizes.num_frames, modulation)), dim=1)


def recomputed_video(bench: Bench, modulation: Tensor) -> Tensor:
    """The slow way to the same video: every pass computes the whole past again, clean, at timestep 0."""
    past = bench.video[:, :0]
    for block in bench.unlimited.split(bench.sizes.num_frames):
        velocity = partial(velocity_after, bench, past, modulation[:, : block.stop])
        past = torch.cat([past, bench.sampler(velocity, partial(bench.noise, block))], dim=1)
    return past


def velocity_after(bench: Bench, past: Tensor, modulation: Tensor, noisy: Tensor, timestep: float) -> Tensor:
    """Velocity of `noisy`, which comes after the clean frames `past`; `modulation` is for both."""
    start = past.shape[1]
    frames = torch.cat([past, noisy], dim=1)
    timesteps = torch.zeros(frames.shape[:2], device=bench.device)
    timesteps[:, start:] = timestep
    return bench.generator.block_causal(frames, timesteps, bench.text, bench.unlimited, modulation)[:, start:]


def diffusers_figures(bench: Bench) -> Report:
    """The Wan transformer of diffusers, of the same size: one pass, a whole video, and the wait for the first block."""
    theirs = diffusers_transformer(bench)
    if theirs is None:
        say("diffusers is not installed, so nothing is compared with it: pip install 'lightning_action[wan]'")
        return {}, {}
    timestep = torch.full(bench.video.shape[:2], 500.0, device=bench.device)
    passes: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: bench.generator(bench.video, timestep, bench.text),
        "forward of diffusers": lambda: diffusers_velocity(theirs, bench.text, bench.video, 500.0),
    }
    videos: dict[str, Callable[[], Tensor]] = {
        "cached video": lambda: cached_video(bench),
        "video of diffusers": lambda: diffusers_video(bench, theirs),
        "first block": lambda: bench.session(bench.unlimited).next_block(),
    }
    for things in (passes, videos):
        bench.interleave(things, 1)
    times = bench.interleave(passes, bench.sizes.sequence_repeats)
    times |= bench.interleave(videos, bench.sizes.video_repeats)
    return {
        "forward_to_diffusers": figure(times, "forward", "forward of diffusers"),
        "video_to_diffusers": figure(times, "cached video", "video of diffusers"),
        "first_block_to_diffusers": figure(times, "first block", "video of diffusers"),
    }, {"parameters": num_parameters(bench.generator), "parameters_diffusers": num_parameters(theirs)}


def diffusers_transformer(bench: Bench) -> nn.Module | None:
    """`WanTransformer3DModel` of the generator's size with random weights; None without diffusers."""
    try:
        from diffusers import WanTransformer3DModel
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        return None
    sizes = bench.sizes
    transformer = WanTransformer3DModel(
        patch_size=bench.generator.patch_size,
        num_attention_heads=sizes.num_heads,
        attention_head_dim=sizes.dim // sizes.num_heads,
        in_channels=sizes.channels,
        out_channels=sizes.channels,
        text_dim=TEXT_DIM,
        freq_dim=bench.generator.freq_dim,
        ffn_dim=sizes.ffn_dim,
        num_layers=sizes.num_layers,
    )
    return fill(transformer).to(bench.device)


def diffusers_velocity(transformer: nn.Module, text: Tensor, noisy: Tensor, timestep: float) -> Tensor:
    """Velocity of the whole video, `[1, F, C, H, W]`, every frame seeing every frame."""
    timesteps = torch.full(noisy.shape[:1], timestep, device=noisy.device)
    return transformer(noisy.transpose(1, 2), timesteps, text, return_dict=False)[0].transpose(1, 2)


def diffusers_video(bench: Bench, transformer: nn.Module) -> Tensor:
    """Generate all frames at once, with the steps of the cached rollout."""
    velocity = partial(diffusers_velocity, transformer, bench.text)
    return bench.sampler(velocity, partial(bench.noise, range(bench.sizes.num_frames)))


def num_parameters(module: nn.Module) -> int:
    """Count the parameters of all kinds."""
    return sum(parameter.numel() for parameter in module.parameters())


MEASUREMENTS: dict[str, Callable[[Bench], Report]] = {
    "time and memory of a block": block_figures,
    "actions": action_figures,
    "cached rollout": rollout_figures,
    "diffusers": diffusers_figures,
}


@torch.no_grad()  # not inference_mode: what the package keeps between calls has to serve training as well
def measure(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Measure everything: `machine`, `sizes`, `figures` by name and `checks`, ready for JSON."""
    bench = Bench(sizes, device)
    figures: dict[str, Figure] = {}
    checks: Checks = {}
    for number, (title, measurement) in enumerate(MEASUREMENTS.items(), start=1):
        say(f"[{number}/{len(MEASUREMENTS)}] {title}")
        new_figures, new_checks = measurement(bench)
        figures |= new_figures
        checks |= new_checks
    return {
        "machine": machine(device),
        "sizes": asdict(sizes),
        "figures": {name: asdict(value) for name, value in figures.items()},
        "checks": checks,
    }


def machine(device: torch.device) -> dict[str, str | int | None]:
    """Describe what the figures were measured with."""
    diffusers = installed_version("diffusers")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"torch": torch.__version__, "diffusers": diffusers, "threads": torch.get_num_threads(), "device": name}


def table(result: Mapping[str, Any]) -> str:
    """The result in Markdown."""
    lines = ["| figure | ratio | target | of | ms | over | ms |", "|---|---:|---:|---|---:|---|---:|"]
    for name, item in result["figures"].items():
        target = "" if item["target"] is None else f"<= {item['target']:g}"
        cells = [name, f"{item['ratio']:.3f}", target, item["numerator"], f"{item['numerator_ms']:.2f}"]
        cells += [item["denominator"], f"{item['denominator_ms']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    for part in ("checks", "machine"):
        lines += ["", f"| {part} | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in result[part].items()]
    return "\n".join(lines)


def say(line: str) -> None:
    """Progress, beside the table."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="Show in seconds that everything runs; measure nothing.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="File that takes the result as well.")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="Device; default: cpu.")
    chosen = parser.parse_args(arguments)
    if chosen.json is not None and not chosen.json.parent.is_dir():
        parser.error(f"--json: there is no folder {chosen.json.parent}: make it first")
    result = measure(TINY if chosen.tiny else Sizes(), chosen.device)
    print(table(result))
    if chosen.json is not None:
        write_json(chosen.json, result)


if __name__ == "__main__":
    main()

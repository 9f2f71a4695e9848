"""Speed at which a Wan-sized model generates and trains, and gain of each optimisation.

`docs/benchmarks.md` says what each figure means. One flag for each optimization, so that its gain is visible:

    python -m benchmarks.gpu --device cuda --json plain.json
    python -m benchmarks.gpu --device cuda --only generation --compile default --overlap --json fast.json
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.profiler import ProfilerActivity, profile

from benchmarks._gpu_bench import (
    FRAMES_PER_LATENT,
    NUM_FRAME_PER_BLOCK,
    TINY,
    Bench,
    Options,
    Sizes,
    causality,
    codec_named,
    peers,
)
from lightning_action.atomic import write_json
from lightning_action.diffusion.objectives import per_frame_error, teacher_forcing
from lightning_action.distributed.sharding import Sharding, shard, shard_generator
from lightning_action.evaluation.report.provenance import installed_version
from lightning_action.generation.sampling import BlockContext
from lightning_action.generator.attention_kernels import hold_attention_kernels
from lightning_action.generator.checkpointing import Checkpointing
from lightning_action.generator.quantization import Quantization, quantize_layers

PARTS = ("generation", "peer", "training")
DECODERS = ("none", "tiny", "full")
CHECKPOINTING: dict[str, Checkpointing] = {"full": True, "keep_attention": "keep_attention", "none": False}
DATASHEET_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
Results = dict[str, Any]


@torch.no_grad()
def generation(
    built: Callable[[], Bench], decoder: str, folder: Path, window: int, context: BlockContext, rate: float
) -> Results:
    """Latency, and video frames per second once the window is full.

    Args:
        built: Function that makes what runs, once.
        decoder: Name of the decoder; `none` hands over latents.
        folder: Folder that its weights are written to.
        window: Latent frames that a block sees.
        context: View that later blocks have, with the clean pass or without.
        rate: Rate of the device, in operations a second.
    """
    bench = built()
    codec = codec_named(decoder, bench.sizes, folder)
    if codec is not None:
        codec.load()
    filling, overlap, num_timed = -(-window // NUM_FRAME_PER_BLOCK), bench.options.overlap, bench.sizes.blocks
    num_blocks = filling + num_timed + 1

    def fresh(num_blocks: int, overlaps: bool) -> Iterator[Tensor]:
        # A generator, so that the cache and the prompt's keys and values are made when the first block is asked for.
        yield from bench.pixels(codec, num_blocks, window, context, overlaps)

    # The first call of a kernel chooses it, or compiles it.
    for _ in fresh(filling + 1, overlap):
        pass
    reset_memory(bench.device)
    before = clocks(bench.device)
    # Without overlap: with it the first pixels come after the second block was queued.
    latency = next(intervals(bench, fresh(1, False)))
    # With overlap the last result waits for its decoding alone.
    waited = list(intervals(bench, fresh(num_blocks, overlap)))[filling:-1]
    free = free_running(bench, fresh(num_blocks, overlap), filling, num_timed)
    cuts = quantiles(waited, n=20, method="inclusive")
    num_frames = FRAMES_PER_LATENT * NUM_FRAME_PER_BLOCK
    found = {
        "first_frame_latency_s": latency,
        "block_s": free,
        "block_s_waited_p50": cuts[9],
        "block_s_waited_p95": cuts[18],
        "frames_per_second": num_frames / free,
        "frames_per_second_waited": num_frames / cuts[9],
        "flop_utilization": bench.block_flops(window, context) / free / rate,
        "flops_per_second": bench.block_flops(window, context) / free,
    }
    if codec is not None:
        delivered = bench.delivered(codec, num_blocks, window, context, overlap)
        found["frames_per_second_delivered"] = num_frames / free_running(bench, delivered, filling, num_timed)
    found["peak_memory_bytes"] = peak_memory(bench.device)
    return found | {"clocks_before": before, "clocks_after": clocks(bench.device)}


def intervals(bench: Bench, results: Iterator[Any]) -> Iterator[float]:
    """Seconds that each result was waited for."""
    bench.wait()
    before = perf_counter()
    for _ in results:
        bench.wait()
        now = perf_counter()
        yield now - before
        before = now


def free_running(bench: Bench, results: Iterator[Any], skipped: int, count: int) -> float:
    """Seconds of each of `count` results after the first ones, where nobody waits but at both ends."""
    for _ in range(skipped):
        next(results)
    bench.wait()
    before = perf_counter()
    for _ in range(count):
        next(results)
    bench.wait()
    return (perf_counter() - before) / count


def quantized(sizes: Sizes, options: Options) -> Bench:
    """A bench in bfloat16 whose generator is quantized, if it is to be."""
    bench = Bench(sizes, options, torch.bfloat16)
    if options.quantization is not None:
        quantize_layers(bench.generator.blocks, options.quantization)
    return bench


@torch.no_grad()
def peer(sizes: Sizes, options: Options) -> Results:
    """Milliseconds of a bidirectional pass in bfloat16, ours and diffusers', by turns; nothing is quantized."""
    bench = Bench(sizes, options, torch.bfloat16)
    passes = peers(bench)
    if len(passes) == 1:
        return {"left out": "diffusers is not installed"}
    for run in passes.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(5):
        names = list(passes)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds[name].append(next(intervals(bench, iter_calls(passes[name], 1))))
    return {f"{name} ms": 1000 * median(each) for name, each in seconds.items()}


def training(sizes: Sizes, options: Options) -> Results:
    """Seconds of a teacher-forcing step with AdamW: float32 weights, bfloat16 compute."""
    bench = Bench(sizes, options, torch.float32)
    compute = Sharding().compute_dtype
    if options.fsdp:
        mesh = init_device_mesh(bench.device.type, (dist.get_world_size(),))
        shard_generator(bench.generator, mesh, Sharding())
        shard(bench.projection, (), mesh, Sharding())
        bench.dtype = compute
    reset_memory(bench.device)
    optimizer = torch.optim.AdamW([*bench.generator.parameters(), *bench.projection.parameters()], lr=1e-5)
    shape = (1, sizes.training_frames, *bench.latent_shape)
    clean, noise = (torch.randn(shape, device=bench.device, dtype=bench.dtype) for _ in range(2))
    timestep = torch.full(shape[:2], 500.0, device=bench.device)
    text, seen = bench.text.to(bench.dtype), causality(sizes.windows[0])

    def step() -> None:
        with nullcontext() if options.fsdp else torch.autocast(bench.device.type, compute):
            modulation = bench.modulation(sizes.training_frames)
            velocities = teacher_forcing(bench.generator, clean, noise, timestep, text, seen, modulation)
        per_frame_error(velocities).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = list(intervals(bench, iter_calls(step, 1 + sizes.training_steps)))[1:]
    return {"step_s_p50": median(seconds), "step_s_min": min(seconds), "peak_memory_bytes": peak_memory(bench.device)}


def iter_calls(function: Callable[[], Any], times: int) -> Iterator[Any]:
    """The results of calling a function several times."""
    return (function() for _ in range(times))


def matrix_rate(device: torch.device, side: int) -> float:
    """Floating-point operations a second of a bfloat16 matrix product, the best of ten."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        before = perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, perf_counter() - before)
    return 2 * side**3 / best


def reset_memory(device: torch.device) -> None:
    """Begin to count anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Most bytes that were allocated on the device; 0 where that is not counted."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def clocks(device: torch.device) -> str:
    """Clocks, power and temperature of the card, as nvidia-smi tells them; empty without one."""
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()


def machine(device: torch.device, rate: float) -> Results:
    """Describe what the figures were measured with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    datasheet = next((flops for card, flops in DATASHEET_FLOPS.items() if card in name), None)
    return {
        "device": name,
        "matrix_flops_per_second": rate,
        "datasheet_flops_per_second": datasheet,
        "attention": attention_operations(device),
        "threads": torch.get_num_threads(),
        "cudnn": torch.backends.cudnn.version(),
        "torch": str(torch.__version__),
        **{package: installed_version(package) for package in ("triton", "diffusers", "torchao")},
    }


def attention_operations(device: torch.device) -> list[str]:
    """Operations that scaled dot product attention in bfloat16 with heads of 128 channels ends in."""
    q = torch.randn(1, 2, 256, 128, device=device, dtype=torch.bfloat16)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    return sorted({event.key for event in seen.key_averages() if event.key.startswith("aten::_scaled_dot_product")})


def measure(sizes: Sizes, options: Options, parts: Sequence[str], decoders: Sequence[str]) -> Iterator[Results]:
    """Yield everything that was measured so far, after each part; a part that cannot run says why and ends nothing."""
    device = torch.device(options.device)
    hold_attention_kernels(device)
    rate = matrix_rate(device, sizes.matrix_side)
    result: Results = {"machine": machine(device, rate), "sizes": asdict(sizes), "options": asdict(options)}
    result |= {part: {} for part in parts}
    if "generation" in parts:
        with tempfile.TemporaryDirectory() as folder:
            built = cache(partial(quantized, sizes, options))
            for decoder, window, context in product(decoders, sizes.windows, get_args(BlockContext)):
                name = f"{decoder}, window {window}, {context}"
                say(f"generating, decoder {name}")
                figures = partial(generation, built, decoder, Path(folder), window, context, rate)
                result["generation"][name] = attempted(figures)
                yield result
            built.cache_clear()
    if "peer" in parts:
        say("the peer")
        result["peer"] = attempted(partial(peer, sizes, options))
        yield result
    if "training" in parts:
        say("training")
        result["training"] = attempted(partial(training, sizes, options))
        yield result


def attempted(part: Callable[[], Results]) -> Results:
    """The figures of a part, or why there are none."""
    try:
        return part()
    except (RuntimeError, ImportError, ValueError) as error:
        return {"left out": str(error).splitlines()[0]}


def table(result: Results) -> str:
    """The figures in Markdown."""
    lines = []
    for part in (part for part in PARTS if part in result):
        rows = result[part] if part == "generation" else {part: result[part]}
        lines += ["", f"## {part}"]
        for name, figures in rows.items():
            lines += ["", f"| {name} | |", "|---|---:|"]
            lines += [f"| {key} | {_rounded(value)} |" for key, value in figures.items()]
    return "\n".join(lines)


def _rounded(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def say(line: str) -> None:
    """Progress, beside the table."""
    print(line, file=sys.stderr, flush=True)


def start_processes(options: Options) -> None:
    """Join the ranks that `torchrun` started, each on a device of its own, or be the only one."""
    on_cuda = options.device.startswith("cuda")
    backend = "nccl" if on_cuda else "gloo"
    if dist.is_torchelastic_launched():
        if on_cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="Device, such as cuda.")
    parser.add_argument("--tiny", action="store_true", help="Measure a model of seconds, to show that everything runs.")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="Parts to measure.")
    parser.add_argument("--decoders", choices=DECODERS, nargs="+", default=DECODERS[:2], help="Decoders of generation.")
    parser.add_argument("--compile", metavar="MODE", help="Mode of torch.compile for the layers, or default.")
    parser.add_argument("--quantization", choices=get_args(Quantization), help="Quantization of layers that generate.")
    parser.add_argument("--capture", action="store_true", help="Compile the whole pass; on CUDA as a CUDA graph.")
    parser.add_argument("--overlap", action="store_true", help="Decode a block while the next one is denoised.")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="Tokens of the prompt, of 512; default: 32.")
    parser.add_argument("--no-actions", action="store_true", help="Leave the action conditioning out.")
    parser.add_argument("--attention", choices=["fp8"], help="Attention in 8 bits, in generation.")
    parser.add_argument("--checkpointing", choices=CHECKPOINTING, default="full", help="Checkpointing of training.")
    parser.add_argument("--no-flex", action="store_true", help="Train without FlexAttention, by block.")
    parser.add_argument("--fsdp", action="store_true", help="Shard the training step, also with one process.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="File that takes the result too, after each part.")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cpu" and not chosen.tiny:
        parser.exit(message="a model of this size takes hours on a CPU: give --device cuda, or --tiny\n")
    if chosen.checkpointing == "keep_attention" and not chosen.no_flex:
        parser.error("--checkpointing keep_attention: what FlexAttention gives cannot be kept, give --no-flex too")
    if chosen.json is not None and not chosen.json.parent.is_dir():
        parser.error(f"--json: there is no folder {chosen.json.parent}: make it first")
    options = Options(
        device=chosen.device,
        compile_mode=chosen.compile,
        quantization=chosen.quantization,
        attention=chosen.attention,
        capture=chosen.capture,
        overlap=chosen.overlap,
        prompt_tokens=chosen.prompt_tokens,
        actions=not chosen.no_actions,
        checkpointing=CHECKPOINTING[chosen.checkpointing],
        flex=not chosen.no_flex,
        fsdp=chosen.fsdp,
    )
    if options.fsdp:
        start_processes(options)
    is_first = not options.fsdp or dist.get_rank() == 0
    result: Results = {}
    for result in measure(TINY if chosen.tiny else Sizes(), options, chosen.only, chosen.decoders):
        if is_first and chosen.json is not None:
            write_json(chosen.json, result)
    if is_first:
        print(table(result))
    if options.fsdp:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

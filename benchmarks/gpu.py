"""How fast a Wan-sized model generates and trains, and what each optimization gains.

`docs/benchmarks.md` says what each figure means. One flag for each optimization, so that its gain is visible:

    python benchmarks/gpu.py --device cuda --json plain.json
    python benchmarks/gpu.py --device cuda --compile default --overlap --json fast.json
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from lightning_action import ActionModulationProjection, BlockCausality, CausalRollout, CausalWanModel
from lightning_action.atomic import write_json
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import frame_noise
from lightning_action.diffusion.objectives import per_frame_error, teacher_forcing
from lightning_action.diffusion.samplers import few_step
from lightning_action.distributed.sharding import Sharding, shard, shard_generator
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.holder import FrozenParts
from lightning_action.frozen.interfaces import VideoCodec
from lightning_action.frozen.tiny_vae import TinyWanVAE
from lightning_action.frozen.wan_vae import WanVideoVAE
from lightning_action.generation.rollout import rollout
from lightning_action.generation.video import decode_behind
from lightning_action.generator.acceleration import Quantization, quantize_layers
from lightning_action.generator.causality import Visibility
from lightning_action.generator.cost import video_flops
from lightning_action.weights.safetensors_files import write_safetensors

SCHEDULE = FlowMatchSchedule(5.0)
TIMESTEPS = SCHEDULE.denoising_timesteps([1000, 750, 500, 250], warp_denoising_step=True)
CAUSALITY = BlockCausality(num_frame_per_block=3, local_attn_size=12, sink_size=3)
WINDOW_BLOCKS = 4
FRAMES_PER_LATENT = 4
ACTION_DIM = 8


@dataclass(frozen=True)
class Sizes:
    """What is measured: the defaults are Wan 2.1 1.3B at 480 x 832.

    Args:
        dim: width of the generator.
        ffn_dim: width of its feed-forward layers.
        num_heads: attention heads.
        num_layers: layers.
        text_dim: channels of a prompt.
        text_len: tokens of a prompt.
        height: latent rows.
        width: latent columns.
        vae_dim: width of the full VAE.
        tiny_vae_dims: widths of the tiny VAE's decoder.
        blocks: measured blocks, after those that fill the window.
        training_frames: latent frames of a training step.
        training_steps: measured training steps, after one that is not.
        matrix_side: rows of the matrices that the device's rate is measured with.
    """

    dim: int = 1536
    ffn_dim: int = 8960
    num_heads: int = 12
    num_layers: int = 30
    text_dim: int = 4096
    text_len: int = 512
    height: int = 60
    width: int = 104
    vae_dim: int = 96
    tiny_vae_dims: tuple[int, ...] = (256, 128, 64, 64)
    blocks: int = 24
    training_frames: int = 21
    training_steps: int = 5
    matrix_side: int = 8192


TOY = Sizes(48, 64, 2, 2, 32, 8, 4, 6, 8, (8, 6, 5, 4), 4, 6, 1, 128)


@dataclass(frozen=True)
class Options:
    """What is switched on.

    Args:
        device: where everything runs.
        compile_mode: of `torch.compile`, for the layers; None leaves them as they are.
        quantization: of the layers' weights in generation; None for none.
        overlap: decode a block while the next one is denoised.
        actions: give actions, their projection included.
        checkpointing: recompute layers in the backward pass.
        fsdp: shard the training step over the ranks (`torchrun`; one process is a mesh of one).
    """

    device: str = "cpu"
    compile_mode: str | None = None
    quantization: Quantization | None = None
    overlap: bool = False
    actions: bool = True
    checkpointing: bool = True
    fsdp: bool = False


class Bench:
    """A generator with random weights, and all that it takes to run it."""

    def __init__(self, sizes: Sizes, options: Options, dtype: torch.dtype) -> None:
        self.sizes, self.options, self.dtype = sizes, options, dtype
        self.device = torch.device(options.device)
        torch.manual_seed(0)
        with self.device:
            self.generator = CausalWanModel(
                sizes.dim,
                sizes.ffn_dim,
                sizes.num_heads,
                sizes.num_layers,
                text_dim=sizes.text_dim,
                text_len=sizes.text_len,
                activation_checkpointing=options.checkpointing,
            ).to(dtype)
            self.projection = ActionModulationProjection(ACTION_DIM, sizes.dim, zero_init=False).to(dtype)
            self.text = torch.randn(1, sizes.text_len, sizes.text_dim).to(dtype)
        if options.compile_mode is not None:
            self.generator.compile_layers(mode=options.compile_mode)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of one latent frame, (C, H, W)."""
        return self.generator.out_dim, self.sizes.height, self.sizes.width

    def blocks(self, num_blocks: int) -> Iterator[Tensor]:
        """Latents of each block of a fresh video."""
        num_frames = num_blocks * CAUSALITY.num_frame_per_block
        noise = frame_noise(0, [0], self.latent_shape, self.device, self.dtype)
        sampler = partial(few_step, timesteps=TIMESTEPS, schedule=SCHEDULE)
        session = CausalRollout(self.generator, self.text, CAUSALITY, sampler, noise, self.latent_shape, num_frames)
        return rollout(session, num_frames, self._modulation if self.options.actions else None)

    def modulation(self, num_frames: int) -> Tensor:
        """Of some actions, `[1, F, 6, D]`."""
        return self.projection(torch.ones(1, num_frames, ACTION_DIM, device=self.device, dtype=self.dtype))

    def _modulation(self, block: range, history: Tensor) -> Tensor:
        return self.modulation(len(block))

    def wait(self) -> None:
        """For the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def codecs(sizes: Sizes, folder: Path) -> dict[str, VideoCodec | None]:
    """No decoder, the full VAE and the tiny one, with random weights of the real formats."""
    from diffusers import AutoencoderKLWan

    AutoencoderKLWan(base_dim=sizes.vae_dim).save_pretrained(folder / "vae")
    tiny = folder / "taew2_1.safetensors"
    write_safetensors(tiny, tiny_decoder_tensors(sizes.tiny_vae_dims), {})
    return {
        "none": None,
        "full": WanVideoVAE(str(folder / "vae"), dtype="bfloat16"),
        "tiny": TinyWanVAE(str(tiny), dtype="bfloat16"),
    }


@torch.no_grad()
def generation(bench: Bench, codec: VideoCodec | None, flops_per_second: float) -> dict[str, float]:
    """Latency, and video frames per second once the window is full."""
    if codec is not None:
        codec.load()
    for _ in pixels(bench, codec, WINDOW_BLOCKS + 1):  # the first call of a kernel chooses it, or compiles it
        pass
    reset_memory(bench.device)
    seconds = list(intervals(bench, pixels(bench, codec, WINDOW_BLOCKS + bench.sizes.blocks)))
    cuts = quantiles(seconds[WINDOW_BLOCKS:], n=20, method="inclusive")
    p50, p95 = cuts[9], cuts[18]
    num_frames = FRAMES_PER_LATENT * CAUSALITY.num_frame_per_block
    return {
        "first_frame_latency_s": seconds[0],
        "block_s_p50": p50,
        "block_s_p95": p95,
        "frames_per_second_p50": num_frames / p50,
        "frames_per_second_p95": num_frames / p95,
        "flop_utilization": block_flops(bench) / p50 / flops_per_second,
        "peak_memory_bytes": peak_memory(bench.device),
    }


def tiny_decoder_tensors(widths: Sequence[int], latent_dim: int = 16) -> dict[str, Tensor]:
    """Random weights of a decoder in the format of `taew2_1.pth`."""
    shapes: dict[str, tuple[int, ...]] = {"1": (widths[0], latent_dim, 3, 3), "22": (3, widths[3], 3, 3)}
    for first, growth, width, next_width in zip((3, 9, 15), (1, 2, 2), widths, widths[1:], strict=False):
        for block in range(first, first + 3):
            shapes[f"{block}.conv.0"] = (width, 2 * width, 3, 3)
            shapes |= {f"{block}.conv.{place}": (width, width, 3, 3) for place in (2, 4)}
        shapes[f"{first + 4}.conv"] = (growth * width, width, 1, 1)
        shapes[f"{first + 5}"] = (next_width, width, 3, 3)
    without_bias = {f"{first + place}" for first in (3, 9, 15) for place in (4, 5)}
    tensors = {f"decoder.{name}.weight": torch.randn(shape) / shape[1] for name, shape in shapes.items()}
    biased = {name: shape for name, shape in shapes.items() if name.removesuffix(".conv") not in without_bias}
    return tensors | {f"decoder.{name}.bias": torch.zeros(shape[0]) for name, shape in biased.items()}


def pixels(bench: Bench, codec: VideoCodec | None, num_blocks: int) -> Iterator[Tensor]:
    """What each block gives: pixels, or latents without a decoder."""
    blocks = bench.blocks(num_blocks)
    if codec is None:
        return blocks
    decode = FrozenParts(HashingTextEncoder(), codec).decoder(bench.device)
    return decode_behind(blocks, decode) if bench.options.overlap else map(decode, blocks)


def intervals(bench: Bench, results: Iterator[Tensor]) -> Iterator[float]:
    """Seconds that each result was waited for."""
    bench.wait()
    before = perf_counter()
    for _ in results:
        bench.wait()
        now = perf_counter()
        yield now - before
        before = now


def block_flops(bench: Bench) -> float:
    """Of all passes of one block behind a full window, decoding not counted."""
    window, size = CAUSALITY.local_attn_size or 0, CAUSALITY.num_frame_per_block
    seen = Visibility(range(window - size, window), (range(window),))
    tokens = bench.generator.tokens_per_frame(bench.sizes.height, bench.sizes.width)
    return (len(TIMESTEPS) + 1) * video_flops(bench.generator, (seen,), tokens).total


def training(sizes: Sizes, options: Options) -> dict[str, float]:
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
    text = bench.text.to(bench.dtype)

    def step() -> None:
        with nullcontext() if options.fsdp else torch.autocast(bench.device.type, compute):
            modulation = bench.modulation(sizes.training_frames)
            velocities = teacher_forcing(bench.generator, clean, noise, timestep, text, CAUSALITY, modulation)
        per_frame_error(velocities).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = list(intervals(bench, iter_calls(step, 1 + sizes.training_steps)))
    return {"step_s": min(seconds[1:]), "peak_memory_bytes": peak_memory(bench.device)}


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


def measure(sizes: Sizes, options: Options) -> dict[str, Any]:
    """Everything, ready for JSON."""
    device = torch.device(options.device)
    rate = matrix_rate(device, sizes.matrix_side)
    bench = Bench(sizes, options, torch.bfloat16)
    if options.quantization is not None:
        quantize_layers(bench.generator.blocks, options.quantization)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, codec in codecs(sizes, Path(folder)).items():
            say(f"generating, decoder: {name}")
            results[name] = generation(bench, codec, rate)
    del bench
    say("training")
    return {
        "machine": machine(device) | {"matrix_flops_per_second": rate},
        "sizes": asdict(sizes),
        "options": asdict(options),
        "generation": results,
        "training": training(sizes, options),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads()}


def table(result: dict[str, Any]) -> str:
    """The figures in Markdown."""
    keys = list(result["generation"]["none"])
    lines = ["| decoder | " + " | ".join(keys) + " |", "|---|" + "---:|" * len(keys)]
    for name, figures in result["generation"].items():
        lines.append(f"| {name} | " + " | ".join(f"{figures[key]:.4g}" for key in keys) + " |")
    lines += ["", "| training | |", "|---|---:|"]
    lines += [f"| {key} | {value:.4g} |" for key, value in result["training"].items()]
    return "\n".join(lines)


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
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--toy", action="store_true", help="a model of seconds: shows that everything runs")
    parser.add_argument("--compile", metavar="MODE", help="compile the layers; a mode of torch.compile, or default")
    parser.add_argument("--quantization", choices=get_args(Quantization), help="of the layers, in generation")
    parser.add_argument("--overlap", action="store_true", help="decode a block while the next one is denoised")
    parser.add_argument("--no-actions", action="store_true", help="leave the action conditioning out")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations of a training step")
    parser.add_argument("--fsdp", action="store_true", help="shard the training step (also with one process)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    chosen = parser.parse_args(arguments)
    if chosen.json is not None and not chosen.json.parent.is_dir():
        parser.error(f"--json: there is no folder {chosen.json.parent}: make it first")
    options = Options(
        chosen.device,
        chosen.compile,
        chosen.quantization,
        chosen.overlap,
        not chosen.no_actions,
        not chosen.no_checkpointing,
        chosen.fsdp,
    )
    if options.fsdp:
        start_processes(options)
    result = measure(TOY if chosen.toy else Sizes(), options)
    if not options.fsdp or dist.get_rank() == 0:
        print(table(result))
        if chosen.json is not None:
            write_json(chosen.json, result)
    if options.fsdp:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Parts that `benchmarks.gpu` runs: a model of the shape of Wan 2.1 1.3B with random weights, decoders, and a peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_action import ActionModulationProjection, BlockCausality, CausalRollout, CausalWanModel
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import frame_noise
from lightning_action.diffusion.samplers import few_step
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.holder import FrozenParts
from lightning_action.frozen.interfaces import StreamingDecoder, VideoCodec
from lightning_action.frozen.tiny_vae import TinyWanVAE
from lightning_action.frozen.wan_vae import WanVideoVAE
from lightning_action.generation.captured_pass import CapturedPass
from lightning_action.generation.rollout import rollout
from lightning_action.generation.sampling import BlockContext
from lightning_action.generation.video import on_own_stream, one_block_late, to_host
from lightning_action.generator.acceleration import Acceleration
from lightning_action.generator.causality import Visibility
from lightning_action.generator.checkpointing import Checkpointing
from lightning_action.generator.estimates import video_flops
from lightning_action.generator.quantization import Quantization
from lightning_action.weights.safetensors_files import write_safetensors

SCHEDULE = FlowMatchSchedule(5.0)
TIMESTEPS = SCHEDULE.denoising_timesteps([1000, 750, 500, 250], warp_denoising_step=True)
NUM_FRAME_PER_BLOCK = 3
FRAMES_PER_LATENT = 4
ACTION_DIM = 8


@dataclass(frozen=True)
class Sizes:
    """Sizes of what is measured: the defaults are Wan 2.1 1.3B at 480 x 832.

    Args:
        dim: Width of the generator.
        ffn_dim: Width of its feed-forward layers.
        num_heads: Attention heads.
        num_layers: Layers.
        text_dim: Channels of a prompt.
        text_len: Tokens of a prompt.
        height: Latent rows.
        width: Latent columns.
        vae_dim: Width of the full VAE.
        tiny_vae_dims: Widths of the tiny VAE's decoder.
        windows: Latent frames that a block sees, itself included, one after the other.
        blocks: Measured blocks, after those that fill the window.
        training_frames: Latent frames of a training step, and of the peer's pass.
        training_steps: Measured training steps, after one that is not.
        matrix_side: Rows of the matrices that the device's rate is measured with.
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
    windows: tuple[int, ...] = (12, 21)
    blocks: int = 60
    training_frames: int = 21
    training_steps: int = 5
    matrix_side: int = 8192


TINY = Sizes(48, 64, 2, 2, 32, 80, 2, 4, 8, (8, 6, 5, 4), (6, 9), 2, 6, 1, 128)


@dataclass(frozen=True)
class Options:
    """Options that are switched on.

    Args:
        device: Device that everything runs on.
        compile_mode: Mode of `torch.compile` for the layers; None leaves them as they are.
        quantization: Quantization of the layers' weights in generation; None for none.
        attention: `fp8` for attention in 8 bits in generation; None for none.
        capture: Compile the whole pass behind a full window; on CUDA as a CUDA graph.
        overlap: Decode a block while the next one is denoised.
        prompt_tokens: Tokens of the prompt, which padding fills up.
        actions: Give actions, their projection included.
        checkpointing: Recompute layers in the backward pass, with or without their attention.
        flex: Use FlexAttention in training on CUDA; else scaled dot-product attention by block.
        fsdp: Shard the training step over the ranks (`torchrun`; one process is a mesh of one).
    """

    device: str = "cpu"
    compile_mode: str | None = None
    quantization: Quantization | None = None
    attention: Literal["fp8"] | None = None
    capture: bool = False
    overlap: bool = False
    prompt_tokens: int = 32
    actions: bool = True
    checkpointing: Checkpointing = True
    flex: bool = True
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
                flex_on_cuda=options.flex,
            ).to(dtype)
            self.projection = ActionModulationProjection(ACTION_DIM, sizes.dim, zero_init=False).to(dtype)
            self.text = torch.randn(1, min(options.prompt_tokens, sizes.text_len), sizes.text_dim).to(dtype)
        if options.compile_mode is not None:
            self.generator.compile_layers(mode=options.compile_mode)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of one latent frame, (C, H, W)."""
        return self.generator.out_dim, self.sizes.height, self.sizes.width

    def blocks(self, num_blocks: int, window: int, context: BlockContext) -> Iterator[Tensor]:
        """Latents of each block of a fresh video."""
        num_frames = num_blocks * NUM_FRAME_PER_BLOCK
        session = CausalRollout(
            self.generator,
            self.text,
            causality(window),
            partial(few_step, timesteps=TIMESTEPS, schedule=SCHEDULE),
            frame_noise(0, [0], self.latent_shape, self.device, self.dtype),
            self.latent_shape,
            num_frames,
            context=context,
            capture=CapturedPass if self.options.capture else None,
            kernel=Acceleration(attention=self.options.attention).kernel(self.device, self.generator.head_dim),
        )
        return rollout(session, num_frames, self._modulation if self.options.actions else None)

    def pixels(
        self, codec: VideoCodec | None, num_blocks: int, window: int, context: BlockContext, overlap: bool
    ) -> Iterator[Tensor]:
        """Give the output of each block: pixels, or latents without a decoder."""
        blocks = self.blocks(num_blocks, window, context)
        if codec is None:
            return blocks
        decode = self._decoder(codec)
        return one_block_late(blocks, on_own_stream(decode)) if overlap else map(decode, blocks)

    def delivered(
        self, codec: VideoCodec, num_blocks: int, window: int, context: BlockContext, overlap: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the output of each block on the host, as `predict` takes it: bytes, and whether they are finite."""
        return to_host(self.blocks(num_blocks, window, context), self._decoder(codec), overlap)

    def block_flops(self, window: int, context: BlockContext) -> float:
        """Count the operations of all passes of one block behind a full window, decoding not counted."""
        seen = Visibility(range(window - NUM_FRAME_PER_BLOCK, window), (range(window),))
        tokens = self.generator.tokens_per_frame(self.sizes.height, self.sizes.width)
        return (len(TIMESTEPS) + (context == "clean")) * video_flops(self.generator, (seen,), tokens).total

    def modulation(self, num_frames: int) -> Tensor:
        """Modulation of some actions, `[1, F, 6, D]`."""
        return self.projection(torch.ones(1, num_frames, ACTION_DIM, device=self.device, dtype=self.dtype))

    def _decoder(self, codec: VideoCodec) -> StreamingDecoder:
        return FrozenParts(HashingTextEncoder(), codec).decoder(self.device)

    def _modulation(self, block: range, history: Tensor) -> Tensor:
        return self.modulation(len(block))

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def causality(window: int) -> BlockCausality:
    """Blocks of three latent frames with a sink of one block."""
    return BlockCausality(NUM_FRAME_PER_BLOCK, window, sink_size=3)


def codec_named(name: str, sizes: Sizes, folder: Path) -> VideoCodec | None:
    """No decoder, the full VAE or the tiny one, with random weights of the real formats.

    Raises:
        ImportError: The full one needs diffusers.
    """
    if name == "none":
        return None
    if name == "tiny":
        tiny = folder / "taew2_1.safetensors"
        write_safetensors(tiny, tiny_decoder_tensors(sizes.tiny_vae_dims), {})
        return TinyWanVAE(str(tiny), dtype="bfloat16")
    from diffusers import AutoencoderKLWan

    AutoencoderKLWan(base_dim=sizes.vae_dim).save_pretrained(folder / "vae")
    return WanVideoVAE(str(folder / "vae"), dtype="bfloat16")


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


def peers(bench: Bench) -> dict[str, Callable[[], Tensor]]:
    """One bidirectional pass over the frames of a training step: ours, and that of diffusers, if it is there."""
    sizes, generator = bench.sizes, bench.generator
    latents = torch.randn(1, sizes.training_frames, *bench.latent_shape, device=bench.device, dtype=bench.dtype)
    timestep = torch.full(latents.shape[:2], 500.0, device=bench.device)
    found = {"ours": lambda: generator(latents, timestep, bench.text)}
    if find_spec("diffusers") is None:
        return found
    theirs = diffusers_model(sizes).to(bench.device, bench.dtype)
    channels_first = latents.transpose(1, 2).contiguous()

    def pass_of(model: Callable[..., tuple[Tensor]]) -> Callable[[], Tensor]:
        return lambda: model(channels_first, timestep[:, 0], bench.text, return_dict=False)[0]

    return found | {"diffusers": pass_of(theirs), "diffusers, compiled": pass_of(torch.compile(theirs))}


def diffusers_model(sizes: Sizes) -> nn.Module:
    """The same network from diffusers, with random weights."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=sizes.num_heads,
        attention_head_dim=sizes.dim // sizes.num_heads,
        text_dim=sizes.text_dim,
        ffn_dim=sizes.ffn_dim,
        num_layers=sizes.num_layers,
    )

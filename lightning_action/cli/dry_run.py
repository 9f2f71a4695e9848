"""A configuration looked at before it is run: sizes, shapes and costs.

The networks are on the meta device: nothing is allocated, nothing is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_action.batch import Batch, frame_size
from lightning_action.batch_checks import latent_frames
from lightning_action.diffusion import objectives
from lightning_action.frozen.interfaces import FrozenPart
from lightning_action.generator.causality import Visibility
from lightning_action.generator.cost import (
    Flops,
    Parameters,
    activation_bytes,
    context_cache_bytes,
    context_flops,
    count,
    kv_cache_bytes,
    num_passes_of_training,
    parameters_by_part,
    training_flops,
    video_flops,
)
from lightning_action.module import ActionVideoModule


@dataclass(frozen=True)
class Precision:
    """The types of the weights, of the keys and values in the cache, and of what is computed."""

    weights: torch.dtype
    cache: torch.dtype
    compute: torch.dtype


@dataclass(frozen=True)
class ActionTime:
    """A latent frame, the pixel frames it stands for, and the action rows that belong to it."""

    latent: int
    pixel_frames: list[int]
    action_rows: list[int]


@dataclass(frozen=True)
class Report:
    """What a dry run finds; shapes and costs are there if there are no problems.

    Attributes:
        parameters: of every part; None where only its files know.
        problems: what of the data does not fit the model.
        shapes: of every stage.
        blocks: tokens and latent frames.
        memory: bytes.
        flops: floating-point operations.
        action_times: of every latent frame.
    """

    parameters: dict[str, Parameters | None]
    problems: list[str]
    shapes: dict[str, list[int]] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    flops: dict[str, Flops] = field(default_factory=dict)
    action_times: list[ActionTime] = field(default_factory=list)


@dataclass(frozen=True)
class Geometry:
    """Sizes of one batch.

    Attributes:
        batch_size: videos.
        num_latents: latent frames, F.
        pixels: height and width.
        latent_shape: of a latent frame, (C, h, w).
        tokens_per_frame: of a latent frame.
    """

    batch_size: int
    num_latents: int
    pixels: tuple[int, int]
    latent_shape: tuple[int, int, int]
    tokens_per_frame: int


def geometry(module: ActionVideoModule, batch: Batch, trains: bool) -> Geometry:
    """The sizes that a batch gives; `trains`: it is one to train on.

    Raises:
        ValueError: it gives none, or they do not fit VAE and generator.
    """
    pixels = frame_size(batch)
    shape = module.frozen.vae.latent_shape(*pixels)
    tokens = module.generator.tokens_per_frame(*shape[1:])
    return Geometry(len(batch["sample_id"]), latent_frames(module.schema, batch, trains), pixels, shape, tokens)


def parameters_of(module: ActionVideoModule) -> dict[str, Parameters | None]:
    """Parameters of every part of a run; None where only the files of a frozen part know."""
    generator = module.generator
    found: dict[str, Parameters | None] = {"generator": count(generator.parameters())}
    found |= {f"generator/{part}": numbers for part, numbers in parameters_by_part(generator).items()}
    for name, part in (("action projection", module.action_projection), ("action module", module.action_module)):
        if part is not None:
            found[name] = count(part.parameters())
    for name, frozen in (("text encoder", module.frozen.text_encoder), ("VAE", module.frozen.vae)):
        released = ", as released" if frozen.num_parameters_released else ""
        found[f"{name}, {type(frozen).__name__}{released}"] = _frozen_parameters(frozen)
    return found


def _frozen_parameters(part: FrozenPart) -> Parameters | None:
    if isinstance(part, nn.Module):
        return Parameters(0, count(part.parameters()).total)
    if part.num_parameters_released is not None:
        return Parameters(0, part.num_parameters_released)
    return None if reads_files(part) else Parameters(0, 0)


def reads_files(part: FrozenPart) -> bool:
    """Whether a frozen part has weights, which are not there in a dry run."""
    return type(part).load is not FrozenPart.load


def shapes(module: ActionVideoModule, sizes: Geometry) -> dict[str, list[int]]:
    """The shape of every stage, from pixels to velocity."""
    batch, frames, generator, schema = sizes.batch_size, sizes.num_latents, module.generator, module.schema
    found = {
        "video [B, T, 3, H, W]": [batch, _pixel_frames(module, frames), 3, *sizes.pixels],
        "latents [B, F, C, h, w]": [batch, frames, *sizes.latent_shape],
        "tokens [B, F, S, D]": [batch, frames, sizes.tokens_per_frame, generator.dim],
        "text [B, L, text_dim]": [batch, generator.text_len, generator.text_dim],
        "time modulation [B, F, 6, D]": [batch, frames, 6, generator.dim],
    }
    if module.action_projection is not None:
        found["action rows [B, rows, columns]"] = [batch, schema.num_rows(frames), schema.num_columns]
        found["action vectors [B, F, A]"] = [batch, frames, schema.action_dim]
        found["action modulation [B, F, ..., 6, D]"] = list(empty_modulation(module, batch, frames).shape)
    found["velocity [B, F, C, h, w]"] = [batch, frames, generator.out_dim, *sizes.latent_shape[1:]]
    return found


def blocks(module: ActionVideoModule, sizes: Geometry) -> dict[str, int]:
    """How the video is cut, in latent frames and tokens."""
    of_video = module.causality.split(sizes.num_latents)
    seen = max(sum(map(len, module.causality.past(block))) + len(block) for block in of_video)
    return {
        "tokens of a latent frame": sizes.tokens_per_frame,
        "tokens of a block": len(of_video[-1]) * sizes.tokens_per_frame,
        "tokens of the video": sizes.num_latents * sizes.tokens_per_frame,
        "blocks of the video": len(of_video),
        "latent frames of a block": len(of_video[-1]),
        "latent frames that a block sees, at most": seen,
    }


def flops(module: ActionVideoModule, sizes: Geometry) -> dict[str, Flops]:
    """Floating-point operations of generating the last block of one video, and of a training step."""
    generator, tokens = module.generator, sizes.tokens_per_frame
    block = module.causality.split(sizes.num_latents)[-1]
    seen = (*module.causality.past(block), block)
    one_pass = video_flops(generator, (Visibility(block, seen),), tokens)
    num_steps = module.sampling.num_steps
    generated = one_pass * ((num_steps + 1) * _num_branches(module))
    num_pixel_frames = len(block) * module.frozen.vae.temporal_compression_ratio
    training = training_flops(generator, _training_visibility(module, sizes), tokens)
    num_passes = num_passes_of_training(generator)
    branches = " x 2 branches" if _num_branches(module) == 2 else ""
    return {
        f"one pass of a block of {len(block)}, which sees {sum(map(len, seen))} latent frames": one_pass,
        f"a block generated ({num_steps} steps + 1 clean pass{branches})": generated,
        "for each pixel frame of it": generated * (1 / num_pixel_frames),
        "the prompt, once a video": context_flops(generator),
        f"a training step (batch of {sizes.batch_size}, {num_passes} x forward)": training * sizes.batch_size,
    }


def memory(module: ActionVideoModule, sizes: Geometry, precision: Precision) -> dict[str, int]:
    """Bytes on one device that holds everything, without the frozen parts."""
    generator, causality, tokens = module.generator, module.causality, sizes.tokens_per_frame
    window = causality.local_attn_size or sizes.num_latents
    cache = _num_branches(module) * kv_cache_bytes(generator, causality, sizes.num_latents, tokens, precision.cache)
    numbers, bytes_each = count(module.parameters()), precision.weights.itemsize
    frames = sum(len(item.query) for item in _training_visibility(module, sizes))
    activations = activation_bytes(generator, sizes.batch_size * frames * tokens, precision.compute)
    kind = "checkpointed" if generator.activation_checkpointing else "not checkpointed"
    return {
        f"weights, {_name(precision.weights)}": numbers.total * bytes_each,
        f"KV cache of a latent frame, {_name(precision.cache)}": cache // window,
        f"KV cache of {window} latent frames": cache,
        "cross-attention cache of a prompt": context_cache_bytes(generator, precision.cache),
        "training: gradients": numbers.trainable * bytes_each,
        "training: moments of AdamW": 2 * numbers.trainable * bytes_each,
        f"training: activations, {_name(precision.compute)}, {kind}": activations,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def action_times(module: ActionVideoModule, num_frames: int) -> list[ActionTime]:
    """Which pixel frames and action rows belong to each latent frame; nothing for a model without actions."""
    if module.action_projection is None:
        return []
    ratio, schema = module.schema.temporal_compression_ratio, module.schema
    return [
        ActionTime(
            latent, list(range(max(0, ratio * (latent - 1) + 1), ratio * latent + 1)), list(schema.rows_of(latent))
        )
        for latent in range(num_frames)
    ]


def empty_modulation(module: ActionVideoModule, batch_size: int, num_frames: int) -> Tensor:
    """What the action projection gives, on the meta device."""
    assert module.action_projection is not None
    vectors = torch.empty(batch_size, num_frames, module.schema.action_dim, device="meta")
    modulation: Tensor = module.action_projection(vectors)
    return modulation


def _num_branches(module: ActionVideoModule) -> int:
    """Guidance runs a branch without actions beside the one with them."""
    return 1 if module.sampling.action_guidance_scale in (0.0, 1.0) else 2


def _training_visibility(module: ActionVideoModule, sizes: Geometry) -> tuple[Visibility, ...]:
    return objectives.training_visibility(module.objective, sizes.num_latents, module.causality)


def _pixel_frames(module: ActionVideoModule, num_frames: int) -> int:
    return 1 + module.frozen.vae.temporal_compression_ratio * (num_frames - 1)

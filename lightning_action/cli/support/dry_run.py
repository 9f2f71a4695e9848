"""A configuration looked at before it is run: sizes, shapes and costs.

The networks are on the meta device: nothing is allocated, nothing is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_action.action.schema import ActionSchema
from lightning_action.batch import Batch, frame_size, num_pixel_frames, pixel_frames_of
from lightning_action.diffusion import objectives
from lightning_action.frozen.interfaces import FrozenPart
from lightning_action.generator.causality import Visibility
from lightning_action.generator.estimates import (
    Flops,
    Parameters,
    activation_bytes,
    context_cache_bytes,
    context_flops,
    count,
    kv_cache_bytes,
    parameters_by_part,
    training_flops,
    video_flops,
)
from lightning_action.module.action_video_module import ActionVideoModule
from lightning_action.module.batch_checks import latent_frames


@dataclass(frozen=True)
class Precision:
    """Dtypes of the weights, of the keys and values in the cache, and of what is computed."""

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
    """Findings of a dry run, under keys for programs; all but the first three is empty if there are problems.

    Args:
        parameters: Parameters of every part; None where only its files know.
        problems: Misfits between data and model, one sentence each.
        settings: Settings that the figures hold for: batch, sampling, dtypes, and the classes of the frozen parts.
        shapes: Shape of every stage.
        blocks: Numbers of tokens and latent frames.
        memory: Bytes on one device.
        flops: Floating-point operations.
        action_times: Pixel frames and action rows of every latent frame.
    """

    parameters: dict[str, Parameters | None]
    problems: list[str]
    settings: dict[str, int | str]
    shapes: dict[str, list[int]] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    flops: dict[str, Flops] = field(default_factory=dict)
    action_times: list[ActionTime] = field(default_factory=list)


@dataclass(frozen=True)
class Geometry:
    """Sizes of one batch.

    Args:
        batch_size: Number of videos.
        num_latents: Number of latent frames, F.
        pixels: Height and width of a pixel frame.
        latent_shape: Shape (C, h, w) of a latent frame.
        tokens_per_frame: Number of tokens of a latent frame.
    """

    batch_size: int
    num_latents: int
    pixels: tuple[int, int]
    latent_shape: tuple[int, int, int]
    tokens_per_frame: int


def geometry(module: ActionVideoModule, batch: Batch, trains: bool) -> Geometry:
    """Take the sizes from a batch; `trains` says that it is one to train on.

    Raises:
        ValueError: The batch gives no sizes, or they do not fit VAE and generator.
    """
    pixels = frame_size(batch)
    shape = module.frozen.vae.latent_shape(*pixels)
    tokens = module.generator.tokens_per_frame(*shape[1:])
    return Geometry(len(batch["sample_id"]), latent_frames(module.schema, batch, trains), pixels, shape, tokens)


def parameters_of(module: ActionVideoModule) -> dict[str, Parameters | None]:
    """Count the parameters of every part of a run; None where only the files of a frozen part know."""
    generator = module.generator
    found: dict[str, Parameters | None] = {"generator": count(generator.parameters())}
    found |= {f"generator.{part}": numbers for part, numbers in parameters_by_part(generator).items()}
    for name, part in (("action_projection", module.action_projection), ("action_module", module.action_module)):
        if part is not None:
            found[name] = count(part.parameters())
    return found | {name: _frozen_parameters(part) for name, part in _frozen_parts(module)}


def _frozen_parts(module: ActionVideoModule) -> tuple[tuple[str, FrozenPart], ...]:
    return ("text_encoder", module.frozen.text_encoder), ("vae", module.frozen.vae)


def _frozen_parameters(part: FrozenPart) -> Parameters | None:
    if isinstance(part, nn.Module):
        return Parameters(0, count(part.parameters()).total)
    if part.num_parameters_released is not None:
        return Parameters(0, part.num_parameters_released)
    return None if reads_files(part) else Parameters(0, 0)


def reads_files(part: FrozenPart) -> bool:
    """Tell whether a frozen part has weights, which are not there in a dry run."""
    return type(part).load is not FrozenPart.load


def frozen_classes(module: ActionVideoModule) -> dict[str, int | str]:
    """Name the classes of the frozen parts, and those whose parameters are counted as they were released."""
    return {
        name: f"{type(part).__name__}{', as released' if part.num_parameters_released else ''}"
        for name, part in _frozen_parts(module)
    }


def settings(module: ActionVideoModule, sizes: Geometry, precision: Precision) -> dict[str, int | str]:
    """Collect what the figures hold for."""
    return {
        "batch_size": sizes.batch_size,
        "num_steps": module.sampling.num_steps,
        "num_clean_passes": module.sampling.num_passes - module.sampling.num_steps,
        "num_branches": _num_branches(module),
        "activation_checkpointing": module.generator.activation_checkpointing,
        "cache_frames": _cache_frames(module, sizes),
        **{f"{name}_dtype": str(dtype).removeprefix("torch.") for name, dtype in vars(precision).items()},
    }


def shapes(module: ActionVideoModule, sizes: Geometry) -> dict[str, list[int]]:
    """Compute the shape of every stage, from pixels to velocity."""
    batch, frames, generator, schema = sizes.batch_size, sizes.num_latents, module.generator, module.schema
    num_pixels = num_pixel_frames(frames, module.frozen.vae.temporal_compression_ratio)
    found = {
        "video": [batch, num_pixels, 3, *sizes.pixels],
        "latents": [batch, frames, *sizes.latent_shape],
        "tokens": [batch, frames, sizes.tokens_per_frame, generator.dim],
        "text": [batch, generator.text_len, generator.text_dim],
        "time_modulation": [batch, frames, 6, generator.dim],
    }
    if module.action_projection is not None:
        found["action_rows"] = [batch, schema.num_rows(frames), schema.num_columns]
        found["action_vectors"] = [batch, frames, schema.action_dim]
        found["action_modulation"] = list(empty_modulation(module, batch, frames).shape)
    return found | {"velocity": [batch, frames, generator.out_dim, *sizes.latent_shape[1:]]}


def blocks(module: ActionVideoModule, sizes: Geometry) -> dict[str, int]:
    """Count how the video is cut, in latent frames and tokens."""
    of_video = module.causality.split(sizes.num_latents)
    last = of_video[-1]
    return {
        "tokens_per_frame": sizes.tokens_per_frame,
        "tokens_per_block": len(last) * sizes.tokens_per_frame,
        "tokens_per_video": sizes.num_latents * sizes.tokens_per_frame,
        "num_blocks": len(of_video),
        "frames_per_block": len(last),
        # No block sees more than the last one.
        "frames_seen": sum(map(len, module.causality.past(last))) + len(last),
    }


def flops(module: ActionVideoModule, sizes: Geometry) -> dict[str, Flops]:
    """Count operations of generating the last block of one video, and of a training step."""
    generator, tokens = module.generator, sizes.tokens_per_frame
    last = module.causality.split(sizes.num_latents)[-1]
    one_pass = video_flops(generator, (Visibility(last, (*module.causality.past(last), last)),), tokens)
    block = one_pass * (module.sampling.num_passes * _num_branches(module))
    training = training_flops(generator, _training_visibility(module, sizes), tokens, module.modulation_learns)
    return {
        "one_pass": one_pass,
        "block": block,
        "pixel_frame": block * (1 / (len(last) * module.frozen.vae.temporal_compression_ratio)),
        "prompt": context_flops(generator),
        "training_step": training * sizes.batch_size,
    }


def memory(module: ActionVideoModule, sizes: Geometry, precision: Precision) -> dict[str, int]:
    """Count bytes on one device that holds everything, without the frozen parts."""
    generator, causality, tokens = module.generator, module.causality, sizes.tokens_per_frame
    cache = _num_branches(module) * kv_cache_bytes(generator, causality, sizes.num_latents, tokens, precision.cache)
    numbers, bytes_each = count(module.parameters()), precision.weights.itemsize
    frames = sum(len(item.query) for item in _training_visibility(module, sizes))
    return {
        "weights": numbers.total * bytes_each,
        "kv_cache_per_frame": cache // _cache_frames(module, sizes),
        "kv_cache": cache,
        "prompt_cache": context_cache_bytes(generator, precision.cache),
        "gradients": numbers.trainable * bytes_each,
        "adamw_moments": 2 * numbers.trainable * bytes_each,
        "activations": activation_bytes(generator, sizes.batch_size * frames * tokens, precision.compute),
    }


def action_times(schema: ActionSchema, num_frames: int) -> list[ActionTime]:
    """List which pixel frames and action rows belong to each latent frame."""
    ratio = schema.temporal_compression_ratio
    return [
        ActionTime(latent, list(pixel_frames_of(latent, ratio)), list(schema.rows_of(latent)))
        for latent in range(num_frames)
    ]


def empty_modulation(module: ActionVideoModule, batch_size: int, num_frames: int) -> Tensor:
    """Return what the action projection gives, on the meta device."""
    assert module.action_projection is not None
    vectors = torch.empty(batch_size, num_frames, module.schema.action_dim, device="meta")
    modulation: Tensor = module.action_projection(vectors)
    return modulation


def _cache_frames(module: ActionVideoModule, sizes: Geometry) -> int:
    return module.causality.local_attn_size or sizes.num_latents


def _num_branches(module: ActionVideoModule) -> int:
    """Guidance runs branches without actions, or with the negative prompt, beside the video's own."""
    return len(module.sampling.guidance.branches)


def _training_visibility(module: ActionVideoModule, sizes: Geometry) -> tuple[Visibility, ...]:
    return objectives.training_visibility(module.objective, sizes.num_latents, module.causality)

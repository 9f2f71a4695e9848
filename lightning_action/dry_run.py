"""A configuration looked at before it is run: sizes, shapes, costs, and whether a batch fits.

The networks are on the meta device: nothing is allocated, nothing is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from lightning_action.batch import Batch, check_batch, first_frames, frame_size, has_actions, num_latents
from lightning_action.cost import (
    Flops,
    Parameters,
    activation_bytes,
    context_cache_bytes,
    context_flops,
    count,
    kv_cache_bytes,
    num_image_tokens,
    parameters_by_part,
    video_flops,
)
from lightning_action.diffusion.objectives import teacher_forcing
from lightning_action.frozen.interfaces import FrozenPart
from lightning_action.generator.blocks import Visibility, block_causal
from lightning_action.generator.blocks import teacher_forcing as teacher_forcing_visibility
from lightning_action.generator.image import ImageCondition
from lightning_action.module import ActionVideoModule

# Of how far pixels may lie outside [-1, 1]: resizing overshoots a little.
_PIXEL_TOLERANCE = 0.1
# A backward pass costs two forward passes; with activation checkpointing the forward pass is done again.
_PASSES_OF_A_TRAINING_STEP = {False: 3, True: 4}


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


def geometry(module: ActionVideoModule, batch: Batch) -> Geometry:
    """The sizes that a batch gives.

    Raises:
        ValueError: it gives none, or they do not fit VAE and generator.
    """
    pixels = frame_size(batch)
    shape = module.frozen.vae.latent_shape(*pixels)
    tokens = module.generator.tokens_per_frame(*shape[1:])
    return Geometry(len(batch["sample_id"]), _num_latents(module, batch), pixels, shape, tokens)


def _num_latents(module: ActionVideoModule, batch: Batch) -> int:
    """As long as the video, where that is more than the first frames that something is generated from."""
    ratio = module.frozen.vae.temporal_compression_ratio
    length = 1 + (batch["video"].shape[1] - 1) // ratio if "video" in batch else 0
    return length if length > module.sampling.num_initial_latents else num_latents(batch, module.schema)


def parameters_of(module: ActionVideoModule) -> dict[str, Parameters | None]:
    """Parameters of every part of a run; None where only the files of a frozen part know."""
    generator = module.generator
    found: dict[str, Parameters | None] = {"generator": count(generator.parameters())}
    found |= {f"generator/{part}": numbers for part, numbers in parameters_by_part(generator).items()}
    for name, part in (("action projection", module.action_projection), ("action module", module.action_module)):
        if part is not None:
            found[name] = count(part.parameters())
    for name, frozen in (("text encoder", module.frozen.text_encoder), ("VAE", module.frozen.vae)):
        found[f"{name}, {type(frozen).__name__}"] = _frozen_parameters(frozen)
    return found


def _frozen_parameters(part: FrozenPart) -> Parameters | None:
    if isinstance(part, nn.Module):
        return Parameters(0, count(part.parameters()).total)
    return None if _reads_files(part) else Parameters(0, 0)


def _reads_files(part: FrozenPart) -> bool:
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
        found["action modulation [B, F, ..., 6, D]"] = list(_modulation(module, batch, frames).shape)
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
    sampling = module.sampling
    num_steps = len(sampling.denoising_step_list or range(sampling.num_inference_steps))
    num_branches = 1 if sampling.action_guidance_scale in (0.0, 1.0) else 2
    generated = one_pass * ((num_steps + 1) * num_branches)
    num_pixel_frames = len(block) * module.frozen.vae.temporal_compression_ratio
    training = video_flops(generator, _training_visibility(module, sizes), tokens) + context_flops(generator)
    num_passes = _PASSES_OF_A_TRAINING_STEP[generator.activation_checkpointing]
    branches = " x 2 branches" if num_branches == 2 else ""
    return {
        f"one pass of a block of {len(block)}, which sees {sum(map(len, seen))} latent frames": one_pass,
        f"a block generated ({num_steps} steps + 1 clean pass{branches})": generated,
        "for each pixel frame of it": generated * (1 / num_pixel_frames),
        "the prompt, once a video": context_flops(generator),
        f"a training step (batch of {sizes.batch_size}, {num_passes} x forward)": training
        * (num_passes * sizes.batch_size),
    }


def memory(module: ActionVideoModule, sizes: Geometry, precision: Precision) -> dict[str, int]:
    """Bytes on one device that holds everything, without the frozen parts."""
    generator, causality, tokens = module.generator, module.causality, sizes.tokens_per_frame
    window = causality.local_attn_size or sizes.num_latents
    cache = kv_cache_bytes(generator, causality, sizes.num_latents, tokens, precision.cache)
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


def misfits(module: ActionVideoModule, batch: Batch, trains: bool) -> list[str]:
    """What about a batch does not fit the model, each with what was expected; `trains`: it is one to train on."""
    told = _told(partial(check_batch, batch))
    if told:
        return told
    checks: Iterable[Callable[[ActionVideoModule, Batch], None]] = (
        *((_check_training_video,) if trains else (_check_first_frames,)),
        _check_pixels,
        _check_sizes,
        _check_blocks,
        _check_actions,
        _check_networks,
    )
    return list(dict.fromkeys(message for check in checks for message in _told(partial(check, module, batch))))


def _told(check: Callable[[], None]) -> list[str]:
    try:
        check()
    except (ValueError, RuntimeError) as error:
        return [str(error)]
    return []


def _check_training_video(module: ActionVideoModule, batch: Batch) -> None:
    if "video" not in batch:
        raise ValueError("the batch has no `video` [B, T, 3, H, W], which training needs")
    frames, ratio = batch["video"].shape[1], module.frozen.vae.temporal_compression_ratio
    if (frames - 1) % ratio:
        raise ValueError(f"a video of {frames} frames is no whole number of latent frames: expected 1 + {ratio} n")
    if module.action_projection is not None and "action" not in batch and module.action_module is None:
        raise ValueError("the batch has no `action` [B, rows, columns], and no action_module infers one")


def _check_first_frames(module: ActionVideoModule, batch: Batch) -> None:
    first_frames(batch, module.sampling.num_initial_latents, module.frozen.vae.temporal_compression_ratio)


def _check_pixels(module: ActionVideoModule, batch: Batch) -> None:
    if "video" not in batch:
        return
    video: Tensor = batch["video"]
    if len(video) != len(batch["sample_id"]) or video.shape[2] != 3:
        raise ValueError(f"expected `video` [{len(batch['sample_id'])}, T, 3, H, W], got {list(video.shape)}")
    low, high = video.aminmax()
    if not bool((low >= -1 - _PIXEL_TOLERANCE) & (high <= 1 + _PIXEL_TOLERANCE)):
        raise ValueError(f"pixels are in [-1, 1], those of `video` go from {low.item():g} to {high.item():g}")


def _check_sizes(module: ActionVideoModule, batch: Batch) -> None:
    geometry(module, batch)


def _check_blocks(module: ActionVideoModule, batch: Batch) -> None:
    module.causality.split(_num_latents(module, batch))


def _check_actions(module: ActionVideoModule, batch: Batch) -> None:
    if module.action_projection is None or not has_actions(batch):
        return
    action, size = batch["action"], len(batch["sample_id"])
    if not isinstance(action, Tensor) or len(action) != size:
        found = list(action.shape) if isinstance(action, Tensor) else type(action).__name__
        raise ValueError(f"`action` must be a tensor [{size}, rows, columns], got {found}")
    module.schema.encode(action, _num_latents(module, batch))


def _check_networks(module: ActionVideoModule, batch: Batch) -> None:
    """One latent frame through the generator, on the meta device."""
    sizes, generator = geometry(module, batch), module.generator
    latents = torch.empty(1, 1, *sizes.latent_shape, device="meta")
    text = torch.empty(1, *_text_shape(module, batch), device="meta")
    modulation = None if module.action_projection is None else _modulation(module, 1, 1)
    with torch.no_grad():
        velocity = generator(latents, torch.empty(1, 1, device="meta"), text, modulation, _image(module, sizes))
    if velocity.shape != latents.shape:
        raise ValueError(
            f"the generator gives out_dim = {generator.out_dim} channels, the VAE's latents have {latents.shape[2]}"
        )


def _text_shape(module: ActionVideoModule, batch: Batch) -> tuple[int, int]:
    """Of an encoded prompt; where the text encoder would read its files, what the generator expects."""
    if _reads_files(module.frozen.text_encoder):
        return module.generator.text_len, module.generator.text_dim
    length, channels = module.frozen.encode_text(batch["prompt"]).shape[1:]
    return length, channels


def _image(module: ActionVideoModule, sizes: Geometry) -> ImageCondition:
    """An image condition of the size that the generator needs, for one latent frame."""
    generator, (channels, height, width) = module.generator, sizes.latent_shape
    shape = (1, 1, generator.in_dim - channels, height, width)
    joined = torch.empty(shape, device="meta") if generator.in_dim > generator.out_dim == channels else None
    num_tokens = num_image_tokens(generator)
    embeds = torch.empty(1, num_tokens, generator.image_dim or 0, device="meta") if num_tokens else None
    return ImageCondition(joined, embeds)


def _modulation(module: ActionVideoModule, batch_size: int, num_frames: int) -> Tensor:
    assert module.action_projection is not None
    vectors = torch.empty(batch_size, num_frames, module.schema.action_dim, device="meta")
    modulation: Tensor = module.action_projection(vectors)
    return modulation


def _training_visibility(module: ActionVideoModule, sizes: Geometry) -> tuple[Visibility, ...]:
    visible = teacher_forcing_visibility if module.objective is teacher_forcing else block_causal
    return visible(sizes.num_latents, module.causality)


def _pixel_frames(module: ActionVideoModule, num_frames: int) -> int:
    return 1 + module.frozen.vae.temporal_compression_ratio * (num_frames - 1)

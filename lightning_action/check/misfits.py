"""Whether a batch fits a model, said before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from lightning_action.batch import Batch, check_actions, check_batch, check_pixels, first_frames, frame_size
from lightning_action.check.dry_run import empty_modulation, geometry, latent_frames, reads_files
from lightning_action.module import ActionVideoModule


def misfits(module: ActionVideoModule, batch: Batch, trains: bool) -> list[str]:
    """What about a batch does not fit the model, each with what was expected; `trains`: it is one to train on."""
    told = _told(partial(check_batch, batch)) or _told(partial(latent_frames, module, batch, trains))
    if told:
        return told
    num_frames = latent_frames(module, batch, trains)
    checks: list[Callable[[], object]] = [
        partial(check_pixels, batch),
        partial(_check_first_frames, module, batch, num_frames),
        partial(geometry, module, batch, trains),
        partial(module.causality.split, num_frames),
        partial(_check_actions, module, batch, num_frames, trains),
        partial(_check_networks, module, batch),
    ]
    return list(dict.fromkeys(message for check in checks for message in _told(check)))


def _told(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except (ValueError, RuntimeError) as error:
        return [str(error)]
    return []


def _check_first_frames(module: ActionVideoModule, batch: Batch, num_frames: int) -> None:
    ratio = module.frozen.vae.temporal_compression_ratio
    first_frames(batch, module.sampling.num_initial_latents, num_frames, ratio)


def _check_actions(module: ActionVideoModule, batch: Batch, num_frames: int, trains: bool) -> None:
    if module.action_projection is not None:
        check_actions(batch, module.schema, num_frames, trains and module.action_module is None)


def _check_networks(module: ActionVideoModule, batch: Batch) -> None:
    """One latent frame through the generator, on the meta device."""
    generator, latent_shape = module.generator, module.frozen.vae.latent_shape(*frame_size(batch))
    latents = torch.empty(1, 1, *latent_shape, device="meta")
    text = torch.empty(1, *_text_shape(module, batch), device="meta")
    modulation = None if module.action_projection is None else empty_modulation(module, 1, 1)
    takes_channels = generator.in_dim > generator.out_dim == latents.shape[2]
    if generator.image_dim is not None or takes_channels:
        raise ValueError(
            "the generator wants an image condition, which no batch carries (in_dim "
            f"{generator.in_dim}, out_dim {generator.out_dim}, image_dim {generator.image_dim}): generate with "
            "ActionCausalInferencePipeline, which takes it as `image`"
        )
    with torch.no_grad():
        velocity = generator(latents, torch.empty(1, 1, device="meta"), text, modulation)
    if velocity.shape != latents.shape:
        raise ValueError(
            f"the generator gives out_dim = {generator.out_dim} channels, the VAE's latents have {latents.shape[2]}"
        )


def _text_shape(module: ActionVideoModule, batch: Batch) -> tuple[int, int]:
    """Of an encoded prompt; where the text encoder would read its files, what the generator expects."""
    if reads_files(module.frozen.text_encoder):
        return module.generator.text_len, module.generator.text_dim
    length, channels = module.frozen.encode_text(batch["prompt"]).shape[1:]
    return length, channels

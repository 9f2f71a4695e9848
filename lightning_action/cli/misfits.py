"""Misfits of a batch and a model, said before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from lightning_action.batch import Batch, frame_size
from lightning_action.cli.support.dry_run import empty_modulation, reads_files
from lightning_action.module.action_video_module import ActionVideoModule


def misfits(module: ActionVideoModule, batch: Batch, trains: bool) -> list[str]:
    """List what about a batch does not fit the model, with what was expected; `trains` says that it is to train on."""
    try:
        checks = module.batch_checks.of(batch, trains)
    except ValueError as error:
        return [str(error)]
    told = [message for check in checks for message in _told(check)]
    return list(dict.fromkeys(told)) or _told(partial(_run_networks, module, batch))


def _told(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except (ValueError, RuntimeError) as error:
        return [str(error)]
    return []


def _run_networks(module: ActionVideoModule, batch: Batch) -> None:
    """Run one latent frame through the generator, on the meta device: what does not fit, the generator says itself."""
    latents = torch.empty(1, 1, *module.frozen.vae.latent_shape(*frame_size(batch)), device="meta")
    text = torch.empty(1, *_text_shape(module, batch), device="meta")
    modulation = None if module.action_projection is None else empty_modulation(module, 1, 1)
    with torch.no_grad():
        module.generator(latents, torch.empty(1, 1, device="meta"), text, modulation)


def _text_shape(module: ActionVideoModule, batch: Batch) -> tuple[int, int]:
    """Return the shape of an encoded prompt, or what the generator expects where the text encoder would read files."""
    if reads_files(module.frozen.text_encoder):
        return module.generator.text_len, module.generator.text_dim
    length, channels = module.frozen.encode_text(batch["prompt"]).shape[1:]
    return length, channels

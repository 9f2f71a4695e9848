"""What is refused before a pipeline computes anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_action.generator.model import CausalWanModel


def check_latents(noise: Tensor, initial: Tensor | None, generator: CausalWanModel) -> None:
    """Refuse latents that are not the generator's, do not belong together, or hold NaN.

    Raises:
        ValueError: with the shapes expected and the shapes that came.
    """
    given = {"noise": noise} if initial is None else {"noise": noise, "initial_latent": initial}
    for name, latents in given.items():
        if latents.ndim != 5 or latents.shape[2] != generator.out_dim or not latents.is_floating_point():
            raise ValueError(
                f"{name} must be floats [B, F, {generator.out_dim}, H, W], got {latents.dtype} {list(latents.shape)}"
            )
        if latents.shape[1] < 1:
            raise ValueError(f"{name} must have at least one frame, got {list(latents.shape)}")
        if (latents.shape[0], *latents.shape[3:]) != (noise.shape[0], *noise.shape[3:]):
            raise ValueError(
                f"{name} {list(latents.shape)} and noise {list(noise.shape)} must be alike in all but their frames"
            )
        if not bool(torch.isfinite(latents).all()):
            raise ValueError(f"{name} holds NaN or infinity")
    generator.tokens_per_frame(*noise.shape[-2:])


def check_batch(
    prompts: Sequence[str] | None,
    embeds: Tensor | None,
    samples: Sequence[int],
    batch_size: int,
    generator: CausalWanModel,
) -> None:
    """Refuse prompts, or their embeds, and sample numbers that are not those of a batch of `batch_size`.

    Raises:
        ValueError: with what was expected and what came.
    """
    if len(samples) != batch_size:
        raise ValueError(f"expected {batch_size} sample_id, one for each video of noise, got {len(samples)}")
    if embeds is None:
        if prompts is None or isinstance(prompts, str) or len(prompts) != batch_size:
            raise ValueError(
                f"expected text_prompts, a list of {batch_size} strings, one for each video of noise, or "
                f"prompt_embeds; got {prompts!r}"
            )
        return
    shape = list(embeds.shape)
    if embeds.ndim != 3 or shape[0] != batch_size or shape[1] > generator.text_len or shape[2] != generator.text_dim:
        raise ValueError(
            f"prompt_embeds must be [{batch_size}, at most {generator.text_len}, {generator.text_dim}], got {shape}"
        )
    if not bool(torch.isfinite(embeds).all()):
        raise ValueError("prompt_embeds hold NaN or infinity")

"""Actions that nobody recorded: a module infers them from the frames so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_action.generator.causality import BlockCausality

InferActions = Callable[[Tensor], Tensor]


@runtime_checkable
class ReadsText(Protocol):
    """An action module that also wants the prompt."""

    def with_text(self, text: Tensor) -> InferActions:
        """A function of the latents alone, for encoded prompts `[B, L, text_dim]`."""
        ...


def for_prompts(infer: InferActions, text: Tensor) -> InferActions:
    """The action module as a function of the latents alone, whether or not it reads the prompts `[B, L, text_dim]`."""
    return infer.with_text(text) if isinstance(infer, ReadsText) else infer


def inferred_vectors(infer: InferActions, latents: Tensor, causality: BlockCausality) -> tuple[Tensor, Tensor]:
    """What `infer` says at each block of a known video; the first block, which has no history, gets no action.

    Args:
        infer: latents of all earlier blocks `[B, F', C, H, W]` to action vectors `[B, A]`.
        latents: the video, `[B, F, C, H, W]`.
        causality: cuts the video into blocks.

    Returns:
        Action vectors `[B, F, A]`, and whether a frame has one, `[B, F]` bool.

    Raises:
        ValueError: the video is a single block.
    """
    first, *later = causality.split(latents.shape[1])
    if not later:
        raise ValueError("a video of one block has no history to infer an action from: use more latent frames")
    inferred = [infer(latents[:, : block.start])[:, None].expand(-1, len(block), -1) for block in later]
    nothing = torch.zeros_like(inferred[0][:, :1]).expand(-1, len(first), -1)
    present = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
    present[:, : len(first)] = False
    return torch.cat([nothing, *inferred], dim=1), present

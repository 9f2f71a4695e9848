"""From the actions of a batch to the modulation of every layer: given, inferred, dropped, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.action.schema import ActionSchema
from lightning_action.generator.causality import BlockCausality

InferActions = Callable[[Tensor], Tensor]
BlockModulation = Callable[[range, list[Tensor]], Tensor | None]
"""Modulation `[B, block, ..., 6, D]` of a block, from its latent frames and the blocks before it; None for none."""


@runtime_checkable
class ReadsText(Protocol):
    """An action module that also wants the prompt."""

    def with_text(self, text: Tensor) -> InferActions:
        """Return a function of the latents alone, for encoded prompts `[B, L, text_dim]`."""
        ...


@dataclass(frozen=True)
class ActionConditioning:
    """Everything that turns actions into what the generator is told, in training and in rollouts.

    Args:
        schema: Meaning of an action.
        projection: Action vectors to modulation; None for a backbone without actions.
        action_module: Network that infers actions where none were recorded; None for none.
        causality: Block size, window and sink.
        on_all_ranks: Whether a batch without actions goes through the projection all the same, because it is sharded
            and another rank may have actions.
    """

    schema: ActionSchema
    projection: ActionModulationProjection | None
    action_module: nn.Module | None
    causality: BlockCausality
    on_all_ranks: bool = False

    def of_known_video(
        self,
        action: Tensor | None,
        infers: bool,
        latents: Tensor,
        text: Tensor,
        dropped: Tensor | None = None,
    ) -> Tensor | None:
        """Modulation of a video that is there, `[B, F, 6, D]` or `[B, F, num_layers, 6, D]`; None for none.

        Args:
            action: Action rows `[B, rows, columns]`; None for the null action.
            infers: Whether the action module says what was done where there are no rows.
            latents: Video, `[B, F, C, H, W]`.
            text: Encoded prompts, `[B, L, text_dim]`.
            dropped: Samples `[B]` bool that are shown without their actions.
        """
        if self.projection is None:
            return None
        shape = latents.shape[:2]
        if action is not None:
            vectors, present = self.schema.encode(action, shape[1])
        elif infers and self.action_module is not None:
            vectors, present = inferred_vectors(for_prompts(self.action_module, text), latents, self.causality)
        elif self.on_all_ranks:
            vectors = latents.new_zeros(*shape, self.schema.action_dim)
            present = torch.zeros(shape, dtype=torch.bool, device=latents.device)
        else:
            return None
        if dropped is not None:
            present = present & ~dropped[:, None].to(present.device)
        return self.projection(vectors.to(latents.dtype), present)

    def of_rollout(
        self, action: Tensor | None, infers: bool, num_frames: int, text: Tensor
    ) -> Tensor | BlockModulation | None:
        """Modulation of a video that is to be generated, or what gives it block by block; None for no actions.

        Args:
            action: Action rows `[B, rows, columns]`; None for the null action.
            infers: Whether the action module decides each block from the blocks before it, where there are no rows.
            num_frames: Latent frames of the video.
            text: Encoded prompts, `[B, L, text_dim]`.
        """
        projection = self.projection
        if projection is None:
            return None
        if action is not None:
            vectors, present = self.schema.encode(action.to(text.device), num_frames)
            return projection(vectors.to(text.dtype), present)
        if not infers or self.action_module is None:
            return None
        infer = for_prompts(self.action_module, text)

        def infer_block(block: range, history: list[Tensor]) -> Tensor | None:
            if not history:
                return None
            return projection(infer(torch.cat(history, dim=1))[:, None].expand(-1, len(block), -1))

        return infer_block


def for_prompts(infer: InferActions, text: Tensor) -> InferActions:
    """Return the action module as a function of the latents, whether or not it reads prompts `[B, L, text_dim]`."""
    return infer.with_text(text) if isinstance(infer, ReadsText) else infer


def inferred_vectors(infer: InferActions, latents: Tensor, causality: BlockCausality) -> tuple[Tensor, Tensor]:
    """Infer actions at each block of a known video; the first block, which has no history, gets none.

    Args:
        infer: Function of the latents of all earlier blocks `[B, F', C, H, W]` that gives action vectors `[B, A]`.
        latents: Video, `[B, F, C, H, W]`.
        causality: Cut of the video into blocks.

    Returns:
        Action vectors `[B, F, A]`, and whether a frame has one, `[B, F]` bool.

    Raises:
        ValueError: The video is a single block.
    """
    first, *later = causality.split(latents.shape[1])
    if not later:
        raise ValueError("a video of one block has no history to infer an action from: use more latent frames")
    inferred = [infer(latents[:, : block.start])[:, None].expand(-1, len(block), -1) for block in later]
    nothing = torch.zeros_like(inferred[0][:, :1]).expand(-1, len(first), -1)
    present = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
    present[:, : len(first)] = False
    return torch.cat([nothing, *inferred], dim=1), present


def draw_dropped(probability: float, randoms: Sequence[torch.Generator]) -> Tensor:
    """Draw which samples lose their actions, `[B]` bool.

    Guidance and the null action need a model that has seen videos without actions, as classifier-free guidance does
    (Ho & Salimans, 2022).

    Args:
        probability: Chance of each sample, in [0, 1].
        randoms: CPU generator of each of B samples.
    """
    return torch.cat([torch.rand(1, generator=random) for random in randoms]) < probability

"""Way from actions to the modulation of every layer: given, inferred, decided, dropped, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_action.action.projection import ActionModulationProjection, null_where_absent
from lightning_action.action.schema import ActionSchema
from lightning_action.generator.causality import BlockCausality

InferActions = Callable[[Tensor], Tensor]
"""Action vectors `[B, A]` of the next block, from the latents before it, `[B, F', C, H, W]` with F' >= 1."""
BlockActions = Callable[[range, Tensor], Tensor | None]
"""Action of a block, from its latent frames and the latents before it, `[B, F', C, H, W]`; None for no action."""
BlockModulation = Callable[[range, Tensor], Tensor | None]
"""Modulation `[B, block, ..., 6, D]` of a block, from the same; None for none."""


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
        schema: Meaning of action rows; None where action vectors are given.
        projection: Action vectors to modulation; None for a backbone without actions.
        action_module: Network that infers actions where none were recorded; None for none.
        scale: Factor of what the projection gives.
        on_all_ranks: True if a batch without actions goes through the projection all the same, because it is sharded
            and another rank may have actions.
    """

    schema: ActionSchema | None
    projection: ActionModulationProjection | None
    action_module: InferActions | None
    scale: float = 1.0
    on_all_ranks: bool = False

    def of_action(self, action: Tensor, num_frames: int, like: Tensor, present: Tensor | None = None) -> Tensor:
        """Compute the modulation of some latent frames, `[B, F, 6, D]` or `[B, F, num_layers, 6, D]`.

        Args:
            action: Action vectors `[B, F, A]`, or `[B, A]` for all frames alike, or modulation that is ready.
            num_frames: Number of frames F.
            like: Tensor of the device and dtype of the result.
            present: Frames that have an action, `[B, F]` bool; the others get exactly no modulation. None for all.

        Raises:
            ValueError: The model has no projection of actions, or the vectors are not as wide as it takes.
        """
        projection = self._projection
        action, present = action.to(like), None if present is None else present.to(like.device)
        if action.ndim > 3:
            return action if present is None else null_where_absent(action, present)
        vectors = action[:, None].expand(-1, num_frames, -1) if action.ndim == 2 else action
        modulation = projection(vectors, present)
        return modulation if self.scale == 1 else modulation * self.scale

    def of_known_video(
        self,
        action: Tensor | None,
        infers: bool,
        latents: Tensor,
        text: Tensor,
        causality: BlockCausality,
        dropped: Tensor | None = None,
    ) -> Tensor | None:
        """Compute the modulation of a video that is there; None for none.

        Args:
            action: Action rows `[B, rows, columns]`; None for no action.
            infers: True if the action module says what was done where there are no rows.
            latents: Video, `[B, F, C, H, W]`.
            text: Encoded prompts, `[B, L, text_dim]`.
            causality: Cut of the video into blocks.
            dropped: Samples `[B]` bool that are shown without their actions.
        """
        if self.projection is None:
            return None
        if action is None and infers and self.action_module is not None:
            known: tuple[Tensor, Tensor] | None = inferred_vectors(
                for_prompts(self.action_module, text), latents, causality
            )
        else:
            known = self._given(action, latents)
        return None if known is None else self.of_action(known[0], latents.shape[1], latents, _but(known[1], dropped))

    def of_generated_video(
        self, action: Tensor | None, latents: Tensor, causality: BlockCausality, dropped: Tensor | None
    ) -> Tensor | None:
        """Compute as `of_known_video`, block by block: the bits that generation has, where the rows are all known."""
        known = self._given(action, latents)
        if known is None:
            return None
        return self.of_blocks(known[0], causality.split(latents.shape[1]), latents, _but(known[1], dropped))

    def _given(self, action: Tensor | None, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        """Action vectors `[B, F, A]` of rows that are given, and which frames have one, `[B, F]`; None for none."""
        if self.projection is None:
            return None
        if action is not None:
            return self.required_schema.encode(action, latents.shape[1])
        if not self.on_all_ranks:
            return None
        shape = latents.shape[:2]
        return latents.new_zeros(*shape, self.projection.action_dim), torch.zeros(shape, dtype=torch.bool)

    def of_blocks(self, action: Tensor, blocks: Sequence[range], like: Tensor, present: Tensor | None = None) -> Tensor:
        """Compute modulation as `of_action`, one block of frames after the other.

        Matrix products of another height may round differently; so whoever knows the actions of one block alone has the
        same bits.

        Args:
            action: Action vectors or modulation of all blocks, as in `of_action`.
            blocks: Frames of each block, counted in `action`.
            like: Tensor of the device and dtype of the result.
            present: Frames that have an action, `[B, F]` bool; None for all.

        Raises:
            ValueError: The model has no projection of actions, or the vectors are not as wide as it takes.
        """
        if action.ndim <= 3:
            self._projection.require_actions(action)
        made = []
        for block in blocks:
            here = slice(block.start, block.stop)
            own = action if action.ndim == 2 else action[:, here]
            made.append(self.of_action(own, len(block), like, None if present is None else present[:, here]))
        return torch.cat(made, dim=1)

    def of_rows(self, rows: Tensor, frames: range, like: Tensor) -> Tensor | None:
        """Compute the modulation of some latent frames of a video from their action rows; None without a projection.

        Args:
            rows: Action rows `[B, rows, columns]` of these frames, see `ActionSchema.rows_of_frames`.
            frames: Latent frames of the video.
            like: Tensor of the device and dtype of the result.

        Raises:
            ValueError: The model has no schema, or the rows do not fit it.
        """
        if self.projection is None:
            return None
        vectors, present = self.required_schema.encode_frames(rows.to(like.device), frames)
        return self.of_action(vectors, len(frames), like, present)

    def of_rollout(
        self,
        action: Tensor | None,
        infers: bool,
        num_frames: int,
        text: Tensor,
        causality: BlockCausality,
        dropped: Tensor | None = None,
    ) -> Tensor | BlockModulation | None:
        """Compute the modulation of a video that is to be generated, or give it block by block; None for none.

        Args:
            action: Action rows `[B, rows, columns]`; None for no action.
            infers: True if the action module decides each block from the blocks before it, where there are no rows.
            num_frames: Latent frames of the video.
            text: Encoded prompts, `[B, L, text_dim]`.
            causality: Cut of the video into blocks.
            dropped: Samples `[B]` bool that have no action.
        """
        if self.projection is None:
            return None
        if action is None:
            return self.of_inferred(text) if infers else None
        vectors, present = self.required_schema.encode(action.to(text.device), num_frames)
        return self.of_blocks(vectors, causality.split(num_frames), text, _but(present, dropped))

    def of_inferred(self, text: Tensor) -> BlockModulation | None:
        """Modulation of what the action module infers of every block but the first; None where there is no module."""
        if self.action_module is None:
            return None
        infer = for_prompts(self.action_module, text)
        return self.of_decided(lambda block, history: infer(history) if history.shape[1] else None)

    def of_decided(self, decide: BlockActions) -> BlockModulation:
        """Modulation of what a function decides when the past of a block is known."""

        def modulation(block: range, history: Tensor) -> Tensor | None:
            action = decide(block, history)
            return None if action is None else self.of_action(action, len(block), history)

        return modulation

    @property
    def required_schema(self) -> ActionSchema:
        """The schema. Raises ValueError where there is none."""
        if self.schema is None:
            raise ValueError("there is no action schema that says what rows mean: give one, or action vectors")
        return self.schema

    @property
    def _projection(self) -> ActionModulationProjection:
        if self.projection is None:
            raise ValueError("the base model takes no actions: leave them out, or give an action projection")
        return self.projection


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


def _but(present: Tensor, dropped: Tensor | None) -> Tensor:
    """Frames that have an action, `[B, F]`, but for those of samples `[B]` that are shown without."""
    return present if dropped is None else present & ~dropped[:, None].to(present.device)


def draw_dropped(probability: float, randoms: Sequence[torch.Generator]) -> Tensor:
    """Draw which samples lose their actions, `[B]` bool.

    Guidance and the null action need a model that has seen videos without actions, as classifier-free guidance does
    (Ho and Salimans 2022, arXiv:2207.12598).

    Args:
        probability: Chance of each sample, in [0, 1].
        randoms: CPU generator of each of B samples.
    """
    return torch.cat([torch.rand(1, generator=random) for random in randoms]) < probability

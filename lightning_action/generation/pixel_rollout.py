"""A batch of worlds from a reset on: blocks that are known, blocks that are predicted, and the codec beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_action.action.conditioning import ActionConditioning
from lightning_action.action.schema import ActionSchema
from lightning_action.diffusion.noise import NoiseSource
from lightning_action.frozen.interfaces import CodecStream
from lightning_action.generation.clock import Clock
from lightning_action.generation.rollout import CausalRollout
from lightning_action.generation.video import block_pixels


@dataclass(frozen=True)
class Held:
    """The first latent frames of a block whose others are to be generated, `[B, k, C, h, w]`.

    Args:
        latents: Latents of those frames; k is 0 where none is known.
        rows: Action rows of those frames, `[B, rows, columns]`; None where they have no action.
    """

    latents: Tensor
    rows: Tensor | None = None

    def select(self, videos: Sequence[int]) -> Held:
        """The part of some videos."""
        return Held(self.latents[list(videos)], None if self.rows is None else self.rows[list(videos)])


@dataclass(frozen=True)
class _Predicted:
    """State before the last block was predicted: of the block itself, and in the decoder."""

    held: Held
    decoder: CodecStream


class PixelRollout:
    """Videos of one batch, that follow actions block by block and are decoded as they come.

    Args:
        rollout: Rollout before its first block.
        conditioning: Way from action rows to modulation.
        schema: Meaning of an action row.
        decoder: Decoder before its first latents.
        encoder: Encoder of what is known, before its first pixels or behind those of the first frames.
    """

    def __init__(
        self,
        rollout: CausalRollout,
        conditioning: ActionConditioning,
        schema: ActionSchema,
        decoder: CodecStream,
        encoder: CodecStream,
    ) -> None:
        self._rollout, self._conditioning, self._schema = rollout, conditioning, schema
        self._decoder, self.encoder = decoder, encoder
        self._held = self._nothing = Held(rollout.nothing)
        self._predicted: _Predicted | None = None
        self._last_is_known = self._all_are_known = True
        self.is_lost = False  # something failed half-way that cannot be undone: the videos cannot go on
        self._clock = Clock(rollout.nothing.device)

    @property
    def block_seconds(self) -> dict[str, float]:
        """Seconds that `generate` and `decode` took of the block that was predicted last; waits for the device."""
        return {stage: sum(pieces) for stage, pieces in self._clock.seconds().items()}

    @property
    def block(self) -> range:
        """Latent frames of the block that comes next."""
        return self._rollout.block

    @property
    def wanted(self) -> range:
        """Latent frames that come next: the block's, without those that are known of it."""
        return range(self.block.start + self._held.latents.shape[1], self.block.stop)

    @property
    def uncertain(self) -> range:
        """The latent frames after the known ones: those of the predicted block that may be replaced, or `wanted`.

        Raises:
            ValueError: The last block was predicted and cannot be replaced any more.
        """
        if self._predicted is None and not self._last_is_known:
            raise ValueError(
                "the last block was predicted, and the worlds went on from it: commit what happened right after the "
                "step, before write_pending, prompt or the next step, and under context: clean; or predict in a fork"
            )
        if self._predicted is None:
            return self.wanted
        block = self._rollout.cache.block
        return range(block.start + self._predicted.held.latents.shape[1], block.stop)

    def require_encodable(self) -> None:
        """Refuse observed pixels where the encoder would have to know the predicted ones before them.

        Raises:
            ValueError: Blocks were predicted and kept, and the codec looks back in time, or has no first frame.
        """
        if self.encoder.memory != {} and not self._all_are_known:
            raise ValueError(
                "this codec looks back in time, or the worlds had no first frames, and predicted blocks lie before "
                "these frames: commit every block from the first on, or reset with the frames that were seen"
            )

    def follow(self, latents: Tensor, rows: Tensor | None) -> Tensor:
        """Take known latents that come next, `[B, n, C, h, w]`, and decode them, as `predict`.

        What they fill of a block without completing it is held while the rest is generated.

        Args:
            latents: Clean latents, behind what is held already.
            rows: Action rows of these latents, `[B, rows, columns]`; None for no action.
        """
        with self._all_or_lost():
            first, held = self.wanted.start, self._held
            stop, start = first + latents.shape[1], self.block.start
            known, frames = torch.cat([held.latents, latents], dim=1), []
            while self.block.stop <= stop:
                block = self.block
                fresh = range(max(block.start, first), block.stop)
                own = self._cut(rows, fresh, first)
                modulation = None if own is None else self._modulation(own, fresh, block, held)
                here = known[:, block.start - start : block.stop - start]
                self._rollout.append(here, modulation)
                frames.append(block_pixels(here[:, fresh.start - block.start :], self._decoder))
                held = self._nothing
            rest = range(max(self.block.start, first), stop)
            self._held = Held(known[:, self.block.start - start :], self._cut(rows, rest, first))
            if len(rest):
                frames.append(block_pixels(self._held.latents, self._decoder))
            self._last_is_known = True
            return torch.cat(frames, dim=1)

    def predict(self, rows: Tensor) -> Tensor:
        """Generate the next block under the action rows of `wanted`, `[B, rows, columns]`.

        Where it fails the block is forgotten, so that it can be tried again. The block before is written then. Under
        `context: last_step` a block that cannot be decoded is in the cache already, and the videos are lost.

        Returns:
            Pixels of the frames that were wanted, `[B, t, 3, H, W]` in [0, 1].

        Raises:
            RuntimeError: The model gave values that are not finite.
        """
        modulation = self._modulation(rows, self.wanted, self.block, self._held)
        self.write_pending()
        before = _Predicted(self._held, self._decoder)
        num_held = self._held.latents.shape[1]
        clock = Clock(self._nothing.latents.device)
        generate, decode = clock.timed("generate", self._rollout.next_block), clock.timed("decode", block_pixels)
        latents = generate(modulation, self._held.latents if num_held else None)
        decoder = self._decoder.copy()
        try:
            frames = decode(latents[:, num_held:], decoder)
        except BaseException:
            if self._rollout.is_pending:
                self._rollout.drop_pending()
            else:
                self.is_lost = True
            raise
        self._held, self._decoder, self._last_is_known = self._nothing, decoder, False
        if self._rollout.is_pending:
            self._predicted = before
        else:
            self._all_are_known = False
        self._clock = clock
        return frames

    def replace(self, latents: Tensor, rows: Tensor, encoder: CodecStream) -> Tensor:
        """Take known latents from `uncertain` on, in place of what was predicted; otherwise as `follow`."""
        if self._predicted is not None:
            self._rollout.drop_pending()
            self._held, self._decoder = self._predicted.held, self._predicted.decoder
            self._predicted = None
        self.encoder = encoder
        return self.follow(latents, rows)

    def write_pending(self) -> None:
        """Keep the last block as it is, and write it into the cache."""
        self._rollout.write_pending()
        if self._predicted is not None:
            self._predicted, self._all_are_known = None, False

    def draw_ahead(self) -> None:
        """Draw the noise that the next block begins with."""
        self._rollout.draw_ahead()

    def switch_prompt(self, text: Tensor) -> None:
        """Let the blocks that follow be under other prompts, `[B, L, text_dim]`."""
        self.write_pending()
        with self._all_or_lost():
            self._rollout.switch_prompt(text)

    def capture_nothing(self) -> None:
        """Make plain passes from now on, see `CausalRollout.capture_nothing`."""
        self._rollout.capture_nothing()

    def select(self, videos: Sequence[int], noise: NoiseSource) -> PixelRollout:
        """Return a rollout of some of the videos, which goes on from here by itself, see `CausalRollout.select`."""
        chosen = copy(self)
        chosen._rollout = self._rollout.select(videos, noise)
        chosen._decoder, chosen.encoder = self._decoder.select(videos), self.encoder.select(videos)
        chosen._held, chosen._nothing = self._held.select(videos), self._nothing.select(videos)
        if self._predicted is not None:
            before = self._predicted
            chosen._predicted = _Predicted(before.held.select(videos), before.decoder.select(videos))
        return chosen

    @contextmanager
    def _all_or_lost(self) -> Iterator[None]:
        self.is_lost = True
        yield
        self.is_lost = False

    def _cut(self, rows: Tensor | None, frames: range, first: int) -> Tensor | None:
        """Take the rows of some latent frames from those of the latent frames from `first` on."""
        if rows is None:
            return None
        own, offset = self._schema.rows_of_frames(frames), self._schema.rows_of(first).start
        return rows[:, own.start - offset : own.stop - offset] if len(own) else rows[:, :0]

    def _modulation(self, rows: Tensor, frames: range, block: range, held: Held) -> Tensor | None:
        """Modulation of a block, from the rows of its frames behind the held ones."""
        if held.rows is not None:
            rows, frames = torch.cat([held.rows, rows], dim=1), block
        made = self._conditioning.of_rows(rows, frames, self._nothing.latents)
        if made is None or len(frames) == len(block):
            return made
        return torch.cat([made.new_zeros(len(made), len(block) - len(frames), *made.shape[2:]), made], dim=1)

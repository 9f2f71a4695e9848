"""Causal generation, block by block: the loop that owns the cache.

`CausalRollout` is a session: `append` what is known, then `next_block` for as long as one likes, each time with the
actions of that block. `rollout` is the loop over it for a video of known length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from lightning_action.action.conditioning import BlockModulation
from lightning_action.diffusion.guidance import NO_GUIDANCE, Guidance
from lightning_action.diffusion.noise import NoiseSource
from lightning_action.diffusion.samplers import Sampler, denoised_input, hold
from lightning_action.generation.captured_pass import CapturedPass
from lightning_action.generation.prompt_switches import require_switchable
from lightning_action.generation.sampling import BlockContext
from lightning_action.generator.attention import Kernel, attend_dense, computed_dtype
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.context import TextCache
from lightning_action.generator.image import NO_IMAGE, ImageCondition
from lightning_action.generator.kv_cache import KVCache
from lightning_action.generator.model import CausalWanModel
from lightning_action.generator.prompt import join


@dataclass(frozen=True)
class _Block:
    """Inputs of the pass that puts a block into the cache; without `timestep` `[B, block]` it is clean."""

    frames: range
    latents: Tensor
    action_modulation: Tensor | None
    timestep: Tensor | None = None

    def since(self, frame: int) -> _Block:
        """The part from a latent frame on."""
        start = max(0, frame - self.frames.start)
        action_modulation = None if self.action_modulation is None else self.action_modulation[:, start:]
        timestep = None if self.timestep is None else self.timestep[:, start:]
        return _Block(self.frames[start:], self.latents[:, start:], action_modulation, timestep)

    def select(self, videos: Sequence[int]) -> _Block:
        """The part of some videos."""
        parts = (self.latents, self.action_modulation, self.timestep)
        latents, *rest = (None if part is None else part[list(videos)] for part in parts)
        assert latents is not None
        return _Block(self.frames, latents, *rest)


class CausalRollout:
    """One batch of videos while they are being generated.

    A block is handed over as soon as it is clean. The pass that writes it into the cache comes when the next one is
    asked for, or before that with `write_pending`; after the last block it never comes. `draw_ahead` draws the noise
    that the next block begins with before it is asked for.

    `switch_prompt` goes on under other prompts. For that the latents and the modulation of the window are kept, which
    are less than a hundredth of their keys and values in models of Wan's size.

    Branches of guidance (the negative prompt, or no action, the past included) run beside the video's own as further
    parts of the batch, each with its own part of the cache.

    Args:
        generator: Network that predicts velocities.
        text: Encoded prompts, `[B, L, text_dim]`; keys and values are computed once.
        causality: Block size, window and sink.
        sampler: Way from noise to a clean block, see `diffusion.samplers`.
        noise: Source of fresh noise of some frames at some step, see `diffusion.noise.frame_noise`.
        latent_shape: Shape of one latent frame, (C, H, W).
        num_frames: Longest video, in latent frames; only matters where the window is unlimited.
        guidance: Guidance by prompts and actions; each costs a further pass of all videos.
        negative_text: Encoded negative prompts, `[B, L, text_dim]`, for guidance by prompts.
        image: Condition that an image-to-video model sees besides, its channels for the whole video.
        context: View that later blocks have of a generated one, see `Sampling`.
        first_sampler: Way to the first block that is generated, if it is another.
        capture: Function that makes a `CapturedPass` for the blocks behind a full window; None captures none.
        kernel: Function that computes self-attention.
        relative_positions: True if positions count within what a block sees, see `Sampling`.
    """

    def __init__(
        self,
        generator: CausalWanModel,
        text: Tensor,
        causality: BlockCausality,
        sampler: Sampler,
        noise: NoiseSource,
        latent_shape: tuple[int, int, int],
        num_frames: int,
        *,
        guidance: Guidance = NO_GUIDANCE,
        negative_text: Tensor | None = None,
        image: ImageCondition = NO_IMAGE,
        context: BlockContext = "clean",
        first_sampler: Sampler | None = None,
        capture: Callable[[CausalWanModel, TextCache, KVCache], CapturedPass] | None = None,
        kernel: Kernel = attend_dense,
        relative_positions: bool = False,
    ) -> None:
        self.generator = generator
        self._sampler, self._first_sampler = sampler, first_sampler
        self._last_first_sampler: Sampler | None = None
        self.noise = noise
        self._drawn: tuple[range, Tensor] | None = None
        self.guidance = guidance
        self._branches = guidance.branches
        self.context = context
        self._capture = capture
        self._captured: CapturedPass | None = None
        self._pending: _Block | None = None
        self._window: list[_Block] = []
        self._input: tuple[Tensor, Tensor] | None = None
        self.nothing = text.new_zeros(len(text), 0, *latent_shape)
        self._image = image.repeated(len(self._branches))
        self._negative_text = negative_text
        self._text = self._text_cache(text, negative_text)
        self.cache = KVCache(
            num_layers=generator.num_layers,
            batch_size=text.shape[0] * len(self._branches),
            num_heads=generator.num_heads,
            head_dim=generator.head_dim,
            tokens_per_frame=generator.tokens_per_frame(*latent_shape[1:]),
            num_frames=num_frames,
            causality=causality,
            device=text.device,
            # Attention would cast a cache of another type as a whole, in every layer.
            dtype=computed_dtype(text),
            kernel=kernel,
            relative_positions=relative_positions,
        )

    @property
    def block(self) -> range:
        """The latent frames that come next."""
        here = self.cache.block
        return here if self._pending is None else self.cache.causality.block_after(here.stop)

    @property
    def is_pending(self) -> bool:
        """True if the last block waits for the pass that writes it into the cache."""
        return self._pending is not None

    def append(self, latents: Tensor, action_modulation: Tensor | None = None) -> None:
        """Take the next block of a known video, `[B, block, C, H, W]`, with its modulation `[B, block, ..., 6, D]`."""
        self.write_pending()
        self.cache.require_block(latents.shape[1])
        self._last_first_sampler = self._first_sampler
        # What was handed in, or over, is its owner's to change.
        self._pending = _Block(self.block, latents.clone(), _copy(action_modulation))

    def write_pending(self) -> None:
        """Write the last block into the cache now, while nobody waits for the next one."""
        if self._pending is None:
            return
        self._write(self._pending)
        self._pending = None

    def drop_pending(self) -> None:
        """Forget the last block before it is written: the next one takes its place.

        Raises:
            ValueError: The last block is written already, or no block was generated.
        """
        if not self.is_pending:
            raise ValueError("there is no block that waits to be written: drop it before write_pending, under `clean`")
        self._pending, self._drawn, self._first_sampler = None, None, self._last_first_sampler

    def select(self, videos: Sequence[int], noise: NoiseSource) -> CausalRollout:
        """Return a rollout of some of the videos, which goes on from here by itself; one may be there more than once.

        A `CapturedPass` is captured anew, unless `capture_nothing` says otherwise.

        Args:
            videos: Places of the videos in this batch.
            noise: Source of noise of those videos.
        """
        size = len(self.nothing)
        every = [video + branch * size for branch in range(len(self._branches)) for video in videos]
        chosen = copy(self)
        chosen.noise, chosen._drawn, chosen._captured, chosen._input = noise, None, None, None
        chosen.nothing, chosen._image = self.nothing[list(videos)], self._image.select(every)
        chosen._negative_text = None if self._negative_text is None else self._negative_text[list(videos)]
        chosen._text, chosen.cache = self._text.select(every), self.cache.select(every)
        chosen._pending = None if self._pending is None else self._pending.select(videos)
        chosen._window = [block.select(videos) for block in self._window]
        return chosen

    def capture_nothing(self) -> None:
        """Make plain passes from now on: a `CapturedPass` takes longer to capture than a few blocks take without."""
        self._capture = self._captured = None

    def switch_prompt(self, text: Tensor, negative_text: Tensor | None = None) -> None:
        """Let the blocks that follow be under other prompts.

        Keys and values carry the prompts that they were computed under. Those of the window are computed anew under the
        new ones, block by block from the same input (clean latents, or those of the last step, see `context`), with
        their own actions; each block sees the sink and the blocks of the window before it. The sink keeps what it has.
        It is the KV-recache of LongLive (Yang et al. 2025, arXiv:2509.22622), block by block as all passes are, where
        LongLive passes the window as one block.

        It costs one pass for each block of the window, and one for the prompts; a `CapturedPass` is captured anew.
        Where frames have left the window, what the others saw of them is lost, even under an equal prompt.

        Args:
            text: Encoded prompts, `[B, L, text_dim]`.
            negative_text: Encoded negative prompts, `[B, L, text_dim]`; None keeps those that there are.

        Raises:
            ValueError: The prompts are not one for each video, or do not fit the generator.
        """
        if len(text) != len(self.nothing):
            raise ValueError(f"expected encoded prompts of {len(self.nothing)} videos, got {list(text.shape)}")
        negative_text = self._negative_text if negative_text is None else negative_text
        renewed = self._text_cache(text, negative_text)
        self.write_pending()
        self._text, self._negative_text, self._captured = renewed, negative_text, None
        blocks, self._window = self._window, []
        self.cache.rewind()
        for block in blocks:
            self._write(block.since(self.cache.position))

    def next_block(
        self,
        action_modulation: Tensor | None = None,
        known: Tensor | None = None,
        sampler: Sampler | None = None,
    ) -> Tensor:
        """Generate the next block.

        Args:
            action_modulation: Modulation of the block, `[B, block, ..., 6, D]`.
            known: Clean latents of its first frames, `[B, fewer than block, C, H, W]`. They are held, at timestep 0, in
                every step in which the others are generated: image to video as Wan 2.2 does it.
            sampler: Way from noise to this block; None takes that of the rollout.

        Returns:
            Clean latents, `[B, block, C, H, W]`, the known ones included.
        """
        self.write_pending()
        modulation = self._branch_modulation(action_modulation)
        sampler = sampler or self._first_sampler or self._sampler
        self._last_first_sampler = self._first_sampler
        clean = hold(sampler(partial(self._velocity, modulation, known), partial(self._noise, self.block)), known)
        self._first_sampler = None
        if self.context == "clean":
            self._pending = _Block(self.block, clean.clone(), _copy(action_modulation))
        else:
            assert self._input is not None, "a sampler asks for a velocity at least once"
            block = _Block(self.block, self._input[0], _copy(action_modulation), self._input[1])
            self.cache.advance()
            self._remember(block)
        return clean

    def draw_ahead(self) -> None:
        """Draw the noise that the next block begins with now, while the device still works on the last one."""
        self._drawn = self.block, self.noise(self.block, 0)

    def _noise(self, block: range, step: int) -> Tensor:
        drawn, self._drawn = self._drawn, None
        if drawn is not None and drawn[0] == block and step == 0:
            return drawn[1]
        return self.noise(block, step)

    def _velocity(self, modulation: Tensor | None, known: Tensor | None, noisy: Tensor, timestep: float) -> Tensor:
        latents, timesteps = self._input = denoised_input(noisy, timestep, known)
        every, levels = self._repeated(latents), self._repeated(timesteps)
        image_channels = self._image.of_frames(self.block)
        if (captured := self._captured_pass()) is not None:
            velocity = captured.denoise(every, levels, modulation, image_channels)
        else:
            velocity = self.generator.denoise(every, levels, self._text, self.cache, modulation, image_channels)
        return self.guidance.combine(velocity.chunk(len(self._branches)), timestep)

    def _write(self, block: _Block) -> None:
        """Compute the keys and values of the cache's next block, and keep them."""
        every, modulation = self._repeated(block.latents), self._branch_modulation(block.action_modulation)
        image_channels = self._image.of_frames(block.frames)
        if (captured := self._captured_pass()) is not None:
            captured.write(every, modulation, image_channels)
        else:
            timestep = None if block.timestep is None else self._repeated(block.timestep)
            self.generator.write(every, self._text, self.cache, modulation, image_channels, timestep)
        self._remember(block)

    def _remember(self, block: _Block) -> None:
        window = self.cache.causality.window(self.cache.block)
        self._window = [kept for kept in (*self._window, block) if kept.frames.stop > window.start]

    def _captured_pass(self) -> CapturedPass | None:
        if self._captured is None and self._capture is not None and self.cache.is_full:
            self._captured = self._capture(self.generator, self._text, self.cache)
        return self._captured

    def _repeated(self, x: Tensor) -> Tensor:
        return torch.cat([x] * len(self._branches)) if len(self._branches) > 1 else x

    def _text_cache(self, text: Tensor, negative_text: Tensor | None) -> TextCache:
        if negative_text is None:
            if self.guidance.takes_negative_prompt:
                raise ValueError(
                    "guidance by prompts needs negative_text, the encoded negative prompts [B, L, text_dim]"
                )
            negative_text = text
        texts = join([text if branch.takes_prompt else negative_text for branch in self._branches])
        return self.generator.text_cache(texts, self._image.embeds)

    def _branch_modulation(self, action_modulation: Tensor | None) -> Tensor | None:
        if action_modulation is None or not any(branch.takes_action for branch in self._branches):
            return None
        nothing = torch.zeros_like(action_modulation)
        return torch.cat([action_modulation if branch.takes_action else nothing for branch in self._branches])


def _copy(action_modulation: Tensor | None) -> Tensor | None:
    return None if action_modulation is None else action_modulation.clone()


def rollout(
    session: CausalRollout,
    num_frames: int,
    action_modulation: Tensor | BlockModulation | None = None,
    initial_latents: Tensor | None = None,
    switches: Mapping[int, Tensor] = MappingProxyType({}),
) -> Iterator[Tensor]:
    """Generate a video block by block and yield each block as soon as it is clean, the initial ones first.

    Args:
        session: Rollout that is fresh, or standing after an earlier call, in which case frame 0 of this call is its
            next frame.
        num_frames: Latent frames of this call, the initial ones included.
        action_modulation: Modulation of all frames of this call, `[B, F, 6, D]` or `[B, F, num_layers, 6, D]`; or a
            function of (the block's frames in the video, the latents of this call so far) that gives the block's; or
            None.
        initial_latents: Clean frames the video starts with, `[B, F0, C, H, W]`: one latent frame of a single image, or
            a video to go on from. Where F0 ends inside a block, its known frames are held while the rest of the block
            is generated, see `CausalRollout.next_block`.
        switches: Encoded prompts, `[B, L, text_dim]`, by the frame of this call from which on they hold, the first of a
            block behind the initial frames; see `CausalRollout.switch_prompt`.

    Yields:
        Clean latents of one block, `[B, block, C, H, W]`.

    Raises:
        ValueError: The frames are not a whole number of blocks, or the initial ones are too many or not finite, or
            prompts would be switched at other frames.
    """
    start = session.block.start
    blocks = session.cache.causality.split(num_frames, start)
    initial = session.nothing if initial_latents is None else initial_latents
    _require_fit(initial, action_modulation, num_frames)
    ranges = [range(block.start - start, block.stop - start) for block in blocks]
    require_switchable(switches, ranges, initial.shape[1])
    history = session.nothing
    if callable(action_modulation):
        # Written once each: what is joined for every block would be copied again and again.
        history = history.new_empty(len(history), num_frames, *history.shape[2:])
    for block in blocks:
        here = slice(block.start - start, block.stop - start)
        if here.start in switches:
            session.switch_prompt(switches[here.start])
        modulation = None
        if isinstance(action_modulation, Tensor):
            modulation = action_modulation[:, here]
        elif action_modulation is not None:
            modulation = action_modulation(block, history[:, : here.start])
        known = initial[:, here] if here.start < initial.shape[1] else None
        if known is not None and known.shape[1] == len(block):
            latents = known
            session.append(known, modulation)
        else:
            latents = session.next_block(modulation, known)
            if block.stop < blocks[-1].stop:
                session.draw_ahead()
        if callable(action_modulation):
            history[:, here] = latents
        yield latents


def _require_fit(initial: Tensor, modulation: Tensor | BlockModulation | None, num_frames: int) -> None:
    if initial.shape[1] > num_frames:
        raise ValueError(f"{initial.shape[1]} initial latent frames are more than the video has, {num_frames}")
    if initial.numel() and not bool(torch.isfinite(initial).all()):
        raise ValueError("initial_latents hold NaN or infinity: check what they were encoded from")
    if isinstance(modulation, Tensor) and modulation.shape[1] != num_frames:
        raise ValueError(f"action_modulation is for {modulation.shape[1]} latent frames, the video has {num_frames}")

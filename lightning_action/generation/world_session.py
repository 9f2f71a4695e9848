"""A generated world that is stepped with actions, while somebody watches or plans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from lightning_action.action.conditioning import ActionConditioning
from lightning_action.action.schema import ActionSchema
from lightning_action.batch import num_pixel_frames
from lightning_action.diffusion.noise import NoiseSource, frame_noise
from lightning_action.frozen.holder import FrozenParts
from lightning_action.generation.pixel_rollout import PixelRollout
from lightning_action.generation.session_inputs import (
    Prompt,
    given_frames,
    given_numbers,
    given_prompts,
    given_row,
    given_rows,
    given_rows_wanted,
    given_size,
    given_worlds,
)
from lightning_action.generation.video import VideoGenerator
from lightning_action.generator.causality import BlockCausality
from lightning_action.ranges import require_numbers


class WorldSession:
    """A batch of generated worlds that stand at the same frame and are stepped together, each with its own actions.

    `reset` begins them, `step` takes action rows one by one, and a block of frames comes back as soon as the rows of a
    block are there. With the same actions, seed, `sample_id` and first frames the frames are those of
    `GenerativeModule.generate`, bit for bit; only a codec that decodes several latent frames together (`TinyWanVAE`)
    may round otherwise where first frames end inside a block. Memory does not grow with the number of frames. Sessions
    of one model may take turns and do not disturb each other; several threads must lock.
    `GenerativeModule.open_session` makes one.

    A step that fails (values that are not finite, no memory) takes no rows, and can be tried again. What fails half-way
    and cannot be undone leaves worlds that only `reset` helps.

    Args:
        videos: Generator with its settings.
        conditioning: Way from action rows to modulation.
        frozen: Text encoder and VAE.
        schema: Meaning of an action row.
        dtype: Dtype that the networks compute in.
        device: Device that they compute on.
        num_worlds: Number B of worlds.
        max_latents: Number of latent frames that a world can have, where the window is unlimited.

    Raises:
        ValueError: A number is out of range, or nothing bounds the memory: neither `max_latents` nor a window.
    """

    def __init__(
        self,
        videos: VideoGenerator,
        conditioning: ActionConditioning,
        frozen: FrozenParts,
        schema: ActionSchema,
        dtype: torch.dtype,
        device: torch.device,
        num_worlds: int = 1,
        max_latents: int | None = None,
    ) -> None:
        require_numbers({"num_worlds": num_worlds}, 1, whole=True)
        if max_latents is not None:
            require_numbers({"max_latents": max_latents}, 1, whole=True)
        elif videos.causality.local_attn_size is None:
            raise ValueError(
                "this model sees all frames of the past, which would grow for ever: give a `causality` with "
                "local_attn_size, such as the number of latent frames that it was trained on, or `max_latents`"
            )
        self.schema, self.num_worlds = schema, num_worlds
        self._videos, self._conditioning, self._frozen = videos, conditioning, frozen
        self._device, self._dtype = device, dtype
        self._max_latents = max_latents or 1
        self._seed, self._sample_id = videos.sampling.seed, list(range(num_worlds))
        self._rollout: PixelRollout | None = None
        self._rows: list[Tensor] = []
        self._frame_size = (0, 0)
        self._is_closed = False

    @property
    def causality(self) -> BlockCausality:
        """Cut of the worlds into blocks, and what a block sees."""
        return self._videos.causality

    @torch.no_grad()
    def reset(
        self,
        first_frames: Tensor | None = None,
        prompt: Prompt = None,
        seed: int | None = None,
        frame_size: tuple[int, int] | None = None,
        *,
        actions: Tensor | None = None,
        sample_id: Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """Begin all worlds anew.

        The memory of the old worlds is freed before that of the new ones is taken; if that fails, there are none.

        Args:
            first_frames: Videos that they begin with, `[B, T, 3, H, W]` in [0, 1], T = 1 + r n. What does not fill a
                block is held while the rest of the block is generated.
            prompt: Prompt of all worlds, or B prompts; None is the empty one.
            seed: Random seed of the noise; None takes that of `sampling`.
            frame_size: Height and width of the frames, where there are no first ones.
            actions: Action rows of the first frames, `[B, rows, columns]`; None for no action.
            sample_id: Numbers of the worlds, to which the noise belongs; 0 ... B - 1 if not given. Worlds of the same
                number share their noise.

        Returns:
            The first frames as the model sees them, decoded from their latents, `[B, T, 3, H, W]` in [0, 1]. Without
            first frames the first block, if it follows from no action, else no frames, `[B, 0, 3, H, W]`.

        Raises:
            ValueError: An argument does not fit; the worlds are then as they were.
            RuntimeError: The session is closed, or the first block is not finite.
        """
        self._require_not_closed()
        video = None if first_frames is None else given_frames(first_frames, self.num_worlds)
        if video is None and (frame_size is None or actions is not None):
            raise ValueError("without first_frames, give frame_size (height, width) and no actions of first frames")
        height, width = given_size(video, frame_size)
        shape = self._frozen.vae.latent_shape(height, width)
        self._videos.generator.tokens_per_frame(*shape[1:])
        numbers = given_numbers(range(self.num_worlds) if sample_id is None else sample_id, self.num_worlds)
        chosen_seed = self._videos.sampling.seed if seed is None else seed
        require_numbers({"seed": chosen_seed}, 0, 2**63 - 1, whole=True)
        encoder, latents = self._frozen.encoder(self._device), None
        if video is not None:
            latents = self._frozen.encode_next(encoder, video, self._device, self._dtype)
            self._require_room(latents.shape[1])
        rows = given_rows(actions, range(0 if latents is None else latents.shape[1]), self.schema, self.num_worlds)
        text, negative = self._encoded(prompt), self._negative_text()
        noise = self._noise(chosen_seed, numbers, shape)
        # Two caches at once may be more than there is memory for.
        self._rollout, self._rows = None, []
        rollout = self._videos.begin(text, noise, (self._max_latents, *shape), negative_text=negative)
        self._rollout = PixelRollout(
            rollout, self._conditioning, self.schema, self._frozen.decoder(self._device), encoder
        )
        self._seed, self._sample_id, self._frame_size = chosen_seed, numbers, (height, width)
        if latents is not None:
            return self._rollout.follow(latents, rows)
        return self._take(torch.zeros(self.num_worlds, 0, self.schema.num_columns))

    @property
    def rows_wanted(self) -> int:
        """Number of action rows that are missing until the next block can be generated."""
        return len(self._rows_of_block) - len(self._rows)

    @torch.no_grad()
    def step(self, action: Any) -> Tensor:
        """Take one action row; the block whose rows it completes is generated.

        Args:
            action: Row of each world, `[B, columns]`, or of all worlds alike, `[columns]`.

        Returns:
            Pixels of the block, `[B, t, 3, H, W]` in [0, 1]; t is 0 while rows are wanted.

        Raises:
            ValueError: The row does not fit the schema, or is not finite; it is not taken then.
            RuntimeError: The session has no world, as before `reset` and after `close`, or the model gave values that
                are not finite. The row is not taken then, and the rows before it stay; only under `context: last_step`
                the values are in the cache already, and the worlds need a `reset`.
        """
        self._require_room(self._require_worlds().block.stop)
        return self._take(given_row(action, self.schema, self.num_worlds))

    @torch.no_grad()
    def step_block(self, actions: Any) -> Tensor:
        """Take all rows that are wanted, `[B, rows_wanted, columns]`, at once; otherwise as `step`."""
        self._require_room(self._require_worlds().block.stop)
        return self._take(given_rows_wanted(actions, self.rows_wanted, self.schema, self.num_worlds))

    def stream(self, actions: Iterable[Any]) -> Iterator[Tensor]:
        """Take rows as `step` does, and yield the frames of each block."""
        for action in actions:
            frames = self.step(action)
            if frames.shape[1]:
                yield frames

    @torch.no_grad()
    def write_pending(self) -> None:
        """Do what the next block needs while nobody waits: the clean pass over the last one, and noise.

        A block is shown before its clean pass; without this, the next step makes it, and so does each fork. `commit`
        cannot replace a predicted block any more; behind a known one (`reset`, `commit`) it stays possible.
        """
        rollout = self._require_worlds()
        rollout.write_pending()
        if self.causality.local_attn_size is not None or rollout.block.stop <= self._max_latents:
            rollout.draw_ahead()

    @torch.no_grad()
    def prompt(self, text: Prompt) -> None:
        """Let the blocks that follow be under another prompt, or B others, see `CausalRollout.switch_prompt`."""
        self._require_worlds().switch_prompt(self._encoded(text))

    @torch.no_grad()
    def fork(self, num_futures: int = 1) -> WorldSession:
        """Return a session of several futures of every world, which share its past and nothing that comes.

        Future j of world b is world `b * num_futures + j` there. All futures of a world have its noise, so that they
        differ by their actions alone. It takes the memory of a session of so many worlds; close it when it has served.
        Futures make plain passes until they are reset, because capturing one (`capture_pass`) takes longer than they
        live; these may round otherwise.
        """
        require_numbers({"num_futures": num_futures}, 1, whole=True)
        futures = self.select([world for world in range(self.num_worlds) for _ in range(num_futures)])
        futures._require_worlds().capture_nothing()
        return futures

    @torch.no_grad()
    def select(self, worlds: Sequence[int] | Tensor) -> WorldSession:
        """Return a session of some of the worlds, in this order, as `fork`; one may be there more than once.

        It is there to stay: a pass is captured anew where the module captures them.

        Raises:
            ValueError: The list is empty, is a mask, or holds a number that is no world's.
            RuntimeError: The session has no world, as before `reset` and after `close`.
        """
        rollout = self._require_worlds()
        places = given_worlds(worlds, self.num_worlds)
        chosen = copy(self)
        chosen.num_worlds = len(places)
        chosen._sample_id = [self._sample_id[place] for place in places]
        chosen._rows = [row[places] for row in self._rows]
        shape = self._frozen.vae.latent_shape(*self._frame_size)
        chosen._rollout = rollout.select(places, self._noise(self._seed, chosen._sample_id, shape))
        return chosen

    @torch.no_grad()
    def commit(self, actions: Any, frames: Tensor) -> Tensor:
        """Put what really happened in place of what was predicted, or behind what is known.

        The frames are those that follow the known ones: in place of the block that was predicted last, and on from
        there, whole blocks. Nothing that was computed before is computed anew, the blocks are appended to the cache.
        So a session whose blocks were all committed equals one that was reset with all those frames and actions; the
        only difference is the rounding of codecs that encode several latent frames together.

        Behind known blocks it is always possible, also after `write_pending`. A predicted block can be replaced right
        after its step, not after `write_pending`, `prompt` or further steps, and not under `context: last_step`. To
        predict further, do it in a `fork`. Blocks that were predicted and kept may lie before, if the codec encodes
        each latent frame by itself and the worlds had first frames. A codec that cannot encode part by part
        (`TinyWanVAE`) can commit nothing behind the first frames.

        Args:
            actions: Action rows that led to the frames, `[B, rows, columns]`.
            frames: Pixels that were seen, `[B, t, 3, H, W]` in [0, 1].

        Returns:
            The frames as the model sees them, decoded from their latents.

        Raises:
            ValueError: A commit is not possible now, or an argument does not fit; the worlds are then as they were.
            RuntimeError: The session has no world, as before `reset` and after `close`.
        """
        rollout = self._require_worlds()
        if self._rows:
            raise ValueError(f"{len(self._rows)} action rows wait for their block: commit before them, or complete it")
        first = rollout.uncertain.start
        rollout.require_encodable()
        pixels = given_frames(frames, self.num_worlds)
        if tuple(pixels.shape[-2:]) != self._frame_size:
            raise ValueError(f"expected frames of {self._frame_size} (H, W), got {list(frames.shape)}")
        encoder = rollout.encoder.copy()
        latents = self._frozen.encode_next(encoder, pixels, self._device, self._dtype)
        known = range(first, first + latents.shape[1])
        self.causality.split(len(known), first)
        self._require_room(known.stop)
        rows = given_rows(actions, known, self.schema, self.num_worlds)
        if rows is None:
            raise ValueError("expected the action rows that led to the frames, [B, rows, columns], got None")
        return rollout.replace(latents, rows, encoder)

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        self._require_worlds()
        return self._frame_size

    @property
    def latent_frames(self) -> int:
        """Number of latent frames that there are, known or predicted."""
        return self._require_worlds().wanted.start

    @property
    def pixel_frames(self) -> int:
        """Number of pixel frames that there are."""
        count = self.latent_frames
        return num_pixel_frames(count, self.schema.temporal_compression_ratio) if count else 0

    @property
    def position(self) -> int:
        """Latent frame at which the next block begins."""
        return self._require_worlds().block.start

    @property
    def block_seconds(self) -> dict[str, float]:
        """Seconds that `generate` and `decode` took of the block that was predicted last; none before it."""
        return self._require_worlds().block_seconds

    def close(self) -> None:
        """Free the memory of the worlds; nothing can be done with them any more."""
        self._rollout, self._rows, self._is_closed = None, [], True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _rows_of_block(self) -> range:
        return self.schema.rows_of_frames(self._require_worlds().wanted)

    def _take(self, fresh: Tensor) -> Tensor:
        """Take rows that were looked at; if they complete a block, they are taken only when it is there."""
        # What was handed in is its owner's to change.
        rows = [*self._rows, *fresh.clone().unbind(1)]
        if len(rows) < len(self._rows_of_block):
            self._rows = rows
            return torch.zeros(self.num_worlds, 0, 3, *self._frame_size, device=self._device)
        frames = self._require_worlds().predict(torch.stack(rows, dim=1) if rows else fresh)
        self._rows = []
        return frames

    def _encoded(self, prompt: Prompt) -> Tensor:
        return self._frozen.encode_text(given_prompts(prompt, self.num_worlds), self._device, self._dtype)

    def _negative_text(self) -> Tensor | None:
        sampling = self._videos.sampling
        return self._encoded(sampling.negative_prompt) if sampling.takes_negative_prompt else None

    def _noise(self, seed: int, sample_id: Sequence[int], shape: Sequence[int]) -> NoiseSource:
        return frame_noise(seed, sample_id, shape, self._device, self._dtype)

    def _require_room(self, num_latents: int) -> None:
        if self.causality.local_attn_size is None and num_latents > self._max_latents:
            raise ValueError(
                f"the session holds {self._max_latents} latent frames and cannot go on to {num_latents}: reset it, or "
                "open it with larger max_latents or with a causality that has a window, local_attn_size"
            )

    def _require_not_closed(self) -> None:
        if self._is_closed:
            raise RuntimeError("this session is closed: open another one")

    def _require_worlds(self) -> PixelRollout:
        self._require_not_closed()
        if self._rollout is None:
            raise RuntimeError("there are no worlds yet: call reset first")
        if self._rollout.is_lost:
            raise RuntimeError("the worlds cannot go on after what failed before: reset them")
        return self._rollout

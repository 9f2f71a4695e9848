"""Keys and values of the past, for all layers, in two tensors that never grow, shift or get copied."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from lightning_action.generator.attention import Kernel, attend_dense
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.rope import rotate, rotation


class KVCache:
    """A pinned sink, a ring over the window, and behind them the place of the block that is being denoised.

    `of_layer` gives views of the past and, behind it, of the current block's place, which each pass of the block
    overwrites; the past is only read. `advance` keeps what the last pass has left there, and moves on by one block.
    `rewind` goes back to the start of the window, for its frames to be computed anew.
    Keys are stored rotated, so their order in memory does not matter. All positions are Python integers.

    Sink and window follow StreamingLLM (Xiao et al. 2023, arXiv:2309.17453). There positions count within the cache.
    Here each key keeps its frame's position in the video, as training had it, so that the sink recedes for ever; with
    `relative_positions` they count within what a block sees, as there. Scores depend on differences of positions alone,
    and those inside the window are the same either way: the sink alone moves, and its keys are turned anew from the
    first ones whenever frames have left the window, so that no rounding adds up.

    Args:
        num_layers: Number of layers of the generator.
        batch_size: Number of videos generated together.
        num_heads: Number of attention heads.
        head_dim: Number of channels of a head.
        tokens_per_frame: Number of tokens of one latent frame.
        num_frames: Number of latent frames of the whole video; it only matters where the window is unlimited.
        causality: Block size, window and sink.
        device: Device of the cache.
        dtype: Dtype of keys and values.
        kernel: Function that computes attention to them.
        relative_positions: True if positions count within what a block sees: the sink stands where the window begins.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_heads: int,
        head_dim: int,
        tokens_per_frame: int,
        num_frames: int,
        causality: BlockCausality,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        kernel: Kernel = attend_dense,
        relative_positions: bool = False,
    ) -> None:
        self.causality = causality
        self.kernel = kernel
        self.tokens_per_frame = tokens_per_frame
        self.position = 0
        self._limit = num_frames if causality.local_attn_size is None else None
        slots = causality.local_attn_size or num_frames
        # A first frame that stands alone may be a whole video, and shorter than a block.
        self._capacity = max(0, slots - causality.num_frame_per_block)
        self._sink = 0 if causality.local_attn_size is None else causality.sink_size
        # Frames between the sink and the window that have no slots, because the cache was rewound.
        self._num_skipped = 0
        shape = (num_layers, batch_size, slots * tokens_per_frame, num_heads, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        num_moving = self._sink * tokens_per_frame if relative_positions else 0
        # Keys of the sink as they were written, at their frames' positions in the video.
        self._first_keys = torch.zeros_like(self.keys[:, :, :num_moving])

    @property
    def block(self) -> range:
        """The latent frames that come next."""
        return self.causality.block_after(self.position)

    @property
    def is_full(self) -> bool:
        """True if the window is full, so that all later blocks find the same number of frames in the same places."""
        is_whole = len(self.block) == self.causality.num_frame_per_block
        return self.causality.local_attn_size is not None and self._place == self._capacity and is_whole

    @property
    def num_bytes(self) -> int:
        """Memory of the cache in bytes, constant over its life."""
        return (2 * self.keys.numel() + self._first_keys.numel()) * self.keys.element_size()

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return views of keys and values, the past followed by the block's place, `[B, N, heads, head_dim]`."""
        stop = (self._place + len(self.block)) * self.tokens_per_frame
        return self.keys[layer, :, :stop], self.values[layer, :, :stop]

    def of_frame(self, frame: int) -> tuple[Tensor, Tensor]:
        """Copy keys and values of one past frame that a later block sees, `[num_layers, B, N, heads, head_dim]`.

        Raises:
            ValueError: The cache does not hold the frame, or not any more.
        """
        slot = self._slot(frame)
        oldest = self.position - (self._capacity - self._sink)
        if slot is None or not 0 <= frame < self.position or self._sink <= frame < oldest:
            raise ValueError(f"the cache stands at latent frame {self.position} and holds no frame {frame}")
        tokens = slice(slot * self.tokens_per_frame, (slot + 1) * self.tokens_per_frame)
        return self.keys[:, :, tokens].clone(), self.values[:, :, tokens].clone()

    def advance(self) -> None:
        """Keep the current block's keys and values, drop frames that no later block sees, and move on."""
        for source, frame in enumerate(self.block, self._place):
            slot = self._slot(frame)
            # While the window fills, frames stay where they were written; then each takes the slot of the oldest.
            if slot is None or slot == source:
                continue
            for stored in (self.keys, self.values):
                in_slots = stored.unflatten(2, (-1, self.tokens_per_frame))
                in_slots[:, :, slot] = in_slots[:, :, source]
        num_moving, start = self._first_keys.shape[2], self.position * self.tokens_per_frame
        if start < num_moving:
            # Slots of the sink hold its frames from the first, and are turned only when it is whole.
            self._first_keys[:, :, start:] = self.keys[:, :, start:num_moving]
        self.position = self.block.stop
        self._move_sink()

    def rewind(self) -> None:
        """Drop all frames but the sink, and stand before the first one of the window, in whatever part of its block."""
        window = self.causality.window(self.block)
        if window:
            self._num_skipped = window.start - self.causality.sink_size
            self.position = window.start
            self._move_sink()

    def select(self, videos: Sequence[int]) -> KVCache:
        """Return a cache of some of the videos, which goes on from here by itself; one may be there more than once."""
        chosen = copy(self)
        every = (self.keys, self.values, self._first_keys)
        # A list as an index copies, also where it names all videos, so that neither cache writes into the other.
        chosen.keys, chosen.values, chosen._first_keys = (stored[:, list(videos)] for stored in every)
        return chosen

    def _move_sink(self) -> None:
        """Turn the sink's keys by the frames between it and the first one that the next block sees behind it."""
        num_moving = self._first_keys.shape[2]
        num_passed = max(self.causality.window(self.block).start - self._sink, self._num_skipped)
        if num_moving and num_passed:
            turn = rotation(range(num_passed, num_passed + 1), 1, 1, self.keys.shape[-1], self.keys.device)
            self.keys[:, :, :num_moving] = rotate(self._first_keys, turn)

    @property
    def _place(self) -> int:
        """First slot of the current block.

        Slots fill in order until the window is full; from then on all of them hold frames that the block sees. So the
        past is always one slice, the block's own place lies directly behind it, and nothing has to be joined.
        """
        return min(self.position - self._num_skipped, self._capacity)

    def require_block(self, num_frames: int) -> None:
        """Refuse a call that is not exactly the next block, or that lies past the end of an unlimited cache.

        Raises:
            ValueError: The frames are not those of the block that is next; the message has the frames expected and
                those that came.
        """
        if num_frames != len(self.block):
            raise ValueError(
                f"the cache stands at latent frame {self.position} and expects a block of {len(self.block)} latent "
                f"frames, got {num_frames}: pass whole blocks"
            )
        if self._limit is not None and self.block.stop > self._limit:
            raise ValueError(
                f"the cache holds {self._limit} latent frames and cannot take frames {self.block.start} to "
                f"{self.block.stop - 1}: build it for a longer video, or set local_attn_size"
            )

    def _slot(self, frame: int) -> int | None:
        """Slot of a frame: its own place in the sink, else the ring; None where no later block sees it."""
        if frame < self._sink:
            return frame
        ring = self._capacity - self._sink
        # The frame that is overwritten is the oldest, which the next block no longer sees.
        return self._sink + (frame - self._num_skipped - self._sink) % ring if ring else None

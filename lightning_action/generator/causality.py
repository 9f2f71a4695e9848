"""Visibility among latent frames: blocks, window and sink, as plain integers.

Blocks that are denoised together and see only their past are those of CausVid (Yin et al. 2024, arXiv:2412.07772) and
Self Forcing (Huang et al. 2025, arXiv:2506.08009). A sliding window alone degrades once the first frames leave it; the
sink keeps them, as in StreamingLLM (Xiao et al. 2023, arXiv:2309.17453), and for video LongLive (Yang et al. 2025,
arXiv:2509.22622).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Visibility:
    """Frames `query` attend to the frames of every range in `keys` (frame indices of one sequence)."""

    query: range
    keys: tuple[range, ...]


@dataclass(frozen=True)
class BlockCausality:
    """Rule of how a video is cut into blocks, and how far back a block sees.

    With `e` the first frame after its own block, a block sees the frames `e - (local_attn_size - sink_size) ... e - 1`
    and the first `sink_size` frames of the video; inside its own block it sees everything.

    Args:
        num_frame_per_block: Number of latent frames that are denoised together.
        local_attn_size: Number of latent frames a block sees, its own and the sink included; None means all.
        sink_size: Number of latent frames at the start of the video that stay visible for ever.
        independent_first_frame: Make the first latent frame a block of its own (image to video).

    Raises:
        ValueError: A size is out of range, or the window cannot hold the sink and one block.
    """

    num_frame_per_block: int = 1
    local_attn_size: int | None = None
    sink_size: int = 0
    independent_first_frame: bool = False

    def __post_init__(self) -> None:
        if self.num_frame_per_block < 1 or self.sink_size < 0:
            raise ValueError(
                f"expected num_frame_per_block >= 1 and sink_size >= 0, got {self.num_frame_per_block} and "
                f"{self.sink_size}"
            )
        needed = self.num_frame_per_block + self.sink_size
        if self.local_attn_size is not None and self.local_attn_size < needed:
            raise ValueError(
                f"local_attn_size {self.local_attn_size} cannot hold the sink ({self.sink_size} latent frames) and one "
                f"block ({self.num_frame_per_block}): use at least {needed}, or null for no limit"
            )

    def block_after(self, start: int) -> range:
        """Return the block that begins at latent frame `start`; inside a block, the rest of it."""
        num_alone = int(self.independent_first_frame)
        if start < num_alone:
            return range(start, num_alone)
        return range(start, start + self.num_frame_per_block - (start - num_alone) % self.num_frame_per_block)

    def split(self, num_frames: int, start: int = 0) -> list[range]:
        """Cut the latent frames `start ... start + num_frames - 1` into blocks.

        Raises:
            ValueError: The frames are not a whole number of blocks.
        """
        stop = start + num_frames
        blocks = self._blocks(range(start, stop))
        if not blocks or blocks[-1].stop != stop:
            first = "one frame alone, then " if self.independent_first_frame and start == 0 else ""
            raise ValueError(
                f"{num_frames} latent frames from frame {start} on are not a whole number of blocks: expected {first}"
                f"a positive multiple of num_frame_per_block = {self.num_frame_per_block}; change the number of frames "
                "or the block size"
            )
        return blocks

    def past(self, block: range) -> tuple[range, ...]:
        """The frames before `block` that it sees: the sink and the window, merged where they touch."""
        return merge_ranges(range(0, min(self.sink_size, block.start)), self.window(block))

    def window(self, block: range) -> range:
        """The frames before `block` that it sees behind the sink; the first block of them may have lost some."""
        first = 0 if self.local_attn_size is None else block.stop - (self.local_attn_size - self.sink_size)
        return range(max(first, self.sink_size), block.start)

    def window_blocks(self, block: range) -> list[range]:
        """The frames of `window`, block by block."""
        return self._blocks(self.window(block))

    def _blocks(self, frames: range) -> list[range]:
        blocks: list[range] = []
        position = frames.start
        while position < frames.stop:
            blocks.append(self.block_after(position))
            position = blocks[-1].stop
        return blocks


def merge_ranges(*ranges: range) -> tuple[range, ...]:
    """Drop empty ranges and join those that touch or overlap; the input is sorted by start."""
    merged: list[range] = []
    for item in ranges:
        if not len(item):
            continue
        if merged and item.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, item.stop))
        else:
            merged.append(item)
    return tuple(merged)


def bidirectional(num_frames: int) -> tuple[Visibility, ...]:
    """Let every frame see every frame."""
    everything = range(num_frames)
    return (Visibility(everything, (everything,)),)


def block_causal(num_frames: int, causality: BlockCausality) -> tuple[Visibility, ...]:
    """Let each block of one video see itself and its past, in one pass."""
    return tuple(
        Visibility(block, merge_ranges(*causality.past(block), block)) for block in causality.split(num_frames)
    )


def teacher_forcing(num_frames: int, causality: BlockCausality) -> tuple[Visibility, ...]:
    """Let noisy blocks see the clean past, in the sequence `[clean | noisy]` of 2 x `num_frames` frames.

    Clean frames are block-causal among themselves; a noisy block sees itself and the clean frames of its past, exactly
    what it sees through a cache when the video is generated.
    """
    noisy = []
    for block in causality.split(num_frames):
        # The clean copy of the block itself is left out: it is the answer, and the noisy block would copy it. Other
        # noisy blocks are left out too, since generation never shows one.
        shifted = range(block.start + num_frames, block.stop + num_frames)
        noisy.append(Visibility(shifted, merge_ranges(*causality.past(block), shifted)))
    return block_causal(num_frames, causality) + tuple(noisy)

from __future__ import annotations

import pytest

from lightning_action.generator.attention import frame_mask
from lightning_action.generator.causality import (
    BlockCausality,
    bidirectional,
    block_causal,
    merge_ranges,
    teacher_forcing,
)


def test_split_into_blocks() -> None:
    assert BlockCausality(3).split(6) == [range(0, 3), range(3, 6)]
    assert BlockCausality(2, independent_first_frame=True).split(5) == [range(0, 1), range(1, 3), range(3, 5)]
    assert BlockCausality(2, independent_first_frame=True).split(4, start=1) == [range(1, 3), range(3, 5)]


@pytest.mark.parametrize(
    ("causality", "num_frames"),
    [(BlockCausality(3), 7), (BlockCausality(3), 0), (BlockCausality(2, independent_first_frame=True), 4)],
)
def test_a_part_of_a_block_is_refused(causality: BlockCausality, num_frames: int) -> None:
    with pytest.raises(ValueError, match="not a whole number of blocks.*num_frame_per_block"):
        causality.split(num_frames)


@pytest.mark.parametrize("arguments", [(0,), (1, None, -1), (3, 5, 3), (2, 1)])
def test_impossible_sizes_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected|cannot hold"):
        BlockCausality(*arguments)


def test_past_of_a_block() -> None:
    assert BlockCausality(2).past(range(4, 6)) == (range(0, 4),)
    assert BlockCausality(2, 4).past(range(6, 8)) == (range(4, 6),)
    assert BlockCausality(2, 5, 1).past(range(6, 8)) == (range(0, 1), range(4, 6))
    assert BlockCausality(2, 5, 1).past(range(2, 4)) == (range(0, 2),)
    assert BlockCausality(3, 6, 3).past(range(6, 9)) == (range(0, 3),)


def test_window_of_a_block_behind_the_sink() -> None:
    assert BlockCausality(2, sink_size=3).window_blocks(range(8, 10)) == [range(3, 4), range(4, 6), range(6, 8)]
    assert BlockCausality(3, 5, 1).window_blocks(range(6, 9)) == [range(5, 6)]
    assert BlockCausality(3, 9, 3).window_blocks(range(6, 9)) == [range(3, 6)]
    assert BlockCausality(3, 6, 3).window_blocks(range(6, 9)) == []
    assert BlockCausality(2, 6, 0, True).window_blocks(range(5, 7)) == [range(1, 3), range(3, 5)]
    assert BlockCausality(2, 6, 4).window_blocks(range(2, 4)) == []


def test_merge_ranges() -> None:
    assert merge_ranges(range(0, 0), range(0, 2), range(2, 4), range(6, 7)) == (range(0, 4), range(6, 7))
    assert merge_ranges(range(0, 3), range(1, 2), range(2, 5)) == (range(0, 5),)


def brute_force(num_frames: int, causality: BlockCausality) -> list[list[bool]]:
    """The rule of the docstring, frame by frame."""

    def end(frame: int) -> int:
        return next(block.stop for block in causality.split(num_frames) if frame in block)

    window = causality.local_attn_size
    return [
        [
            key < end(query)
            and (
                window is None
                or key < causality.sink_size
                or key >= end(query) - (window - causality.sink_size)
                or end(key) == end(query)
            )
            for key in range(num_frames)
        ]
        for query in range(num_frames)
    ]


@pytest.mark.parametrize(
    "causality",
    [
        BlockCausality(1),
        BlockCausality(2),
        BlockCausality(1, 3),
        BlockCausality(2, 5, 1),
        BlockCausality(2, 4, 2),
        BlockCausality(3, 7, 2),
        BlockCausality(3, 4, 1, independent_first_frame=True),
    ],
)
def test_visibility_is_the_rule(causality: BlockCausality) -> None:
    num_frames = 13 if causality.independent_first_frame else 12
    expected = brute_force(num_frames, causality)
    assert frame_mask(block_causal(num_frames, causality)).tolist() == expected
    forced = frame_mask(teacher_forcing(num_frames, causality))
    assert forced[:num_frames, :num_frames].tolist() == expected
    assert not forced[:num_frames, num_frames:].any(), "clean frames see no noisy ones"
    blocks = causality.split(num_frames)
    for block in blocks:
        for frame in block:
            noisy = forced[num_frames + frame, num_frames:]
            assert noisy.nonzero().flatten().tolist() == list(block), "a noisy block sees no other noisy block"
            clean = [key for key in range(block.start) if expected[frame][key]]
            assert forced[num_frames + frame, :num_frames].nonzero().flatten().tolist() == clean


def test_bidirectional_sees_everything() -> None:
    assert frame_mask(bidirectional(5)).all()

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.kv_cache import KVCache
from lightning_action.generator.rope import rotate, rotation

TOKENS = 2


def write(cache: KVCache, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    keys, values = cache.of_layer(layer)
    keys[:, -key.shape[1] :], values[:, -key.shape[1] :] = key, value
    return keys, values


def walk(causality: BlockCausality, num_frames: int) -> tuple[KVCache, list[tuple[range, list[int]]]]:
    """Write frame numbers as keys; return what each block saw of its past, by frame."""
    cache = KVCache(3, 1, 1, 4, TOKENS, num_frames, causality)
    seen = []
    while cache.position < num_frames:
        block = cache.block
        own = torch.tensor([float(frame) for frame in block]).repeat_interleave(TOKENS)
        for layer in range(3):
            key = (own + 1000 * layer)[None, :, None, None].expand(1, -1, 1, 4)
            keys, values = write(cache, layer, key, -key)
            assert torch.equal(keys, -values)
            frames = (keys[0, ::TOKENS, 0, 0] - 1000 * layer).tolist()
            assert frames[-len(block) :] == [float(frame) for frame in block]
            if layer == 0:
                seen.append((block, sorted(int(frame) for frame in frames[: -len(block)])))
        cache.advance()
    return cache, seen


def test_every_video_that_can_be_cut_into_blocks_is_walked_with_the_past_it_sees() -> None:
    walked = 0
    for size, window, sink, alone, length in product((1, 2, 3), (None, 3, 4, 5), (0, 1), (False, True), range(1, 9)):
        if window is not None and window < size + sink:
            continue
        causality = BlockCausality(size, window, sink, alone)
        try:
            blocks = causality.split(length)
        except ValueError:
            continue
        _, seen = walk(causality, length)
        assert seen == [(block, [f for past in causality.past(block) for f in past]) for block in blocks], causality
        walked += 1
    assert walked > 150


@pytest.mark.parametrize(
    "causality",
    [
        BlockCausality(1),
        BlockCausality(3),
        BlockCausality(1, 4),
        BlockCausality(2, 5),
        BlockCausality(2, 5, 1),
        BlockCausality(3, 4),
        BlockCausality(3, 6, 3),
        BlockCausality(3, 9, 2),
        BlockCausality(1, 4, 2),
        BlockCausality(2, 6, 3, independent_first_frame=True),
    ],
)
def test_a_block_sees_exactly_its_past(causality: BlockCausality) -> None:
    num_frames = 19 if causality.independent_first_frame else 18
    _, seen = walk(causality, num_frames)
    for block, past in seen:
        assert past == [frame for frames in causality.past(block) for frame in frames], block


def write_version(cache: KVCache, version: int, versions: dict[int, int], since: int) -> None:
    """Write the next block; it must see the sink and the frames from `since` on, as `versions` has them."""
    block, causality = cache.block, cache.causality
    own = torch.tensor([[frame, version] for frame in block]).float().repeat_interleave(TOKENS, 0)
    keys, _ = write(cache, 0, own.repeat(1, 2)[None, :, None], torch.zeros(1, len(own), 1, 4))
    found = {int(frame): int(number) for frame, number in keys[0, ::TOKENS, 0, :2].tolist()}
    past = [frame for frames in causality.past(block) for frame in frames]
    seen = {frame: versions[frame] for frame in past if frame < causality.sink_size or frame >= since}
    assert found == seen | dict.fromkeys(block, version)
    versions.update(dict.fromkeys(block, version))
    cache.advance()


@pytest.mark.parametrize(
    "causality",
    [
        BlockCausality(1),
        BlockCausality(2, sink_size=3),
        BlockCausality(1, 4),
        BlockCausality(2, 5),
        BlockCausality(2, 4, 2),
        BlockCausality(2, 5, 1),
        BlockCausality(3, 8, 2),
        BlockCausality(3, 9, 3),
        BlockCausality(1, 5, 2),
        BlockCausality(2, 6, 3, independent_first_frame=True),
    ],
)
def test_after_rewinding_blocks_see_the_sink_and_what_was_written_since(causality: BlockCausality) -> None:
    blocks = causality.split(19 if causality.independent_first_frame else 18)
    for rewound in ([len(blocks) // 3], [1], [3, 4, len(blocks) - 2]):
        cache = KVCache(1, 1, 1, 4, TOKENS, blocks[-1].stop, causality)
        versions: dict[int, int] = {}
        version = since = 0
        for number, block in enumerate(blocks):
            if number in rewound:
                window, was_full, version = causality.window(block), cache.is_full, version + 1
                since = window.start
                cache.rewind()
                assert cache.position == (window.start if window else block.start)
                while cache.position < block.start:
                    write_version(cache, version, versions, since)
                assert cache.is_full == was_full
            write_version(cache, version, versions, since)


def test_memory_never_moves_or_grows() -> None:
    causality = BlockCausality(2, 6, 1)
    cache = KVCache(2, 1, 1, 4, TOKENS, 6, causality)
    before = (cache.keys.data_ptr(), cache.values.data_ptr(), cache.num_bytes)
    for _ in range(20):
        key = torch.randn(1, 2 * TOKENS, 1, 4)
        for layer in range(2):
            write(cache, layer, key, key)
        cache.advance()
    assert (cache.keys.data_ptr(), cache.values.data_ptr(), cache.num_bytes) == before
    assert cache.num_bytes == 2 * 2 * 6 * TOKENS * 4 * 4
    assert cache.position == 40 and isinstance(cache.position, int)


def test_reading_leaves_the_past_alone() -> None:
    causality = BlockCausality(1, 3)
    cache, _ = walk(causality, 5)
    key = torch.full((1, TOKENS, 1, 4), 77.0)
    first = write(cache, 0, key, key)[0].clone()
    second = write(cache, 0, 2 * key, key)[0]
    assert torch.equal(first[:, :-TOKENS], second[:, :-TOKENS])
    assert not torch.equal(first[:, -TOKENS:], second[:, -TOKENS:])


def test_wrong_calls_are_refused() -> None:
    cache, _ = walk(BlockCausality(2), 4)
    with pytest.raises(ValueError, match="holds 4 latent frames and cannot take frames 4 to 5"):
        cache.require_block(2)
    fresh = KVCache(1, 1, 1, 4, TOKENS, 4, BlockCausality(2))
    with pytest.raises(ValueError, match="expects a block of 2 latent frames, got 3"):
        fresh.require_block(3)


def scores(
    causality: BlockCausality, num_frames: int, relative: bool, rewound_at: int | None = None
) -> list[tuple[range, Tensor, Tensor]]:
    """For each block the scores of its queries, through the cache and at positions counted in what it sees."""
    random = torch.Generator().manual_seed(0)
    raw = torch.randn(3, 1, TOKENS * num_frames, 1, 12, generator=random)
    query = torch.randn(raw.shape, generator=random)
    cache = KVCache(3, 1, 1, 12, TOKENS, num_frames, causality, relative_positions=relative)
    found, start = [], 0
    while cache.position < num_frames:
        if cache.position == rewound_at:
            rewound_at = None
            cache.rewind()
            start = cache.position
        block = cache.block
        own = slice(block.start * TOKENS, block.stop * TOKENS)
        seen = [
            frame for past in causality.past(block) for frame in past if frame < causality.sink_size or frame >= start
        ]
        for layer in range(3):
            write(cache, layer, rotate(raw[layer, :, own], turns(block)), raw[layer, :, own])
        keys, values = cache.of_layer(1)
        turned = rotate(query[1, :, own], turns(block))
        # The order in memory is another, and values tell which key is which.
        places = [
            int((values[0, :, 0] == raw[1, 0, TOKENS * frame + t, 0]).all(-1).nonzero())
            for frame in [*seen, *block]
            for t in range(TOKENS)
        ]
        counted = range(len(seen) + len(block))
        expected_keys = rotate(
            raw[1][:, [TOKENS * f + t for f in [*seen, *block] for t in range(TOKENS)]], turns(counted)
        )
        expected = rotate(query[1, :, own], turns(counted[len(seen) :]))
        found.append((block, score(turned, keys[:, places]), score(expected, expected_keys)))
        cache.advance()
    return found


def turns(frames: range) -> Tensor:
    return rotation(frames, TOKENS, 1, 12, torch.device("cpu"))


def score(query: Tensor, key: Tensor) -> Tensor:
    return torch.einsum("bqhc,bkhc->qk", query, key)


@pytest.mark.parametrize("rewound_at", [None, 20])
@pytest.mark.parametrize(
    "causality",
    [BlockCausality(1, 5, 2), BlockCausality(2, 7, 1), BlockCausality(2, 6, 2), BlockCausality(2, 7, 3)],
)
def test_relative_positions_count_within_what_a_block_sees(causality: BlockCausality, rewound_at: int | None) -> None:
    relative = scores(causality, 400, True, rewound_at)
    plain = scores(causality, 400, False, rewound_at)
    assert causality.local_attn_size is not None
    for (block, got, expected), (_, absolute, _) in zip(relative, plain, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
        if block.stop <= causality.local_attn_size and rewound_at is None:
            assert torch.equal(got, absolute)
        if block.start > 10:
            assert (got - absolute)[:, : causality.sink_size * TOKENS].abs().max() > 1e-2
            assert torch.equal(*(each[:, causality.sink_size * TOKENS :] for each in (got, absolute)))


def test_relative_positions_change_nothing_without_a_sink() -> None:
    for (_, got, expected), (_, absolute, _) in zip(
        scores(BlockCausality(2, 6), 40, True), scores(BlockCausality(2, 6), 40, False), strict=True
    ):
        assert torch.equal(got, absolute)
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


def test_frames_that_later_blocks_see_are_copied_out() -> None:
    """Of each frame the keys that were written for it, whichever slot they lie in; others are refused."""
    cache = KVCache(2, 1, 3, 4, 5, 99, BlockCausality(2, 5, 1))
    for block in range(5):
        for frame in cache.block:
            place = cache.of_layer(0)[0].shape[1] - (cache.block.stop - frame) * 5
            cache.keys[:, :, place : place + 5] = frame
            cache.values[:, :, place : place + 5] = -frame
        seen = [frame for frames in cache.causality.past(cache.block) for frame in frames]
        for frame in seen:
            keys, values = cache.of_frame(frame)
            assert keys.shape == (2, 1, 5, 3, 4) and keys.unique().tolist() == [frame] == (-values.unique()).tolist()
        cache.advance()
        assert cache.position == 2 * block + 2
    for frame in (1, cache.position - 5, cache.position, -1):
        with pytest.raises(ValueError, match=f"stands at latent frame 10 and holds no frame {frame}"):
            cache.of_frame(frame)
    cache.of_frame(0)[0].fill_(7)
    assert cache.of_frame(0)[0].unique().tolist() == [0]

"""Self-attention under frame visibility: four implementations that agree, and one function that chooses.

Shapes: query, key, value are `[B, N, heads, head_dim]` with `N = frames * tokens_per_frame`, frame-major.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_action.generator.causality import Visibility

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def computed_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of linear maps and attention of such tensors: that of autocast where it is on."""
    device_type = like.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else like.dtype


def attend_dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1).

    `mask` is True where attention is allowed, `[N_query, N_key]`, or is added to the scores, `[1, N_key]`.
    """
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2)


def attend_by_block(
    query: Tensor, key: Tensor, value: Tensor, visibility: tuple[Visibility, ...], tokens_per_frame: int
) -> Tensor:
    """Make one dense call a block over just the keys that it sees: exact, and nothing masked is computed."""
    ranges = [frames for item in visibility for frames in (item.query, *item.keys)]
    edges = sorted({edge for frames in ranges for edge in (frames.start, frames.stop)})
    places = {edge: place for place, edge in enumerate(edges)}
    # Split once: the gradient of a slice is a tensor of the whole length, zero nearly everywhere.
    sizes = [tokens_per_frame * (stop - start) for start, stop in pairwise(edges)]
    queries, keys, values = (x.split(sizes, dim=1) for x in (query, key, value))

    def joined(parts: tuple[Tensor, ...], *ranges: range) -> Tensor:
        return torch.cat([part for each in ranges for part in parts[places[each.start] : places[each.stop]]], dim=1)

    outputs = [
        attend_dense(joined(queries, item.query), joined(keys, *item.keys), joined(values, *item.keys))
        for item in visibility
    ]
    return torch.cat(outputs, dim=1)


def attend_masked(
    query: Tensor, key: Tensor, value: Tensor, visibility: tuple[Visibility, ...], tokens_per_frame: int
) -> Tensor:
    """Make one dense call with a boolean mask: the reference, and the faster one for very small blocks."""
    mask = _token_mask(visibility, tokens_per_frame, query.device)
    return attend_dense(query, key, value, mask)


def attend_flex(
    query: Tensor, key: Tensor, value: Tensor, visibility: tuple[Visibility, ...], tokens_per_frame: int
) -> Tensor:
    """Use FlexAttention (Dong et al. 2024, arXiv:2412.05496) with a block mask, on CUDA: it has no CPU backward."""
    mask = _flex_mask(visibility, tokens_per_frame, query.device)
    out = _compiled_flex()(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), block_mask=mask)
    return out.transpose(1, 2)


def choose_attention(
    visibility: tuple[Visibility, ...], tokens_per_frame: int, device: torch.device, flex_on_cuda: bool = True
) -> Kernel:
    """Choose dense where everything sees everything, FlexAttention on CUDA if wanted, block by block elsewhere.

    Below `_SMALL_BLOCK` query tokens a block, the calls cost more than the masked work they save, so the mask is used.
    """
    num_frames = frame_mask(visibility).shape[0]
    if len(visibility) == 1 and visibility[0].keys == (range(num_frames),):
        return attend_dense
    if device.type == "cuda" and flex_on_cuda:
        chosen: Callable[..., Tensor] = attend_flex
    else:
        longest = max(len(item.query) for item in visibility) * tokens_per_frame
        chosen = attend_masked if longest < _SMALL_BLOCK else attend_by_block

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return chosen(query, key, value, visibility, tokens_per_frame)

    return attend


_SMALL_BLOCK = 32
# Queries, and keys, that FlexAttention takes or leaves together.
_TILE = 128


@lru_cache(maxsize=32)
def frame_mask(visibility: tuple[Visibility, ...]) -> Tensor:
    """Mask `[frames, frames]`, True where the row's frame sees the column's."""
    num_frames = max(item.query.stop for item in visibility)
    with torch.inference_mode(False):
        mask = torch.zeros(num_frames, num_frames, dtype=torch.bool)
        for item in visibility:
            for keys in item.keys:
                mask[item.query.start : item.query.stop, keys.start : keys.stop] = True
        return mask


@lru_cache(maxsize=32)
def _token_mask(visibility: tuple[Visibility, ...], tokens_per_frame: int, device: torch.device) -> Tensor:
    # Tensors kept for later calls must be usable in training, also when a test is the first to ask.
    with torch.inference_mode(False):
        mask = frame_mask(visibility).to(device)
        return mask.repeat_interleave(tokens_per_frame, 0).repeat_interleave(tokens_per_frame, 1)


@lru_cache(maxsize=8)
def _flex_mask(visibility: tuple[Visibility, ...], tokens_per_frame: int, device: torch.device) -> Any:
    """Build the block mask from whole frames; a mask of all pairs of tokens would take gigabytes on the way."""
    from torch.nn.attention.flex_attention import BlockMask

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return frames[q // tokens_per_frame, k // tokens_per_frame]

    with torch.inference_mode(False):
        mask = frame_mask(visibility)
        frames, num_tokens = mask.to(device), len(mask) * tokens_per_frame
        counts = _tokens_in_tiles(len(mask), tokens_per_frame)
        pairs = counts @ mask.long() @ counts.T
        partial, full = (pairs > 0) & (pairs < _TILE**2), pairs == _TILE**2
        return BlockMask.from_kv_blocks(
            *_ordered(partial, device),
            *_ordered(full, device),
            BLOCK_SIZE=_TILE,
            mask_mod=sees,
            seq_lengths=(num_tokens, num_tokens),
        )


def _tokens_in_tiles(num_frames: int, tokens_per_frame: int) -> Tensor:
    """Count the tokens of each frame in each tile, `[tiles, frames]`."""
    starts = torch.arange(0, num_frames * tokens_per_frame, _TILE)[:, None]
    first = torch.arange(num_frames) * tokens_per_frame
    return (torch.minimum(starts + _TILE, first + tokens_per_frame) - torch.maximum(starts, first)).clamp_min(0)


def _ordered(tiles: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Number of key tiles of each query tile, `[1, 1, tiles]`, and places, theirs first, `[1, 1, tiles, tiles]`."""
    places = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32)[None, None].to(device), places.int()[None, None].to(device)


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)

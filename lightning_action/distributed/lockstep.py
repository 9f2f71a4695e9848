"""Equal numbers of passes on ranks that share a sharded generator, whatever each of them has to generate."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_action.distributed.sharding import is_sharded
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.context import TextCache
from lightning_action.generator.kv_cache import KVCache
from lightning_action.generator.model import CausalWanModel
from lightning_action.generator.prompt import KeysValues


class Lockstep:
    """Keeps ranks with shorter videos, or fewer of them, passing through the generator until the last one is done.

    Every pass gathers parameters from all ranks, so a rank that makes fewer would leave the others waiting for ever.
    Without sharding it does nothing.

    Args:
        generator: Generator, sharded or not.
        dtype: Dtype that it computes in.
    """

    def __init__(self, generator: CausalWanModel, dtype: torch.dtype) -> None:
        self._generator = generator
        self._dtype = dtype
        self._sharded = is_sharded(generator)
        self._num_idle = 0

    def begin(self, num_passes: int) -> bool:
        """Agree on the most passes that any rank makes for its next batch, and tell whether there are any."""
        if not self._sharded:
            return False
        most = torch.tensor(num_passes, device=self._generator.patch_embedding.weight.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        self._num_idle = int(most) - num_passes
        return int(most) > 0

    def end(self) -> None:
        """Make the passes that others still make for theirs."""
        for _ in range(self._num_idle):
            idle_pass(self._generator, self._dtype)
        self._num_idle = 0

    def wait_for_others(self) -> None:
        """Go along until no rank has a batch left."""
        while self.begin(0):
            self._generator.text_cache(*_no_context(self._generator, self._dtype))
            self.end()


@torch.no_grad()
def idle_pass(generator: CausalWanModel, dtype: torch.dtype) -> None:
    """Make the smallest pass there is, one frame of one token, through all that every pass goes through, in order."""
    device = generator.patch_embedding.weight.device
    _, rows, columns = generator.patch_size
    latents = torch.zeros(1, 1, generator.out_dim, rows, columns, device=device, dtype=dtype)
    num_channels = generator.in_dim - generator.out_dim
    channels = latents.new_zeros(1, 1, num_channels, rows, columns) if num_channels else None
    head_dim = generator.head_dim
    token = latents.new_zeros(1, 1, generator.num_heads, head_dim)
    prompt = (KeysValues(token, token),) * (1 if generator.img_emb is None else 2)
    text = TextCache((prompt,) * generator.num_layers)
    cache = KVCache(generator.num_layers, 1, generator.num_heads, head_dim, 1, 1, BlockCausality(1), device, dtype)
    generator.denoise(latents, torch.zeros(1, 1, device=device), text, cache, image_channels=channels)


def _no_context(generator: CausalWanModel, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return an empty prompt, and an empty image for a generator that needs one."""
    text = torch.zeros(1, 0, generator.text_dim, device=generator.patch_embedding.weight.device, dtype=dtype)
    if generator.img_emb is None or generator.image_dim is None:
        return text, None
    positions = generator.img_emb.emb_pos
    return text, text.new_zeros(1, 1 if positions is None else positions.shape[1], generator.image_dim)

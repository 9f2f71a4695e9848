"""One pass for all steps of all blocks behind a full window: compiled whole, and on CUDA captured and replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_action.generator.acceleration import allow_many_codes
from lightning_action.generator.context import CachedContext, TextCache
from lightning_action.generator.kv_cache import KVCache
from lightning_action.generator.model import CausalWanModel


class CapturedPass:
    """A denoising pass as one graph, whose inputs keep their places in memory.

    Behind a full window a block differs from the next in its numbers alone: latents, noise levels, rotation and
    modulation are copied to where the graph reads them. It writes keys and values where attention reads them, and
    `KVCache.advance` moves them outside of it. On CUDA the compiled pass is recorded as a CUDA graph, so that a step is
    one launch; elsewhere it is called.

    Args:
        generator: Network that predicts velocities.
        text: Prompts from its `text_cache`.
        cache: Keys and values of the past frames, whose window is full.
        options: Options of `torch.compile`.
    """

    def __init__(self, generator: CausalWanModel, text: TextCache, cache: KVCache, **options: Any) -> None:
        self._generator, self._cache = generator, cache
        self._contexts = CachedContext.of_layers(cache, text)
        allow_many_codes()
        compiled = torch.compile(generator.denoise_in, fullgraph=True, dynamic=False, **options)
        self._pass: Callable[..., Tensor] = compiled
        self._inputs: tuple[Tensor | None, ...] = ()
        self._recorded: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    def denoise(
        self,
        latents: Tensor,
        timestep: Tensor,
        action_modulation: Tensor | None = None,
        image_channels: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity of the cache's next block, as `CausalWanModel.denoise` does.

        Raises:
            ValueError: The window is not full, or the latents are not those of the cache's next block.
        """
        velocity = self._step(latents, timestep, action_modulation, image_channels)
        # The next replay writes to the same place.
        return velocity.clone() if latents.is_cuda else velocity

    def write(
        self, latents: Tensor, action_modulation: Tensor | None = None, image_channels: Tensor | None = None
    ) -> None:
        """Keep the keys and values of the cache's next block, now clean: the same pass at timestep 0."""
        # In float32 whatever the latents are, because all noise levels of the graph go through one place.
        timestep = torch.zeros(latents.shape[:2], device=latents.device)
        self._step(latents, timestep, action_modulation, image_channels)
        self._cache.advance()

    @torch.no_grad()
    def _step(
        self, latents: Tensor, timestep: Tensor, action_modulation: Tensor | None, image_channels: Tensor | None
    ) -> Tensor:
        self._cache.require_block(latents.shape[1])
        if not self._cache.is_full:
            raise ValueError("a pass is captured behind a full window: denoise the blocks before that by the generator")
        rotation = self._generator.rotation(self._cache.block, latents)
        self._place(latents, timestep, rotation, action_modulation, image_channels)
        if not latents.is_cuda:
            return self._run()
        with torch.cuda.device(latents.device):
            if self._recorded is None:
                self._recorded = self._record()
            graph, velocity = self._recorded
            graph.replay()
        return velocity

    def _place(self, *inputs: Tensor | None) -> None:
        if _kinds(inputs) != _kinds(self._inputs):
            # The first block, or one of another kind: without actions, say.
            self._inputs = tuple(None if value is None else value.clone() for value in inputs)
            self._recorded = None
        for place, value in zip(self._inputs, inputs, strict=True):
            if place is not None and value is not None:
                place.copy_(value)

    def _run(self) -> Tensor:
        return self._pass(self._contexts, *self._inputs)

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # Compiles, and chooses kernels: neither can be recorded.
            for _ in range(2):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile, to pin memory for example.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            velocity = self._run()
        return graph, velocity


def _kinds(inputs: Sequence[Tensor | None]) -> list[tuple[torch.Size, torch.dtype] | None]:
    return [None if value is None else (value.shape, value.dtype) for value in inputs]

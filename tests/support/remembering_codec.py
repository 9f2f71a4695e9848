"""A codec whose every latent frame depends on the one before it, both ways."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_action import LinearVideoCodec
from lightning_action.frozen.interfaces import CodecStream, Memory


class RememberingCodec(LinearVideoCodec):
    """A `LinearVideoCodec` that adds a part of the latent frame before, and so must remember it."""

    def encode(self, video: Tensor) -> Tensor:
        return self._encode_next(video, None)[0]

    def streaming_decoder(self) -> CodecStream:
        return CodecStream(self._decode_next)

    def _encode_next(self, pixels: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        self.frames_of_latents(pixels, is_first=memory is None)
        if memory is None:
            own = super().encode(pixels)
        else:
            own = super().encode(torch.cat([pixels[:, :1], pixels], dim=1))[:, 1:]
        return _with_the_one_before(own, memory)

    def _decode_next(self, latents: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        mixed, seen = _with_the_one_before(latents, memory)
        return super()._decode_next(mixed, memory)[0], seen


def _with_the_one_before(latents: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
    before = torch.zeros_like(latents[:, :1]) if memory is None else memory[0]
    return latents + 0.5 * torch.cat([before, latents[:, :-1]], dim=1), {0: latents[:, -1:].clone()}

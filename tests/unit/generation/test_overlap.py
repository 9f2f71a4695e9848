from __future__ import annotations

import torch
from torch import Tensor

from lightning_action.generation.overlap import decode_behind


def test_pixels_come_in_order_and_one_block_late() -> None:
    events: list[str] = []

    def blocks() -> list[Tensor]:
        for number in range(3):
            events.append(f"denoised {number}")
            yield torch.full((2, 1), float(number))

    def decode(latents: Tensor) -> Tensor:
        events.append(f"decoded {latents[0, 0]:.0f}")
        return latents + 10

    received = []
    for pixels in decode_behind(blocks(), decode):
        events.append(f"received {pixels[0, 0]:.0f}")
        received.append(pixels)
    assert torch.equal(torch.cat(received, dim=1), torch.tensor([[10.0, 11.0, 12.0]] * 2))
    assert events.index("denoised 1") < events.index("received 10") < events.index("decoded 1")
    assert events[-2:] == ["received 11", "decoded 2"] or events[-1] == "received 12"


def test_a_video_of_one_block_and_of_none() -> None:
    assert [pixels.item() for pixels in decode_behind([torch.tensor(4.0)], lambda latents: latents + 1)] == [5.0]
    assert list(decode_behind([], lambda latents: latents)) == []

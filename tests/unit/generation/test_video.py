from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_action.generation.captured_pass import CapturedPass
from lightning_action.generation.sampling import Sampling
from lightning_action.generation.video import decode_behind, whole_video
from lightning_action.generator.acceleration import Acceleration
from lightning_action.generator.causality import BlockCausality
from tests.support.sprite_module import LATENTS, ready

SAMPLING = Sampling(num_inference_steps=2)


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
    assert events[-3:] == ["received 11", "decoded 2", "received 12"]


def test_a_video_of_one_block_and_of_none() -> None:
    assert [pixels.item() for pixels in decode_behind([torch.tensor(4.0)], lambda latents: latents + 1)] == [5.0]
    assert list(decode_behind([], lambda latents: latents)) == []


@torch.no_grad()
def test_video_is_the_same_at_once_overlapped_or_streamed() -> None:
    module, batch = ready(sampling=SAMPLING)
    video, latents = whole_video(module.stream_latents(batch), module.frozen.decoder(), "cpu")
    overlapped = whole_video(module.stream_latents(batch), module.frozen.decoder(), "cpu", overlaps=True)
    assert torch.equal(video, overlapped[0]) and torch.equal(latents, overlapped[1])
    assert latents.shape[1] == LATENTS
    blocks = list(module.stream_video(batch))
    assert [block.shape[1] for block in blocks] == [1, 4, 4, 4, 4]
    assert torch.equal(video, torch.cat(blocks, dim=1))
    module.sampling = replace(SAMPLING, seed=1)
    assert not torch.equal(video, module.generate(batch))


@torch.no_grad()
def test_values_that_are_not_finite_are_refused() -> None:
    module, batch = ready(sampling=SAMPLING)
    module.generator.head.head.bias.fill_(torch.nan)
    for generate in (module.generate, lambda batch: list(module.stream_video(batch))):
        with pytest.raises(RuntimeError, match="NaN or infinity: check the checkpoint"):
            generate(batch)


def test_asking_for_a_block_generates_it_and_no_more() -> None:
    module, batch = ready(sampling=SAMPLING)
    passes: list[int] = []
    module.generator.patch_embedding.register_forward_hook(lambda *_: passes.append(1))
    stream = module.stream_video(batch)
    next(stream)
    known = len(passes)
    next(stream)
    assert len(passes) - known == SAMPLING.num_steps + 1 and known <= 1, "the first block is the start itself"


@torch.no_grad()
def test_a_captured_pass_gives_the_same_video(monkeypatch: pytest.MonkeyPatch) -> None:
    causality = BlockCausality(1, 3)
    (plain, batch), (capturing, _) = (
        ready(sampling=SAMPLING, causality=causality, acceleration=Acceleration(capture_pass=captures))
        for captures in (False, True)
    )
    captured: list[int] = []
    denoise = CapturedPass.denoise
    monkeypatch.setattr(CapturedPass, "denoise", lambda *given: captured.append(1) or denoise(*given))
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(capturing.generate(batch), plain.generate(batch))
    # Two steps for each of the three blocks behind two others.
    assert len(captured) == 3 * 2

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_action.generation import video
from lightning_action.generation.captured_pass import CapturedPass
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.acceleration import Acceleration
from lightning_action.generator.causality import BlockCausality
from tests.support.sprite_module import LATENTS, ready

SAMPLING = Sampling(num_inference_steps=2)


class Operations(TorchDispatchMode):
    """Notes what is computed by name, and what crosses from CUDA to the host by shape, dtype, and whether it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.crossings: list[tuple[tuple[int, ...], torch.dtype, bool]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.names.append(function.overloadpacket.__name__)
        given = [value for value in args if isinstance(value, Tensor)]
        if isinstance(result, Tensor) and not result.is_cuda and any(value.is_cuda for value in given):
            self.crossings.append((tuple(result.shape), result.dtype, args[-1] is not True))
        return result


class LoggedStream:
    """Stands for a CUDA stream, and for an event in it."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    def wait_stream(self, other: str) -> None:
        self.events.append(f"{self.name} after {other}")

    def record_event(self) -> LoggedStream:
        return self

    def synchronize(self) -> None:
        self.events.append(f"waited for {self.name}")


def log_streams(events: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put logged streams in the place of CUDA's, and return the list whose last entry names the current one."""
    current = ["generating"]

    @contextmanager
    def on(stream: LoggedStream) -> Iterator[None]:
        current.append(stream.name)
        yield
        current.pop()

    monkeypatch.setattr(video, "_stream", lambda device, work: LoggedStream(work, events))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(Tensor, "record_stream", lambda value, stream: None)
    return current


@pytest.mark.parametrize("overlaps", [False, True])
def test_nobody_waits_for_pixels_before_the_next_block_is_queued(
    overlaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    current = log_streams(events, monkeypatch)

    def blocks() -> Iterator[Tensor]:
        for number in range(3):
            events.append(f"denoised {number}")
            yield torch.full((2, 1), number / 255)

    def decode(latents: Tensor) -> Tensor:
        events.append(f"decoded in {current[-1]}")
        return latents * 2 - 1

    received = []
    for as_bytes, finite in video.to_host(blocks(), decode, overlaps):
        events.append("received")
        received.append(as_bytes)
        assert finite.item()
    assert torch.equal(torch.cat(received, dim=1), torch.tensor([[0, 1, 2]] * 2, dtype=torch.uint8))
    decoded = ["decoded in generating", "copying after generating"]
    if overlaps:
        decoded = ["decoding after generating", "decoded in decoding", "copying after decoding"]
    taken = ["waited for copying", "received"]
    assert events == [
        *("denoised 0", *decoded, "denoised 1", *taken, *decoded, "denoised 2", *taken, *decoded),
        *taken,
    ]


def test_a_video_of_one_block_and_of_none() -> None:
    (as_bytes, _), *rest = video.to_host([torch.tensor([1.0])], lambda latents: latents)
    assert as_bytes.tolist() == [255] and not rest
    assert list(video.to_host([], lambda latents: latents)) == []


@pytest.mark.parametrize("overlaps", [False, True])
def test_bytes_alone_leave_the_device_and_no_copy_waits(overlaps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    log_streams([], monkeypatch)

    def decode(latents: Tensor) -> Tensor:
        return latents.new_empty(2, 4, 3, 8, 16)

    with FakeTensorMode(), Operations() as seen:
        given = (torch.empty(2, 1, 7, 2, 4, device="cuda") for _ in range(3))
        received = list(video.to_host(given, decode, overlaps))
        assert all(value.device.type == "cpu" for each in received for value in each)
        assert seen.crossings == 3 * [((2, 4, 3, 8, 16), torch.uint8, False), ((), torch.bool, False)]
        torch.empty(5, device="cuda").cpu()
    assert seen.crossings[-1] == ((5,), torch.float32, True), "what waits is seen"


@torch.no_grad()
def test_nothing_is_read_before_the_last_block_is_there() -> None:
    module, batch = ready(sampling=SAMPLING)
    marks: list[int] = []
    operations = Operations()

    def blocks() -> Iterator[Tensor]:
        for latents in module.stream_latents(batch):
            marks.append(len(operations.names))
            yield latents

    with operations:
        pixels, _ = video.video_on_host(blocks(), module.frozen.decoder())
    assert torch.equal(pixels, (module.generate(batch) * 255).round() / 255)
    reading = {"_local_scalar_dense", "is_nonzero", "item"}
    assert len(marks) == LATENTS and not reading & {*operations.names[marks[0] : marks[-1]]}
    assert reading & {*operations.names[marks[-1] :]}


@torch.no_grad()
def test_video_is_the_same_at_once_overlapped_or_streamed() -> None:
    module, batch = ready(sampling=SAMPLING)
    whole, latents = video.whole_video(module.stream_latents(batch), module.frozen.decoder(), "cpu")
    for overlaps in (False, True):
        on_host = video.video_on_host(module.stream_latents(batch), module.frozen.decoder(), overlaps)
        assert torch.equal(on_host[0], (whole * 255).round() / 255) and torch.equal(on_host[1], latents)
    assert latents.shape[1] == LATENTS
    blocks = list(module.stream_video(batch))
    assert [block.shape[1] for block in blocks] == [1, 4, 4, 4, 4]
    assert torch.equal(whole, torch.cat(blocks, dim=1))
    module.sampling = replace(SAMPLING, seed=1)
    assert not torch.equal(whole, module.generate(batch))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", ["latents", "pixels"])
@pytest.mark.parametrize("broken", [0, 1, 2, None])
def test_values_that_are_not_finite_are_refused_in_any_block(broken: int | None, place: str, value: float) -> None:
    def blocks() -> Iterator[Tensor]:
        for number in range(3):
            latents = torch.zeros(1, 2, 3)
            latents[0, 1, 2] = value if number == broken and place == "latents" else number
            yield latents

    def decode(latents: Tensor) -> Tensor:
        # As a decoder that bounds what it gives.
        pixels = latents.nan_to_num().clamp(-1, 1)
        return torch.full_like(pixels, value) if place == "pixels" and latents[0, 1, 2] == broken else pixels

    ways: list[Callable[[], Any]] = [
        lambda: video.whole_video(blocks(), decode, "cpu"),
        lambda: video.video_on_host(blocks(), decode),
        lambda: video.video_on_host(blocks(), decode, overlaps=True),
        lambda: list(video.stream_pixels(blocks(), decode)),
    ]
    for way in ways:
        with pytest.raises(RuntimeError, match="NaN or infinity: check") if broken is not None else nullcontext():
            way()


def test_a_prediction_that_is_not_finite_is_refused() -> None:
    module, batch = ready(sampling=SAMPLING)
    with torch.no_grad():
        module.generator.head.head.bias.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="NaN or infinity: check the checkpoint"):
        module.predict_step(batch, 0)


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

"""Streams through a codec: what they remember, and how they part; frozen networks in their own precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_action.frozen.interfaces import CodecStream, FittedCodec, Memory, VideoCodec, frozen_pass


def added_up(x: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
    """Add all that came before, of the first frame of each part."""
    total = x if memory is None else x + memory[0]
    return total, {0: total, 1: "said"}


def test_a_copy_goes_on_by_itself_and_videos_can_be_chosen() -> None:
    stream, x = CodecStream(added_up), torch.tensor([[1.0], [10.0]])
    assert stream.memory is None and stream.select([1]).memory is None
    stream(x)
    copy, chosen = stream.copy(), stream.select([1, 0, 1])
    assert copy(x).flatten().tolist() == [2, 20] and stream(2 * x).flatten().tolist() == [3, 30]
    assert chosen(torch.ones(3, 1)).flatten().tolist() == [11, 2, 11]
    assert chosen.memory is not None and chosen.memory[1] == "said"


def test_a_codec_that_cannot_encode_parts_takes_one() -> None:
    class Whole(VideoCodec):
        def encode(self, video: Tensor) -> Tensor:
            return -video

        def streaming_decoder(self) -> CodecStream:
            raise NotImplementedError

    encode = Whole().streaming_encoder()
    assert encode(torch.ones(1)).item() == -1
    with pytest.raises(ValueError, match="Whole cannot encode a video part by part"):
        encode(torch.ones(1))


def test_a_fit_that_is_no_state_of_a_module_is_told_apart_too() -> None:
    class Shifted(FittedCodec):
        shift = 0.0
        fitted = True

        def fit(self, video: Tensor) -> None:
            self.shift = video.mean().item()

        def encode(self, video: Tensor) -> Tensor:
            return video - self.shift

        def streaming_decoder(self) -> CodecStream:
            raise NotImplementedError

        def fitted_tensors(self) -> dict[str, Tensor]:
            return {"shift": torch.tensor(self.shift)}

    one, other = Shifted(), Shifted()
    assert one.identity() == other.identity()
    other.fit(torch.ones(1))
    assert one.identity() != other.identity() and one.checksum() != other.checksum()


def test_neither_gradient_nor_autocast() -> None:
    network, inputs = nn.Linear(3, 2), torch.randn(5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outside = network(inputs)
        with frozen_pass(torch.device("cpu")):
            inside = network(inputs)
    assert outside.dtype == torch.bfloat16 and outside.requires_grad
    assert inside.dtype == torch.float32 and not inside.requires_grad

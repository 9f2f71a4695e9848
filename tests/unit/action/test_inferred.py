"""A module infers an action from the blocks before, and from nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_action.action.inferred import InferActions, for_prompts, inferred_vectors
from lightning_action.generator.causality import BlockCausality

LATENTS = (2, 7, 3, 4, 5)


def length_and_sum(history: Tensor) -> Tensor:
    """An action vector that tells what was seen: the number of frames, and the sum of all of them."""
    length = torch.full((len(history),), history.shape[1], dtype=history.dtype)
    return torch.stack([length, history.sum(dim=(1, 2, 3, 4))], dim=1)


@pytest.mark.parametrize(
    ("causality", "seen"),
    [
        (BlockCausality(1), [None, 1, 2, 3, 4, 5, 6]),
        (BlockCausality(3, independent_first_frame=True), [None, 1, 1, 1, 4, 4, 4]),
        (BlockCausality(2, independent_first_frame=True), [None, 1, 1, 3, 3, 5, 5]),
    ],
)
def test_every_frame_of_a_block_gets_what_the_blocks_before_say(
    causality: BlockCausality, seen: list[int | None]
) -> None:
    latents = torch.randn(LATENTS, dtype=torch.float64)
    vectors, present = inferred_vectors(length_and_sum, latents, causality)
    assert vectors.shape == (2, 7, 2)
    assert present.tolist() == [[number is not None for number in seen]] * 2
    for frame, number in enumerate(seen):
        expected = torch.zeros(2, 2) if number is None else length_and_sum(latents[:, :number])
        assert torch.equal(vectors[:, frame], expected.to(vectors.dtype))


def test_a_first_block_of_several_frames_has_no_action() -> None:
    vectors, present = inferred_vectors(length_and_sum, torch.randn(2, 6, 3, 4, 5), BlockCausality(3))
    assert present.tolist() == [[False, False, False, True, True, True]] * 2
    assert torch.equal(vectors[:, :3], torch.zeros(2, 3, 2))
    assert vectors[:, 3:, 0].tolist() == [[3, 3, 3]] * 2


def test_the_future_does_not_leak() -> None:
    causality = BlockCausality(2, independent_first_frame=True)
    latents = torch.randn(LATENTS)
    before, _ = inferred_vectors(length_and_sum, latents, causality)
    latents[:, 3] += 1
    after, _ = inferred_vectors(length_and_sum, latents, causality)
    # Frame 3 belongs to the block of frames 3 and 4, so frame 5 is the first to know.
    assert torch.equal(after[:, :5], before[:, :5])
    assert bool((after[:, 5:, 1] != before[:, 5:, 1]).all())


def test_gradient_reaches_the_module() -> None:
    linear = nn.Linear(LATENTS[2], 4)
    vectors, _ = inferred_vectors(
        lambda history: linear(history.mean(dim=(1, 3, 4))), torch.randn(LATENTS), BlockCausality(1)
    )
    vectors.square().sum().backward()
    assert linear.weight.grad is not None
    assert bool((linear.weight.grad != 0).all())


def test_a_video_of_one_block_is_refused() -> None:
    with pytest.raises(ValueError, match="use more latent frames"):
        inferred_vectors(length_and_sum, torch.randn(2, 3, 3, 4, 5), BlockCausality(3))


def test_only_a_module_that_reads_text_gets_it() -> None:
    class Reader(nn.Module):
        def with_text(self, text: Tensor) -> InferActions:
            return lambda history: history.mean() + text

    text, history = torch.randn(2, 3, 4), torch.randn(LATENTS)
    assert torch.equal(for_prompts(Reader(), text)(history), history.mean() + text)
    assert for_prompts(length_and_sum, text) is length_and_sum

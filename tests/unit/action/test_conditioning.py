"""Actions that were given, inferred from the blocks before and nothing else, dropped, or not there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_action.action.conditioning import (
    ActionConditioning,
    InferActions,
    draw_dropped,
    for_prompts,
    inferred_vectors,
)
from lightning_action.action.projection import ActionModulationProjection
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.generator.causality import BlockCausality
from lightning_action.seeding import generator_for

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


def dropped(probability: float, seed: int, samples: range) -> Tensor:
    return draw_dropped(probability, [generator_for(seed, sample) for sample in samples])


@pytest.mark.parametrize("seed", range(3))
def test_dropout_of_nothing_and_of_everything_is_exact(seed: int) -> None:
    assert not dropped(0.0, seed, range(1000)).any()
    assert dropped(1.0, seed, range(1000)).all()


def test_dropout_has_its_rate() -> None:
    # Four standard deviations: sqrt(0.3 * 0.7 / 20000) = 0.0032.
    assert abs(dropped(0.3, 0, range(20_000)).float().mean().item() - 0.3) < 0.013


def test_dropout_of_a_sample_follows_from_its_own_generator() -> None:
    assert torch.equal(dropped(0.5, 1, range(64)), dropped(0.5, 1, range(64)))
    assert torch.equal(dropped(0.5, 1, range(64))[20:44], dropped(0.5, 1, range(20, 44)))
    assert not torch.equal(dropped(0.5, 1, range(64)), dropped(0.5, 2, range(64)))


DIM = 6
ROWS, TEXT = torch.rand(2, 8, 3), torch.zeros(2, 1, 4)


class Says(nn.Module):
    """An action module that tells how many frames it has seen."""

    def forward(self, history: Tensor) -> Tensor:
        return torch.full((len(history), 12), float(history.shape[1]))


BLOCKS = BlockCausality(1)


def conditioning(**changes: object) -> ActionConditioning:
    """Rows of three columns, four of them to a latent frame; blocks of one frame."""
    arguments: dict[str, object] = {
        "schema": ActionSchema([ActionPart("stick", size=3)], "transition", "concat"),
        "projection": ActionModulationProjection(12, DIM, 5, zero_init=False),
        "action_module": None,
    }
    return ActionConditioning(**{**arguments, **changes})  # type: ignore[arg-type]


@torch.no_grad()
def test_a_video_that_is_there_and_one_to_be_made_are_told_the_same() -> None:
    given, latents = conditioning(), torch.randn(2, 3, 7, 4, 5)
    known = given.of_known_video(ROWS, False, latents, TEXT, BLOCKS)
    assert known is not None and known.shape == (2, 3, 6, DIM) and known[:, 1:].abs().max() > 0
    assert torch.equal(known[:, 0], torch.zeros(2, 6, DIM)), "frame 0 follows from no action"
    made = given.of_rollout(ROWS, False, 3, TEXT, BLOCKS)
    assert isinstance(made, Tensor) and not made[:, 0].any()
    # Matrix products of another height may round differently.
    torch.testing.assert_close(known, made)


@torch.no_grad()
def test_dropped_samples_have_no_action() -> None:
    latents = torch.randn(2, 3, 7, 4, 5)
    given = conditioning()
    whole = given.of_known_video(ROWS, False, latents, TEXT, BLOCKS)
    some = given.of_known_video(ROWS, False, latents, TEXT, BLOCKS, torch.tensor([False, True]))
    assert whole is not None and some is not None
    assert torch.equal(some[0], whole[0]) and not some[1].any() and whole[1].any()


@torch.no_grad()
def test_without_rows_the_module_decides_where_it_may() -> None:
    latents = torch.randn(2, 3, 7, 4, 5)
    infers = conditioning(action_module=Says())
    known = infers.of_known_video(None, True, latents, TEXT, BLOCKS)
    made = infers.of_rollout(None, True, 3, TEXT, BLOCKS)
    assert known is not None and callable(made)
    blocks = [made(range(frame, frame + 1), latents[:, :frame]) for frame in range(3)]
    assert blocks[0] is None and not known[:, 0].any()
    for frame in (1, 2):
        here = blocks[frame]
        assert here is not None
        torch.testing.assert_close(here[:, 0], known[:, frame])
    for none in (
        infers.of_known_video(None, False, latents, TEXT, BLOCKS),
        infers.of_rollout(None, False, 3, TEXT, BLOCKS),
    ):
        assert none is None, "the null action"


@torch.no_grad()
def test_no_action_is_no_modulation_or_exactly_none() -> None:
    latents = torch.randn(2, 3, 7, 4, 5)
    for nothing in (conditioning(), conditioning(projection=None)):
        assert (
            nothing.of_known_video(None, True, latents, TEXT, BLOCKS) is None
            and nothing.of_rollout(None, True, 3, TEXT, BLOCKS) is None
        )
    assert conditioning(projection=None).of_known_video(ROWS, False, latents, TEXT, BLOCKS) is None
    through = conditioning(on_all_ranks=True).of_known_video(None, True, latents, TEXT, BLOCKS)
    assert through is not None and not through.any() and through.shape == (2, 3, 6, DIM)


@torch.no_grad()
def test_a_rank_without_actions_passes_the_projection_as_often_as_others() -> None:
    """Sharded, each pass gathers its weights on all ranks: one pass for each block of 2, 2 and 1 frames."""
    passes: list[int] = []
    both = conditioning(on_all_ranks=True)
    assert both.projection is not None
    both.projection.register_forward_hook(lambda module, given, made: passes.append(made.shape[1]))
    latents = torch.randn(2, 5, 7, 4, 5)
    for action in (torch.rand(2, 16, 3), None):
        passes.clear()
        made = both.of_generated_video(action, latents, BlockCausality(2, independent_first_frame=True), None)
        assert passes == [1, 2, 2] and made is not None and bool(made.any()) == (action is not None)


def acting(num_layers: int | None = None, scale: float = 1.0) -> ActionConditioning:
    projection = ActionModulationProjection(12, DIM, 5, num_layers=num_layers, layer_rank=6, zero_init=False)
    return conditioning(projection=projection, scale=scale)


@torch.no_grad()
@pytest.mark.parametrize("num_layers", [None, 4])
def test_vectors_become_modulation_of_every_frame(num_layers: int | None) -> None:
    half = acting(num_layers, scale=0.5)
    assert half.projection is not None
    vectors = torch.randn(2, 5, 12)
    assert torch.equal(half.of_action(vectors, 5, TEXT), 0.5 * half.projection(vectors))
    alike = half.projection(vectors[:, :1].expand(-1, 5, -1))
    assert torch.equal(half.of_action(vectors[:, 0], 5, TEXT), 0.5 * alike) and alike.any()


@torch.no_grad()
def test_ready_modulation_is_taken_as_it_is_where_there_is_an_action() -> None:
    present = torch.tensor([[True, False, True], [False, True, True]])
    for shape in ((2, 3, 6, DIM), (2, 3, 4, 6, DIM)):
        ready = torch.randn(shape)
        assert torch.equal(acting(scale=0.5).of_action(ready, 3, TEXT), ready)
        partly = acting().of_action(ready, 3, TEXT, present)
        assert torch.equal(partly[present], ready[present]) and not partly[~present].any()
    assert acting().of_action(ready, 3, TEXT.double()).dtype == torch.float64


def test_the_base_model_takes_no_actions_and_rows_need_a_schema() -> None:
    with pytest.raises(ValueError, match="the base model takes no actions"):
        conditioning(projection=None).of_action(torch.randn(2, 12), 3, TEXT)
    with pytest.raises(ValueError, match="no action schema"):
        conditioning(schema=None).of_rows(ROWS, range(3), TEXT)

"""Prompts that are switched while a video runs, against passes that recompute everything without a cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.diffusion.guidance import Guidance
from lightning_action.diffusion.noise import frame_noise
from lightning_action.generation.captured_pass import CapturedPass
from lightning_action.generation.prompt_switches import PromptSwitch, count_switch_passes, require_switchable
from lightning_action.generation.rollout import CausalRollout, rollout
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.context import TextCache
from lightning_action.generator.image import NO_IMAGE, ImageCondition
from lightning_action.generator.model import CausalWanModel
from tests.support.small_generator import small_generator, small_inputs
from tests.support.small_rollout import EULER, FEW, SHAPE, session

CASES = [
    (BlockCausality(1), 4),
    (BlockCausality(3), 6),
    (BlockCausality(1, sink_size=2), 4),
    (BlockCausality(1, 4), 2),
    (BlockCausality(1, 4), 7),
    (BlockCausality(1, 5, 2), 2),
    (BlockCausality(1, 5, 2), 6),
    (BlockCausality(1, 3, 2), 5),
    (BlockCausality(3, 6, 3), 6),
    (BlockCausality(3, 9, 3), 9),
    (BlockCausality(3, 5, 1), 6),
    (BlockCausality(3, 7, 1), 3),
    (BlockCausality(3, 8, 1), 9),
    (BlockCausality(2, 5, 1, independent_first_frame=True), 7),
    (BlockCausality(3, 8, 2, independent_first_frame=True), 7),
]


def length(causality: BlockCausality) -> int:
    size = causality.num_frame_per_block
    return 13 if causality.independent_first_frame else 12 // size * size


def seen_by(causality: BlockCausality, num_frames: int, since: int) -> Tensor:
    """Which frames see which `[query, key]`, where nothing but the sink is left of what came before `since`."""
    allowed = torch.zeros(num_frames, num_frames, dtype=torch.bool)
    for block in causality.split(num_frames):
        first = 0 if causality.local_attn_size is None else block.stop - causality.local_attn_size + causality.sink_size
        for query in block:
            for key in range(block.stop):
                in_block = key in block and not key < since <= query
                allowed[query, key] = key < causality.sink_size or key >= max(first, since) or in_block
    return allowed


@dataclass(frozen=True)
class TwoPrompts:
    """A layer's context for a batch [old | new]: under the new prompt, the sink's keys and values are the old ones."""

    text: Any
    allowed: Tensor
    num_sink_tokens: int

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = key.clone(), value.clone()
        for stored in (key, value):
            old, new = stored.chunk(2)
            new[:, : self.num_sink_tokens] = old[:, : self.num_sink_tokens]
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        scores = scores.masked_fill(~self.allowed, -torch.inf)
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)

    def prompt(self, cross_attention: Any) -> Any:
        return self.text


@dataclass(frozen=True)
class Reference:
    """Velocities of whole sequences: one pass, no cache."""

    generator: CausalWanModel
    causality: BlockCausality
    switch: int
    old: Tensor
    new: Tensor
    image: ImageCondition = NO_IMAGE
    renews_sink: bool = False

    def velocity(self, latents: Tensor, timestep: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Velocity `[B, F, C, H, W]` of frames that all exist already; those of the last block count."""
        num_frames = latents.shape[1]
        sink = 0 if self.renews_sink else min(self.causality.sink_size, self.switch)
        tokens = self.generator.tokens_per_frame(*latents.shape[-2:])
        since = self.causality.window(self.causality.block_after(self.switch)).start
        allowed = torch.stack([seen_by(self.causality, num_frames, first) for first in (0, since)])
        allowed = allowed.repeat_interleave(tokens, 1).repeat_interleave(tokens, 2)
        allowed = allowed.repeat_interleave(len(latents), 0)[:, None]
        image = self.image.repeated(2)
        text: TextCache = self.generator.text_cache(torch.cat([self.old, self.new]), image.embeds)
        contexts = [TwoPrompts(prompt, allowed, sink * tokens) for prompt in text.layers]
        both = self.generator.denoise_in(
            contexts,
            torch.cat([latents] * 2),
            torch.cat([timestep] * 2),
            self.generator.rotation(range(num_frames), latents),
            None if modulation is None else torch.cat([modulation[:, :num_frames]] * 2),
            image.of_frames(range(num_frames)),
        )
        under_old, under_new = both.chunk(2)
        return under_new if num_frames > self.switch else under_old


def recomputed(
    references: list[tuple[Reference, bool]],
    sampler: Any,
    guidance: Guidance,
    modulation: Tensor | None,
    initial: Tensor | None = None,
) -> Tensor:
    """The video, each pass of which computes its whole past anew; one reference for each branch of guidance."""
    causality = references[0][0].causality
    done = torch.zeros(2, 0, *SHAPE) if initial is None else initial
    for block in causality.split(length(causality)):
        if block.stop <= done.shape[1]:
            continue

        def velocity(noisy: Tensor, timestep: float, done: Tensor = done, block: range = block) -> Tensor:
            latents = torch.cat([done, noisy], dim=1)
            times = torch.zeros(latents.shape[:2])
            times[:, block.start :] = timestep
            branches = [
                reference.velocity(latents, times, modulation if acts else None)[:, block.start :]
                for reference, acts in references
            ]
            return guidance.combine(branches, timestep)

        done = torch.cat([done, sampler(velocity, partial(frame_noise(7, (4, 9), SHAPE), block))], dim=1)
    return done


def video(run: CausalRollout, *rest: Any) -> Tensor:
    return torch.cat(list(rollout(run, length(run.cache.causality), *rest)), dim=1)


def prompts() -> tuple[Tensor, Tensor]:
    return small_inputs(1)["text"], small_inputs(1, seed=5)["text"]


@pytest.mark.parametrize(("causality", "switch"), CASES)
@torch.no_grad()
def test_a_switch_equals_recomputing_from_scratch(causality: BlockCausality, switch: int) -> None:
    generator, (old, new) = small_generator(num_layers=3), prompts()
    modulation = small_inputs(length(causality))["modulation"]
    run = session(generator, old, causality, length(causality))
    found = video(run, modulation, None, {switch: new})
    reference = Reference(generator, causality, switch, old, new)
    expected = recomputed([(reference, True)], FEW, Guidance(), modulation)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@torch.no_grad()
def test_what_is_recomputed_changes_the_video() -> None:
    """The positive control of the test above: with another sink, and with no frame recomputed, it is another video."""
    generator, (old, new), causality, switch = small_generator(num_layers=3), prompts(), BlockCausality(1, 5, 2), 6
    found = video(session(generator, old, causality, 12), None, None, {switch: new})
    renewed = Reference(generator, causality, switch, old, new, renews_sink=True)
    kept = session(generator, old, causality, 12)
    blocks = [kept.next_block() for _ in range(switch)]
    kept.write_pending()
    kept._text = generator.text_cache(new)
    others = {
        "the sink recomputed": recomputed([(renewed, True)], FEW, Guidance(), None),
        "nothing recomputed": torch.cat([*blocks, *(kept.next_block() for _ in range(12 - switch))], dim=1),
        "no switch": video(session(generator, old, causality, 12)),
    }
    for other in others.values():
        torch.testing.assert_close(other[:, :switch], found[:, :switch], atol=2e-5, rtol=0)
        assert (found - other)[:, switch].abs().max() > 1e-3


@pytest.mark.parametrize("renews_negative", [False, True])
@torch.no_grad()
def test_branches_of_guidance_are_recomputed_too(renews_negative: bool) -> None:
    generator, (old, new), causality, switch = small_generator(), prompts(), BlockCausality(2, 6, 2), 6
    negative, other_negative = (small_inputs(1, seed=seed)["text"][:, :4] for seed in (6, 7))
    modulation, guidance = small_inputs(12)["modulation"], Guidance(1.5, 0.5)
    run = session(generator, old, causality, 12, EULER, guidance=guidance, negative_text=negative)
    blocks = list(rollout(run, switch, modulation[:, :switch]))
    run.switch_prompt(new, other_negative if renews_negative else None)
    found = torch.cat([*blocks, *rollout(run, 12 - switch, modulation[:, switch:])], dim=1)
    renewed = other_negative if renews_negative else negative
    texts = [(old, new), (negative, renewed), (old, new)]
    of_branches = [
        (Reference(generator, causality, switch, *both), branch.takes_action)
        for both, branch in zip(texts, guidance.branches, strict=True)
    ]
    torch.testing.assert_close(found, recomputed(of_branches, EULER, guidance, modulation), atol=2e-5, rtol=0)


@torch.no_grad()
def test_image_conditions_and_initial_frames_are_passed_again() -> None:
    generator = small_generator(in_dim=9, image_dim=8)
    (old, new), causality, x = prompts(), BlockCausality(3, 7, 1), small_inputs(12)
    image = ImageCondition(torch.randn(2, 12, 4, *SHAPE[1:]), torch.randn(2, 3, 8))
    initial, switch = x["clean"][:, :6], 6
    run = session(generator, old, causality, 12, image=image)
    found = video(run, x["modulation"], initial, {switch: new})
    reference = Reference(generator, causality, switch, old, new, image)
    expected = recomputed([(reference, True)], FEW, Guidance(), x["modulation"], initial)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("num_initial_latents", [0, 2])
@pytest.mark.parametrize("causality", [BlockCausality(2, 4), BlockCausality(2, 7, 1), BlockCausality(2, sink_size=2)])
@torch.no_grad()
def test_blocks_of_the_last_step_are_passed_as_it_saw_them(causality: BlockCausality, num_initial_latents: int) -> None:
    generator, (old, new), x, switch, last = small_generator(), prompts(), small_inputs(12), 6, 400.0
    inputs, predicted = [x["clean"][:, :num_initial_latents]], [x["clean"][:, :num_initial_latents]]

    def one_step(velocity: Any, noise: Any) -> Tensor:
        inputs.append(noise(0))
        predicted.append(velocity(inputs[-1], last))
        return inputs[-1] - 0.4 * predicted[-1]

    run = session(generator, old, causality, 12, one_step, context="last_step")
    video(run, x["modulation"], inputs[0], {switch: new})
    latents, found = torch.cat(inputs, dim=1), torch.cat(predicted, dim=1)
    times = torch.full(latents.shape[:2], last)
    times[:, :num_initial_latents] = 0
    reference = Reference(generator, causality, switch, old, new)
    expected = reference.velocity(latents, times, x["modulation"])
    torch.testing.assert_close(found[:, switch:], expected[:, switch:], atol=2e-5, rtol=0)
    clean = reference.velocity(latents, torch.where(torch.arange(12) < switch, 0, times), x["modulation"])
    assert (found - clean)[:, switch:].abs().max() > 1e-3


@torch.no_grad()
def test_a_second_switch_leaves_nothing_of_the_first() -> None:
    """As if the frames that were generated under it were known, and their prompt never was."""
    generator, (old, new), third = small_generator(), prompts(), small_inputs(1, seed=8)["text"]
    twice, once = (session(generator, old, BlockCausality(1, 5, 2), 12) for _ in range(2))
    for block in rollout(twice, 8, None, None, {6: new}):
        once.append(block)
    for run in (twice, once):
        run.switch_prompt(third)
    assert torch.equal(twice.next_block(), once.next_block())


@pytest.mark.parametrize("context", ["clean", "last_step"])
@torch.no_grad()
def test_the_sink_stays_as_it_was(context: str) -> None:
    generator, (old, new), causality = small_generator(), prompts(), BlockCausality(1, 5, 2)
    run, plain = (session(generator, old, causality, 12, context=context) for _ in range(2))
    list(rollout(run, 9, None, None, {4: new, 7: old}))
    list(rollout(plain, 9))
    tokens = run.cache.tokens_per_frame
    assert torch.equal(run.cache.keys[:, :, : 2 * tokens], plain.cache.keys[:, :, : 2 * tokens])
    assert (run.cache.keys - plain.cache.keys)[:, :, 2 * tokens :].abs().max() > 1e-3


@pytest.mark.parametrize("causality", [BlockCausality(2), BlockCausality(2, 8, 2), BlockCausality(2, 8, 1)])
@pytest.mark.parametrize("context", ["clean", "last_step"])
@torch.no_grad()
def test_the_same_prompt_changes_nothing_while_no_frame_has_left(causality: BlockCausality, context: str) -> None:
    generator, (old, _), x = small_generator(), prompts(), small_inputs(12)
    plain = video(session(generator, old, causality, 12, context=context), x["modulation"])
    run = session(generator, old, causality, 12, context=context)
    again = video(run, x["modulation"], None, {2: old, 6: old})
    # A sink that ends inside a block leaves a shorter one to recompute, which is rounded otherwise.
    tolerance = 1e-5 if causality.sink_size == 1 else 0
    torch.testing.assert_close(again, plain, atol=tolerance, rtol=0)


@torch.no_grad()
def test_writing_early_and_inference_mode_change_nothing() -> None:
    generator, (old, new), causality = small_generator(), prompts(), BlockCausality(2, 6, 2)
    expected = video(session(generator, old, causality, 12), None, None, {6: new})
    run = session(generator, old, causality, 12)
    with torch.inference_mode():
        blocks = [run.next_block() for _ in range(3)]
        run.draw_ahead()
        run.write_pending()
        run.switch_prompt(new)
        blocks += [run.next_block() for _ in range(3)]
    assert torch.equal(torch.cat(blocks, dim=1), expected)


@torch.no_grad()
def test_what_is_kept_for_a_switch_is_the_window_and_a_copy() -> None:
    generator, (old, new), x = small_generator(), prompts(), small_inputs(12)
    runs = [session(generator, old, BlockCausality(2, 6, 2), 12) for _ in range(2)]
    modulation = x["modulation"][:, :2].clone()
    for run in runs:
        for start in range(0, 8, 2):
            here = modulation.copy_(x["modulation"][:, start : start + 2])
            block = run.next_block(here)
            run.write_pending()
            if run is runs[1]:
                here.zero_()
                block.zero_()
        assert [kept.frames for kept in run._window] == [range(6, 8)]
        run.switch_prompt(new)
    assert torch.equal(*(run.next_block() for run in runs))


@pytest.mark.parametrize("context", ["clean", "last_step"])
@torch.no_grad()
def test_a_captured_pass_is_captured_anew(context: str) -> None:
    # Heads that fill vectors, whose complex and real rotation are equal to the bit.
    generator, (old, new) = small_generator(dim=32, num_heads=2), prompts()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    settings = {"context": context, "action_guidance_scale": 2.0}
    modulation = small_inputs(12)["modulation"][..., :32]
    plain, captured = (
        video(
            session(generator, old, BlockCausality(2, 6, 2), 12, capture=capture, **settings),
            modulation,
            None,
            {6: new, 10: old},
        )
        for capture in (None, partial(CapturedPass, backend=backend))
    )
    assert torch.equal(plain, captured)
    assert len(graphs) == 1, "the code stays"


@torch.no_grad()
def test_prompts_of_others_are_refused_before_anything_changes() -> None:
    generator, (old, new) = small_generator(), prompts()
    run = session(generator, old, BlockCausality(2), 6)
    run.next_block()
    for wrong, message in ((new[:1], "encoded prompts of 2 videos"), (new[..., :5], "do not belong together")):
        with pytest.raises(ValueError, match=message):
            run.switch_prompt(wrong)
    untouched = session(generator, old, BlockCausality(2), 6)
    untouched.next_block()
    assert torch.equal(run.next_block(), untouched.next_block())


@pytest.mark.parametrize(
    ("frames", "num_initial", "message"),
    [
        ([4], 1, "latent frame 4: .* behind the 1 initial ones of 9 latent frames, the nearest: 3 and 6"),
        ([3], 4, "latent frame 3: .* the nearest: 6"),
        ([12], 0, "latent frame 12: .* the nearest: 6"),
        ([0], 0, "latent frame 0: .* the nearest: 3"),
        ([7], 9, "and there is none"),
    ],
)
def test_other_frames_are_refused_with_the_nearest(frames: list[int], num_initial: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_switchable(frames, BlockCausality(3).split(9), num_initial)


def test_a_rollout_counts_frames_from_its_own_first_one() -> None:
    generator, (old, new) = small_generator(), prompts()
    run = session(generator, old, BlockCausality(3), 12)
    list(rollout(run, 3))
    with pytest.raises(ValueError, match="latent frame 4: .* the nearest: 3 and 6"):
        next(rollout(run, 9, None, None, {4: new}))


@pytest.mark.parametrize("value", [0, -3, 1.5])
def test_a_switch_names_a_later_frame(value: Any) -> None:
    with pytest.raises(ValueError, match="prompt_switches.latent_frame"):
        PromptSwitch(value, "a blue disc")


def test_two_prompts_for_one_frame_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two prompts for one latent frame, among \[3, 3\]"):
        Sampling(prompt_switches=(PromptSwitch(3, "a"), PromptSwitch(3, "b")))


@pytest.mark.parametrize("causality", [BlockCausality(2), BlockCausality(1, 4, 1)])
@torch.no_grad()
def test_actions_that_change_at_a_block_change_what_follows_alone(causality: BlockCausality) -> None:
    generator, (old, _), x = small_generator(), prompts(), small_inputs(12)
    changed = torch.cat([x["modulation"][:, :6], -x["modulation"][:, 6:]], dim=1)
    before, after = (
        torch.cat([*rollout(run, 6, given[:, :6]), *rollout(run, 6, given[:, 6:])], dim=1)
        for given in (x["modulation"], changed)
        for run in [session(generator, old, causality, 12)]
    )
    assert torch.equal(after[:, :6], before[:, :6])
    assert (after - before)[:, 6:].abs().amax((0, 2, 3, 4)).min() > 1e-3


@pytest.mark.parametrize(("causality", "switch"), CASES[::3])
@torch.no_grad()
def test_passes_of_a_switch_are_counted_before_they_are_made(causality: BlockCausality, switch: int) -> None:
    generator, (old, new) = small_generator(), prompts()
    passes: list[int] = []
    generator.patch_embedding.register_forward_hook(lambda *_: passes.append(1))
    generator.text_embedding.register_forward_hook(lambda *_: passes.append(1))
    counts = []
    for switches in ({}, {switch: new}):
        video(session(generator, old, causality, length(causality)), None, None, switches)
        counts.append(len(passes))
        passes.clear()
    assert counts[1] - counts[0] == count_switch_passes([switch], causality)

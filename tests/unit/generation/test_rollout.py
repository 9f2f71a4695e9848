"""The cached loop against the slow one that recomputes the past in every pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.diffusion.guidance import Guidance
from lightning_action.diffusion.noise import frame_noise
from lightning_action.diffusion.samplers import Sampler
from lightning_action.generation.rollout import CausalRollout, rollout
from lightning_action.generation.sampling import BlockContext
from lightning_action.generator import attention
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.image import NO_IMAGE, ImageCondition
from lightning_action.generator.model import CausalWanModel
from tests.support.small_generator import small_generator, small_inputs
from tests.support.small_rollout import EULER, FEW, SHAPE, session


def video(run: CausalRollout, num_frames: int, *rest: Tensor | None) -> Tensor:
    return torch.cat(list(rollout(run, num_frames, *rest)), dim=1)


def recomputing_rollout(
    generator: CausalWanModel,
    text: Tensor,
    causality: BlockCausality,
    num_frames: int,
    sampler: Sampler,
    modulation: Tensor | None,
    initial: Tensor | None,
    image: ImageCondition = NO_IMAGE,
) -> Tensor:
    """The oracle: no cache; in every pass the whole clean past at timestep 0 under the block-causal mask.

    What is known of a block is put in its place, at timestep 0, before every pass.
    """
    noise = frame_noise(7, (4, 9), SHAPE)
    known = torch.zeros(2, 0, *SHAPE) if initial is None else initial
    done = torch.zeros(2, 0, *SHAPE)
    for block in causality.split(num_frames):
        if block.stop <= known.shape[1]:
            done = torch.cat([done, known[:, block.start : block.stop]], dim=1)
            continue
        num_clean = max(block.start, known.shape[1])
        clean = torch.cat([done, known[:, block.start :]], dim=1)

        def velocity(
            noisy: Tensor, timestep: float, clean: Tensor = clean, num_clean: int = num_clean, block: range = block
        ) -> Tensor:
            latents = torch.cat([clean, noisy[:, num_clean - block.start :]], dim=1)
            times = torch.zeros(latents.shape[:2])
            times[:, num_clean:] = timestep
            here = None if modulation is None else modulation[:, : block.stop]
            seen = ImageCondition(image.of_frames(range(block.stop)), image.embeds)
            return generator.block_causal(latents, times, text, causality, here, seen)[:, block.start :]

        generated = sampler(velocity, partial(noise, block))
        done = torch.cat([clean, generated[:, num_clean - block.start :]], dim=1)
    return done


CASES = [
    BlockCausality(1),
    BlockCausality(3),
    BlockCausality(1, 4),
    BlockCausality(3, 6),
    BlockCausality(3, 6, 3),
    BlockCausality(1, 5, 2),
    BlockCausality(3, 7, 1),
]


@pytest.mark.parametrize("small_block", [0, 32], ids=["by_block", "masked"])
@pytest.mark.parametrize("causality", CASES)
@pytest.mark.parametrize("acts", [False, True])
@torch.no_grad()
def test_cached_rollout_equals_recomputing_the_past(
    causality: BlockCausality, acts: bool, small_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_SMALL_BLOCK", small_block)
    generator, x = small_generator(), small_inputs(12)
    modulation = x["modulation"] if acts else None
    cached = video(session(generator, x["text"], causality, 12), 12, modulation)
    slow = recomputing_rollout(generator, x["text"], causality, 12, FEW, modulation, None)
    torch.testing.assert_close(cached, slow, atol=1e-5, rtol=0)


@torch.no_grad()
def test_window_sink_and_actions_change_the_video() -> None:
    """The positive control of the test above: the cases differ by far more than its tolerance."""
    generator, x = small_generator(), small_inputs(12)
    videos = [video(session(generator, x["text"], c, 12), 12, None) for c in (CASES[1], CASES[3], CASES[4])]
    videos.append(video(session(generator, x["text"], CASES[1], 12), 12, x["modulation"]))
    for i, a in enumerate(videos):
        for b in videos[:i]:
            assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("causality", [BlockCausality(3, 5, 1, independent_first_frame=True), BlockCausality(1, 4)])
@torch.no_grad()
def test_euler_from_initial_latents(causality: BlockCausality) -> None:
    generator, x = small_generator(), small_inputs(10)
    initial = x["clean"][:, :4] if causality.num_frame_per_block == 3 else x["clean"][:, :2]
    run = session(generator, x["text"], causality, 10, EULER)
    cached = video(run, 10, x["modulation"], initial)
    slow = recomputing_rollout(generator, x["text"], causality, 10, EULER, x["modulation"], initial)
    torch.testing.assert_close(cached, slow, atol=1e-5, rtol=0)
    assert torch.equal(cached[:, : initial.shape[1]], initial)


@torch.no_grad()
def test_single_image_with_independent_first_frame() -> None:
    generator, x = small_generator(), small_inputs(7)
    causality = BlockCausality(3, independent_first_frame=True)
    blocks = list(rollout(session(generator, x["text"], causality, 7), 7, None, x["clean"][:, :1]))
    assert [block.shape[1] for block in blocks] == [1, 3, 3]
    assert torch.equal(blocks[0], x["clean"][:, :1])


@pytest.mark.parametrize("sampler", [FEW, EULER], ids=["few_step", "euler"])
@pytest.mark.parametrize(
    ("causality", "num_initial"),
    [
        (BlockCausality(3), 1),
        (BlockCausality(3, 6, 3), 2),
        (BlockCausality(3, 6, 3), 5),
        (BlockCausality(4, 5, 1), 7),
        (BlockCausality(2, independent_first_frame=True), 2),
    ],
)
@torch.no_grad()
def test_known_frames_inside_a_block_are_held(causality: BlockCausality, num_initial: int, sampler: Sampler) -> None:
    generator, x = small_generator(), small_inputs(12)
    length = 11 if causality.independent_first_frame else 12
    modulation, initial = x["modulation"][:, :length], x["clean"][:, :num_initial]
    cached = video(session(generator, x["text"], causality, length, sampler), length, modulation, initial)
    slow = recomputing_rollout(generator, x["text"], causality, length, sampler, modulation, initial)
    torch.testing.assert_close(cached, slow, atol=1e-5, rtol=0)
    assert torch.equal(cached[:, :num_initial], initial)


@torch.no_grad()
def test_a_held_frame_acts_on_its_own_block_and_is_told_to_be_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, x = small_generator(), small_inputs(6)
    told: list[Tensor] = []
    denoise = generator.denoise

    def spy(latents: Tensor, timesteps: Tensor, *rest: Any) -> Tensor:
        told.append(timesteps)
        return denoise(latents, timesteps, *rest)

    monkeypatch.setattr(generator, "denoise", spy)

    def rest_of_first_block(initial: Tensor | None) -> Tensor:
        return video(session(generator, x["text"], BlockCausality(3), 6), 6, None, initial)[:, 1:3]

    image = x["clean"][:, :1]
    held = rest_of_first_block(image)
    expected = [[0.0, t, t] for t in (1000.0, 750.0, 400.0)] + [[t, t, t] for t in (1000.0, 750.0, 400.0)]
    assert [timesteps[1].tolist() for timesteps in told] == expected
    for other in (rest_of_first_block(None), rest_of_first_block(-image)):
        assert (held - other).abs().max() > 1e-2


@torch.no_grad()
def test_held_frames_under_guidance() -> None:
    generator, x = small_generator(), small_inputs(6)
    causality, initial = BlockCausality(3), x["clean"][:, :1]

    def guided(scale: float, modulation: Tensor | None) -> Tensor:
        return video(session(generator, x["text"], causality, 6, action_guidance_scale=scale), 6, modulation, initial)

    plain = guided(1.0, x["modulation"])
    torch.testing.assert_close(guided(1.0 + 1e-9, x["modulation"]), plain, atol=1e-5, rtol=0)
    strong = guided(3.0, x["modulation"])
    assert torch.equal(strong[:, :1], initial) and (strong - plain)[:, 1:].abs().max() > 1e-2


@pytest.mark.parametrize("guidance", [1.0, 1.0 + 1e-9])
@torch.no_grad()
def test_image_to_video_model(guidance: float) -> None:
    generator, x = small_generator(in_dim=9, image_dim=10), small_inputs(9)
    image = ImageCondition(small_inputs(9, seed=2)["clean"][:, :, :4], torch.randn(2, 8, 10))
    causality = BlockCausality(3, 6, 3)

    def of_image(image: ImageCondition) -> Tensor:
        run = session(generator, x["text"], causality, 9, action_guidance_scale=guidance, image=image)
        return video(run, 9, x["modulation"], x["clean"][:, :1])

    slow = recomputing_rollout(generator, x["text"], causality, 9, FEW, x["modulation"], x["clean"][:, :1], image)
    cached = of_image(image)
    torch.testing.assert_close(cached, slow, atol=1e-5, rtol=0)
    assert image.channels is not None and image.embeds is not None
    assert (cached - of_image(ImageCondition(image.channels, image.embeds.flip(2)))).abs().max() > 1e-2
    later = image.channels.clone()
    later[:, 6:] += 1
    changed = of_image(ImageCondition(later, image.embeds))
    assert torch.equal(changed[:, :6], cached[:, :6]) and (changed - cached)[:, 6:].abs().max() > 1e-2


@torch.no_grad()
def test_split_into_calls_of_any_size() -> None:
    generator, x = small_generator(), small_inputs(12)
    whole = video(session(generator, x["text"], CASES[4], 12), 12, x["modulation"])
    run = session(generator, x["text"], CASES[4], 12)
    parts, start = [], 0
    for size in (3, 6, 3):
        parts.append(video(run, size, x["modulation"][:, start : start + size]))
        start += size
    assert torch.equal(torch.cat(parts, dim=1), whole)


@torch.no_grad()
def test_any_batch_split() -> None:
    generator, x = small_generator(), small_inputs(6)
    together = video(session(generator, x["text"], CASES[1], 6), 6, x["modulation"])
    for row, sample in enumerate((4, 9)):
        alone = session(generator, x["text"][row : row + 1], CASES[1], 6, samples=(sample,))
        out = video(alone, 6, x["modulation"][row : row + 1])
        torch.testing.assert_close(out, together[row : row + 1], atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-2


@pytest.mark.parametrize("changed_frame", [0, 4, 8])
@torch.no_grad()
def test_no_future_action_leaks_through_the_cache(changed_frame: int) -> None:
    generator, x = small_generator(), small_inputs(9)
    before = video(session(generator, x["text"], CASES[3], 9), 9, x["modulation"])
    other = x["modulation"].clone()
    other[:, changed_frame:] += 0.5
    after = video(session(generator, x["text"], CASES[3], 9), 9, other)
    start = changed_frame // 3 * 3
    assert torch.equal(before[:, :start], after[:, :start])
    assert not torch.equal(before[:, start : start + 3], after[:, start : start + 3])


@torch.no_grad()
def test_guidance() -> None:
    generator, x = small_generator(), small_inputs(6)
    causality = BlockCausality(2, 4)

    def guided(scale: float, modulation: Tensor | None) -> Tensor:
        return video(session(generator, x["text"], causality, 6, action_guidance_scale=scale), 6, modulation)

    plain, null = guided(1.0, x["modulation"]), guided(1.0, None)
    assert torch.equal(guided(0.0, x["modulation"]), null), "w = 0 ignores the action"
    assert torch.equal(guided(0.0, -x["modulation"]), null)
    torch.testing.assert_close(guided(1.0 + 1e-9, x["modulation"]), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(guided(1e-9, x["modulation"]), null, atol=1e-5, rtol=0)
    distances = [(guided(w, x["modulation"]) - null).abs().mean().item() for w in (0.5, 1.0, 2.0)]
    assert distances == sorted(distances) and distances[0] > 1e-3


@pytest.mark.parametrize(("action_scale", "is_longer"), [(1.0, True), (1.0, False), (2.5, True)])
@torch.no_grad()
def test_guidance_by_prompts_is_that_of_passes_over_the_whole_past(action_scale: float, is_longer: bool) -> None:
    """Each branch has a cache of its own, with its own prompt and actions."""
    generator, x, causality = small_generator(text_len=60), small_inputs(6), BlockCausality(2)
    negative = torch.randn(2, 9 if is_longer else 3, 9)
    guidance = Guidance(3.0, action_scale, (300.0, 1000.0))
    run = session(generator, x["text"], causality, 6, FEW, guidance=guidance, negative_text=negative)
    found = video(run, 6, x["modulation"])
    actions = x["modulation"]
    conditions = [(x["text"], actions), (negative, actions), (x["text"], torch.zeros_like(actions))]
    past = found[:, :0]
    noise = frame_noise(7, (4, 9), SHAPE)
    for block in causality.split(6):

        def velocity(noisy: Tensor, timestep: float, past: Tensor = past, block: range = block) -> Tensor:
            latents, times = torch.cat([past, noisy], dim=1), torch.zeros(2, block.stop)
            times[:, block.start :] = timestep
            each = [
                generator.block_causal(latents, times, text, causality, modulation[:, : block.stop])[:, block.start :]
                for text, modulation in conditions[: len(guidance.branches)]
            ]
            return guidance.combine(each, timestep)

        past = torch.cat([past, FEW(velocity, partial(noise, block))], dim=1)
    torch.testing.assert_close(found, past, atol=2e-5, rtol=0)
    plain = video(session(generator, x["text"], causality, 6, FEW), 6, x["modulation"])
    assert (found - plain).abs().max() > 1e-3


@torch.no_grad()
def test_guidance_by_prompts_needs_a_negative_one() -> None:
    generator, x = small_generator(), small_inputs(2)
    with pytest.raises(ValueError, match="guidance by prompts needs negative_text"):
        session(generator, x["text"], BlockCausality(2), 2, guidance=Guidance(2.0))
    # Without the prompt, it is the video of the negative one, to the bit.
    negative = torch.randn(2, 6, 9)
    without = session(generator, x["text"], BlockCausality(2), 2, guidance=Guidance(0.0), negative_text=negative)
    assert torch.equal(video(without, 2), video(session(generator, negative, BlockCausality(2), 2), 2))


@torch.no_grad()
def test_modulation_may_follow_from_what_was_generated() -> None:
    generator, x = small_generator(), small_inputs(6)
    asked: list[tuple[range, int]] = []

    def infer(block: range, history: Tensor) -> Tensor | None:
        asked.append((block, history.shape[1]))
        assert history.shape[2:] == x["clean"].shape[2:]
        return x["modulation"][:, block.start : block.stop] if block.start else None

    run = session(generator, x["text"], BlockCausality(2), 6)
    inferred = torch.cat(list(rollout(run, 6, infer)), dim=1)
    assert asked == [(range(0, 2), 0), (range(2, 4), 2), (range(4, 6), 4)]
    first_null = x["modulation"].clone()
    first_null[:, :2] = 0
    assert torch.equal(inferred, video(session(generator, x["text"], BlockCausality(2), 6), 6, first_null))


def test_bad_initial_latents_are_refused() -> None:
    generator, x = small_generator(), small_inputs(6)
    with pytest.raises(ValueError, match="initial_latents hold NaN"):
        video(session(generator, x["text"], BlockCausality(3), 6), 6, None, x["clean"][:, :3] * torch.nan)
    with pytest.raises(ValueError, match="6 initial latent frames are more than the video has, 3"):
        video(session(generator, x["text"], BlockCausality(3), 6), 3, None, x["clean"])


def test_parts_of_blocks_are_refused() -> None:
    generator, x = small_generator(), small_inputs(6)
    with pytest.raises(ValueError, match="7 latent frames .* not a whole number of blocks"):
        video(session(generator, x["text"], BlockCausality(3), 9), 7)
    with pytest.raises(ValueError, match="action_modulation is for 6 latent frames, the video has 3"):
        video(session(generator, x["text"], BlockCausality(3), 6), 3, x["modulation"])


@pytest.mark.parametrize("alone", [False, True])
@torch.no_grad()
def test_compiled_layers_serve_every_block_with_one_code(alone: bool) -> None:
    """Compiled at the first blocks; at none of the later ones, while the window fills and when it is full."""
    # Heads that fill vectors, whose complex and real rotation are equal to the bit.
    generator, x = small_generator(num_layers=3, dim=32, num_heads=2), small_inputs(14)
    causality, modulation = BlockCausality(2, 6, 2, independent_first_frame=alone), x["modulation"][..., :32]
    length, begun = (13, 3) if alone else (14, 2)
    expected = video(session(generator, x["text"], causality, length), length, modulation[:, :length])
    torch.compiler.reset()  # what other tests compiled may serve other shapes, too
    graphs: list[torch.fx.GraphModule] = []
    generator.compile_layers(backend=partial(_noted, graphs))
    assert all("_orig_mod" not in name for name in generator.state_dict())
    video(session(generator, x["text"], causality, begun), begun, modulation[:, :begun])
    num_graphs = len(graphs)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled = video(session(generator, x["text"], causality, length), length, modulation[:, :length])
    assert torch.equal(compiled, expected)
    assert len(graphs) == num_graphs <= (10 if alone else 5)
    inputs = [node.meta["example_value"] for graph in graphs for node in graph.graph.find_nodes(op="placeholder")]
    assert not any(isinstance(size, torch.SymInt) for tensor in inputs for size in tensor.shape)
    with pytest.raises(RuntimeError, match="recompile"), torch.compiler.set_stance("fail_on_recompile"):
        video(session(generator, x["text"], BlockCausality(3), 3), 3, modulation[:, :3])


@torch.no_grad()
def test_a_block_is_handed_over_before_it_is_written() -> None:
    generator, x, causality = small_generator(), small_inputs(6), BlockCausality(2)
    passes: list[int] = []
    generator.patch_embedding.register_forward_hook(lambda *_: passes.append(1))
    run = session(generator, x["text"], causality, 6)
    blocks = [run.next_block()]
    assert (len(passes), run.block, run.cache.block) == (3, range(2, 4), range(2))
    run.write_pending()
    run.write_pending()
    assert (len(passes), run.block, run.cache.block) == (4, range(2, 4), range(2, 4))
    blocks += [run.next_block(), run.next_block()]
    assert len(passes) == 3 + 1 + 3 + 1 + 3, "nobody asks for what follows the last block"
    assert torch.equal(torch.cat(blocks, 1), video(session(generator, x["text"], causality, 6), 6))


@pytest.mark.parametrize("context", ["clean", "last_step"])
@torch.no_grad()
def test_noise_is_drawn_before_its_block_is_asked_for(context: BlockContext) -> None:
    generator, x = small_generator(), small_inputs(8)
    events: list[tuple[str, range, int] | str] = []
    run = session(generator, x["text"], BlockCausality(2), 8, context=context)
    draw = run.noise
    run.noise = lambda frames, step: events.append(("drawn", frames, step)) or draw(frames, step)  # type: ignore[func-returns-value]
    generator.patch_embedding.register_forward_hook(lambda *_: events.append("pass"))
    for latents in rollout(run, 8, None, x["clean"][:, :2]):
        events.append(f"received {latents.shape[1]}")
    # The pass that writes the known block is on its way before the first noise is drawn.
    expected: list[Any] = ["received 2", "pass", ("drawn", range(2, 4), 0)]
    written = ["pass"] if context == "clean" else []
    for block, following in ((range(2, 4), range(4, 6)), (range(4, 6), range(6, 8)), (range(6, 8), None)):
        expected += ["pass", ("drawn", block, 1), "pass", ("drawn", block, 2), "pass"]
        expected += ["received 2"] if following is None else [("drawn", following, 0), "received 2", *written]
    assert events == expected


@torch.no_grad()
def test_noise_that_was_drawn_ahead_changes_nothing() -> None:
    generator, x = small_generator(), small_inputs(8)
    run, ahead = (session(generator, x["text"], BlockCausality(2), 8) for _ in range(2))
    run.next_block()
    ahead.draw_ahead()
    ahead.next_block()
    # For a block that is then known.
    ahead.draw_ahead()
    for each in (run, ahead):
        each.append(x["clean"][:, 2:4])
    assert torch.equal(run.next_block(), ahead.next_block())


@pytest.mark.parametrize("causality", [BlockCausality(2, 4), BlockCausality(1, 5, 2), BlockCausality(3)])
@torch.no_grad()
def test_keys_and_values_of_the_last_step_stay(causality: BlockCausality) -> None:
    """Later blocks see earlier ones as their last step saw them, which teacher forcing can show as well."""
    generator, x, last = small_generator(), small_inputs(6), 400.0
    inputs: list[Tensor] = []

    def one_step(velocity: Any, noise: Any) -> Tensor:
        inputs.append(noise(0))
        predicted.append(velocity(inputs[-1], last))
        return inputs[-1] - 0.4 * predicted[-1]

    predicted: list[Tensor] = []
    run = session(generator, x["text"], causality, 6, one_step, context="last_step")
    list(rollout(run, 6, x["modulation"]))
    noisy = torch.cat(inputs, dim=1)
    timestep = torch.full(noisy.shape[:2], last)
    arguments = noisy, noisy, timestep, x["text"], causality, x["modulation"], NO_IMAGE
    torch.testing.assert_close(
        torch.cat(predicted, dim=1), generator.teacher_forcing(*arguments, timestep), atol=1e-5, rtol=0
    )
    assert (torch.cat(predicted, dim=1) - generator.teacher_forcing(*arguments)).abs().max() > 1e-3


@torch.no_grad()
def test_a_block_that_was_handed_over_may_be_changed() -> None:
    generator, x = small_generator(), small_inputs(6)
    run = session(generator, x["text"], BlockCausality(2), 6)
    run.append(known := x["clean"][:, :2].clone())
    known.zero_()
    blocks = []
    for _ in range(2):
        blocks.append((block := run.next_block()).clone())
        block.zero_()
    untouched = video(session(generator, x["text"], BlockCausality(2), 6), 6, None, x["clean"][:, :2])
    assert torch.equal(torch.cat(blocks, dim=1), untouched[:, 2:])


@torch.no_grad()
def test_what_cannot_be_written_stays_pending() -> None:
    generator, x = small_generator(), small_inputs(6)
    run = session(generator, x["text"], BlockCausality(2), 6)
    run.append(x["clean"][:, :2], x["modulation"][:, :3])
    for _ in range(2):
        with pytest.raises(ValueError, match="action_modulation must be"):
            run.next_block()
    assert run.cache.position == 0


@torch.no_grad()
def test_the_first_block_that_is_generated_has_a_sampler_of_its_own() -> None:
    generator, x = small_generator(), small_inputs(6)
    asked: list[str] = []

    def named(name: str) -> Sampler:
        return lambda velocity, noise: asked.append(name) or velocity(noise(0), 1000.0)  # type: ignore[func-returns-value]

    run = session(generator, x["text"], BlockCausality(2), 6, named("later"), first_sampler=named("first"))
    list(rollout(run, 6, None, x["clean"][:, :2]))
    assert asked == ["first", "later"]


def _noted(graphs: list[torch.fx.GraphModule], graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
    graphs.append(graph)
    return graph.forward

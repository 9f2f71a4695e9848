"""Worlds that are stepped, against the rollout that knows all actions beforehand."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_action import ActionVideoModule, BlockCausality, LinearVideoCodec, Sampling, WorldSession
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.batch import from_unit_range
from lightning_action.frozen.interfaces import VideoCodec
from lightning_action.generation import rollout, video
from lightning_action.generator.acceleration import Acceleration
from tests.support.remembering_codec import RememberingCodec
from tests.support.sprite_module import ready

PROMPTS = ["a red disc", "a green disc"]
WINDOW = BlockCausality(1, 4, 1)
PLAIN = ActionSchema()
ALONE = {"independent_first_frame": True}


CODECS = pytest.mark.parametrize("codec", [LinearVideoCodec, RememberingCodec])
Codec = type[LinearVideoCodec]


def worlds(
    num_latents: int, schema: ActionSchema = PLAIN, codec: Codec = LinearVideoCodec, **settings: Any
) -> tuple[ActionVideoModule, Tensor, Tensor]:
    """A module whose every part acts, first frames of two worlds, `[2, T, 3, 16, 16]`, and rows of whole videos."""
    vae = partial(codec, 7, patch_size=4)
    module, batch = ready(**{"causality": WINDOW, "schema": schema, "vae": vae, **settings})
    # Halves of bytes come back the same from [0, 1].
    frames = ((batch["video"] * 0.5 + 0.5).clamp(0, 1) * 256).round() / 256
    rows = torch.rand(2, schema.num_rows(num_latents), schema.num_columns, generator=torch.Generator().manual_seed(3))
    if schema.parts[0].kind == "discrete":
        rows = (rows * schema.parts[0].size).floor()
    return module, frames, rows


def offline(
    module: ActionVideoModule, frames: Tensor | None, rows: Tensor | None, sampling: Sampling | None = None, **more: Any
) -> Tensor:
    batch = {"prompt": PROMPTS, "sample_id": torch.arange(2), "action": rows, **more}
    if frames is None:
        batch["frame_size"] = torch.tensor([[16, 16]] * 2)
    else:
        batch["video"] = from_unit_range(frames)
    return module.generate(batch, sampling)


def by_rows(session: WorldSession, rows: Tensor) -> Tensor:
    return torch.cat([session.step(row) for row in rows.unbind(1)], dim=1)


def by_blocks(session: WorldSession, rows: Tensor) -> Tensor:
    frames, position = [], 0
    while position < rows.shape[1]:
        stop = position + session.rows_wanted
        frames.append(session.step_block(rows[:, position:stop]))
        position = stop
    return torch.cat(frames, dim=1)


def rest(session: WorldSession, rows: Tensor) -> Tensor:
    """Rows that the session has not had with its first frames."""
    return rows[:, session.schema.num_rows(session.latent_frames) :] if session.latent_frames else rows


STATE = ActionSchema([ActionPart(size=2)], "state", "mean")
KEYS = ActionSchema([ActionPart("key", "discrete", 5), ActionPart("stick", size=3)], "per_latent")
FAST = ActionSchema([ActionPart(size=3)], "transition", "sum", rows_per_frame=2)
CASES = {
    "window and sink": (WINDOW, PLAIN, {}, 9, 1),
    "blocks of three, held frame": (BlockCausality(3, 7, 1), PLAIN, {}, 9, 1),
    "blocks of two, held frame of the second": (BlockCausality(2, 5, 1), STATE, {}, 8, 3),
    "independent first frame": (BlockCausality(2, 5, 1, **ALONE), STATE, {}, 7, 1),
    "one row a latent frame": (BlockCausality(2, 4), KEYS, {}, 8, 2),
    "two rows a pixel frame": (WINDOW, FAST, {}, 7, 2),
    "guidance": (BlockCausality(2, 5, 1), PLAIN, {"action_guidance_scale": 2.5, "prompt_guidance_scale": 1.5}, 6, 1),
    "few steps": (
        WINDOW,
        PLAIN,
        {"denoising_step_list": [1000.0, 500.0], "first_denoising_step_list": [1000.0, 700.0, 300.0]},
        7,
        1,
    ),
    "last step": (WINDOW, PLAIN, {"context": "last_step"}, 7, 1),
}


@pytest.mark.parametrize(("step", "codec"), [(by_rows, LinearVideoCodec), (by_blocks, RememberingCodec)])
@pytest.mark.parametrize("case", CASES)
def test_a_session_equals_the_rollout_to_the_bit(case: str, step: Any, codec: Codec) -> None:
    causality, schema, changes, length, num_initial = CASES[case]
    sampling = Sampling(**{"num_inference_steps": 2, "num_initial_latents": num_initial, "seed": 5, **changes})
    module, frames, rows = worlds(length, schema, codec, causality=causality, sampling=sampling)
    frames = frames[:, : 1 + 4 * (num_initial - 1)]
    whole = offline(module, frames, rows)
    with module.open_session(2) as session:
        first = session.reset(frames, PROMPTS, actions=rows[:, : schema.num_rows(num_initial)])
        assert first.shape[1] == frames.shape[1] == session.pixel_frames and session.latent_frames == num_initial
        stepped = torch.cat([first, step(session, rest(session, rows))], dim=1)
        assert (session.latent_frames, session.pixel_frames) == (length, whole.shape[1])
    assert torch.equal(stepped, whole)
    # The positive control: other actions make another video.
    assert (offline(module, frames, other_rows(schema, rows)) - whole).abs().max() > 3e-3


def other_rows(schema: ActionSchema, rows: Tensor) -> Tensor:
    return rows.flip(0) if schema.parts[0].kind == "discrete" else -rows


@pytest.mark.parametrize("causality", [WINDOW, BlockCausality(3, 6), BlockCausality(2, 5, 1, **ALONE)])
@pytest.mark.parametrize("schema", [PLAIN, STATE])
def test_worlds_begin_from_nothing_but_a_prompt(causality: BlockCausality, schema: ActionSchema) -> None:
    length = 7 if causality.independent_first_frame else 6
    sampling = Sampling(num_inference_steps=2, num_initial_latents=0)
    module, _, rows = worlds(length, schema, causality=causality, sampling=sampling)
    session = module.open_session(2)
    first = session.reset(prompt=PROMPTS, frame_size=(16, 16))
    alone = causality.block_after(0) == range(1) and schema is PLAIN
    assert first.shape == (2, int(alone), 3, 16, 16) and session.latent_frames == int(alone)
    assert torch.equal(torch.cat([first, by_rows(session, rows)], dim=1), offline(module, None, rows))


def test_rows_are_counted_and_kept_for_their_block() -> None:
    module, frames, rows = worlds(5, causality=BlockCausality(2, 6))
    session = module.open_session(2)
    session.reset(frames[:, :1], PROMPTS)
    assert session.rows_wanted == 4 and session.position == 0
    taken = rows[:, 0].clone()
    assert session.step(taken).shape == (2, 0, 3, 16, 16) and session.rows_wanted == 3
    taken.fill_(9.0)
    assert session.step_block(rows[:, 1:4]).shape == (2, 4, 3, 16, 16)
    assert session.rows_wanted == 8 and session.position == session.latent_frames == 2
    streamed = list(session.stream(rows[:, 4:12].unbind(1)))
    assert [each.shape[1] for each in streamed] == [8]
    again = module.open_session(2)
    again.reset(frames[:, :1], PROMPTS)
    assert torch.equal(again.step_block(rows[:, :4])[:, -1:], session_frames(module, frames, rows, 4)[:, -1:])


def session_frames(module: ActionVideoModule, frames: Tensor, rows: Tensor, count: int, **more: Any) -> Tensor:
    session = module.open_session(2)
    session.reset(frames[:, :1], PROMPTS, **more)
    return by_rows(session, rows[:, :count])


def test_one_row_serves_all_worlds_and_lists_are_taken() -> None:
    module, frames, _ = worlds(3)
    one, other = module.open_session(2), module.open_session(2)
    for session in (one, other):
        session.reset(frames[:, :1], "a disc")
    for _ in range(4):
        alike, each = one.step([0.5, -0.25]), other.step(torch.tensor([[0.5, -0.25]] * 2))
    assert alike.shape[1] == 4 and torch.equal(alike, each)
    # Rows of whole numbers and others stand in one block.
    for row in ([1, 0], [0.5, 0.25], [0, 1], [1, 1]):
        mixed, floats = one.step(row), other.step([float(value) for value in row])
    assert mixed.shape[1] == 4 and torch.equal(mixed, floats)


def test_seed_and_sample_id_choose_the_noise() -> None:
    module, frames, rows = worlds(3)
    plain = session_frames(module, frames, rows, 8)
    assert torch.equal(plain, session_frames(module, frames, rows, 8, seed=0, sample_id=[0, 1]))
    for other in ({"seed": 1}, {"sample_id": [0, 2]}):
        assert (plain - session_frames(module, frames, rows, 8, **other))[1].abs().max() > 1e-3
    swapped = session_frames(module, frames, rows, 8, sample_id=[0, 2])
    assert torch.equal(swapped[0], plain[0])
    assert torch.equal(session_frames(module, frames, rows, 8, sample_id=torch.tensor([0, 2])), swapped)


def test_a_prompt_holds_from_the_next_block_on() -> None:
    switches = [[(3, "a blue square")]] * 2
    module, frames, rows = worlds(7)
    whole = offline(module, frames[:, :1], rows, prompt_switches=switches)
    session = module.open_session(2)
    first = [session.reset(frames[:, :1], PROMPTS), by_rows(session, rows[:, :8])]
    session.prompt("a blue square")
    stepped = torch.cat([*first, by_rows(session, rows[:, 8:])], dim=1)
    assert torch.equal(stepped, whole)
    assert (whole - offline(module, frames[:, :1], rows))[:, 9:].abs().max() > 1e-3


def test_writing_ahead_changes_nothing() -> None:
    module, frames, rows = worlds(7)
    plain = session_frames(module, frames, rows, 24)
    session = module.open_session(2)
    session.reset(frames[:, :1], PROMPTS)
    ahead = []
    for block in rows.split(4, dim=1):
        session.write_pending()
        ahead.append(session.step_block(block))
    assert torch.equal(torch.cat(ahead, dim=1), plain)


@CODECS
@pytest.mark.parametrize("causality", [WINDOW, BlockCausality(2, 5, 1)])
@pytest.mark.parametrize("num_rows", [12, 14])
def test_a_fork_goes_on_as_its_parent_would_and_leaves_it_alone(
    causality: BlockCausality, num_rows: int, codec: Codec
) -> None:
    module, frames, rows = worlds(9, codec=codec, causality=causality)
    whole = session_frames(module, frames, rows, 32)
    parent = module.open_session(2)
    parent.reset(frames[:, :1], PROMPTS)
    before = by_rows(parent, rows[:, :num_rows])
    fork, many = parent.fork(), parent.fork(3)
    forked = by_rows(fork, rows[:, num_rows:])
    futures = by_rows(many, torch.cat([rows, -rows, rows.flip(1)])[[0, 2, 4, 1, 3, 5]][:, num_rows:])
    fork.close()
    mine = by_rows(parent, rows[:, num_rows:])
    assert torch.equal(torch.cat([before, mine], dim=1), whole) and torch.equal(forked, mine)
    # A batch of another size may round differently.
    torch.testing.assert_close(futures[[0, 3]], mine, atol=1e-4, rtol=0)
    for other in ([1, 4], [2, 5]):
        assert (futures[other] - mine).abs().amax((1, 2, 3, 4)).min() > 3e-3


@CODECS
def test_some_worlds_go_on_without_the_others_under_guidance_and_another_prompt(codec: Codec) -> None:
    sampling = Sampling(num_inference_steps=2, action_guidance_scale=2.0, prompt_guidance_scale=1.5)
    module, frames, rows = worlds(7, codec=codec, sampling=sampling)
    both = module.open_session(2)
    both.reset(frames[:, :1], PROMPTS)
    by_rows(both, rows[:, :12])
    with pytest.raises(ValueError, match="numbers from 0 to 1, got"):
        both.select([True, False])
    second = both.select([1])
    for session in (both, second):
        session.prompt("a blue square")
    torch.testing.assert_close(by_rows(second, rows[1:, 12:]), by_rows(both, rows[:, 12:])[1:], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "chosen", [[1, 0, 1], torch.tensor([1, 0, 1]), np.array([1, 0, 1]), list(torch.tensor([1, 0, 1]))]
)
def test_worlds_are_selected_by_whole_numbers_of_any_kind(chosen: Any) -> None:
    module, frames, rows = worlds(5)
    session = module.open_session(2)
    session.reset(frames[:, :1], PROMPTS)
    session.step(rows[:, 0])
    some = session.select(chosen)
    assert some.num_worlds == 3 and some.rows_wanted == 3
    expected = session.step_block(rows[:, 1:4])[[1, 0, 1]]
    torch.testing.assert_close(some.step_block(rows[[1, 0, 1], 1:4]), expected, atol=1e-4, rtol=0)


def test_sessions_of_one_model_do_not_disturb_each_other() -> None:
    module, frames, rows = worlds(9)
    alone = [session_frames(module, frames, rows, 28, seed=1), session_frames(module, 1 - frames, -rows, 28, seed=2)]
    sessions = [module.open_session(2), module.open_session(2)]
    for session, start, seed in zip(sessions, (frames, 1 - frames), (1, 2), strict=True):
        session.reset(start[:, :1], PROMPTS, seed=seed)
    mixed: list[list[Tensor]] = [[], []]
    for row in range(28):
        for session, mine, sign in zip(sessions, mixed, (1, -1), strict=True):
            mine.append(session.step(sign * rows[:, row]))
    for mine, expected in zip(mixed, alone, strict=True):
        assert torch.equal(torch.cat(mine, dim=1), expected)


def test_reset_begins_anew() -> None:
    module, frames, rows = worlds(7)
    plain = session_frames(module, frames, rows, 24)
    session = module.open_session(2)
    session.reset(1 - frames[:, :5], "another")
    by_rows(session, -rows[:, :10])
    session.reset(frames[:, :1], PROMPTS)
    assert torch.equal(by_rows(session, rows), plain)


SEEN = [BlockCausality(1, 4, 1), BlockCausality(2, 5, 1, **ALONE), BlockCausality(2, 6)]


@CODECS
@pytest.mark.parametrize("causality", SEEN)
@pytest.mark.parametrize("predicts", [True, False])
@pytest.mark.parametrize("writes", [True, False])
def test_what_happened_takes_the_place_of_what_was_predicted(
    causality: BlockCausality, predicts: bool, writes: bool, codec: Codec
) -> None:
    """A session whose blocks were all committed equals one that was reset with those frames and actions."""
    sampling = Sampling(num_inference_steps=2, first_num_inference_steps=3, num_initial_latents=1)
    module, frames, rows = worlds(9, codec=codec, causality=causality, sampling=sampling)
    num_known = 4 if causality.num_frame_per_block == 2 and not causality.independent_first_frame else 5
    known = range(1 + 4 * (num_known - 1))
    session = module.open_session(2)
    session.reset(frames[:, :1], PROMPTS)
    returned = []
    while session.latent_frames < num_known:
        have = session.pixel_frames
        wanted = session.rows_wanted
        if writes:
            session.write_pending()
        if predicts:
            session.step_block(-rows[:, have - 1 : have - 1 + wanted])
        returned.append(session.commit(rows[:, have - 1 : have - 1 + wanted], frames[:, have : have + wanted]))
    reset = module.open_session(2)
    first = reset.reset(frames[:, known], PROMPTS, actions=rows[:, : len(known) - 1])
    torch.testing.assert_close(torch.cat(returned, dim=1), first[:, 1:], atol=1e-5, rtol=0)
    assert session.pixel_frames == reset.pixel_frames == len(known)
    assert torch.equal(by_rows(session, rest(session, rows)), by_rows(reset, rest(reset, rows)))


@CODECS
@pytest.mark.parametrize("causality", [WINDOW, BlockCausality(2, 6)])
@pytest.mark.parametrize("chosen", [[1], [1, 0, 1]])
def test_what_happened_in_a_selection_is_what_would_have_happened_in_all(
    causality: BlockCausality, chosen: list[int], codec: Codec
) -> None:
    module, frames, rows = worlds(7, codec=codec, causality=causality)
    parent, twin = module.open_session(2), module.open_session(2)
    for each in (parent, twin):
        each.reset(frames[:, :1], PROMPTS)
        by_rows(each, rows[:, :4])
    some, fork = parent.select(chosen), parent.fork()
    happened = twin.commit(-rows[:, :4], frames[:, 1:5])
    expected = torch.cat([happened, by_rows(twin, rows[:, 4:20])], dim=1)
    committed = some.commit(-rows[chosen, :4], frames[chosen, 1:5])
    found = torch.cat([committed, by_rows(some, rows[chosen, 4:20])], dim=1)
    # A batch of another size may round differently.
    torch.testing.assert_close(found, expected[chosen], atol=1e-4, rtol=0)
    in_fork = torch.cat([fork.commit(-rows[:, :4], frames[:, 1:5]), by_rows(fork, rows[:, 4:20])], dim=1)
    assert torch.equal(in_fork, expected)
    plain = session_frames(module, frames, rows, 20)
    assert torch.equal(by_rows(parent, rows[:, 4:20]), plain[:, 4:]) and (plain - expected).abs().max() > 3e-3


def test_several_blocks_are_committed_at_once_and_predictions_may_lie_before() -> None:
    module, frames, rows = worlds(9)
    one, other = module.open_session(2), module.open_session(2)
    for session in (one, other):
        session.reset(frames[:, :1], PROMPTS)
        by_rows(session, rows[:, :8])
    one.commit(-rows[:, 4:12], frames[:, 5:13])
    other.commit(-rows[:, 4:8], frames[:, 5:9])
    other.commit(-rows[:, 8:12], frames[:, 9:13])
    assert one.latent_frames == 4
    torch.testing.assert_close(by_rows(one, rows[:, 12:]), by_rows(other, rows[:, 12:]), atol=1e-4, rtol=0)


def test_a_commit_that_is_too_late_or_does_not_fit_changes_nothing() -> None:
    module, frames, rows = worlds(7, causality=BlockCausality(2, 5, 1, **ALONE))
    session, twin = module.open_session(2), module.open_session(2)
    for each in (session, twin):
        each.reset(frames[:, :1], PROMPTS)
        by_rows(each, rows[:, :8])
    bad = [
        (rows[:, :8], frames[:, 1:8], "frames"),
        (rows[:, :4], frames[:, 1:5], "whole number of blocks"),
        (rows[:, :7], frames[:, 1:9], "must be \\[B, 8, 2\\] .*got \\[2, 7, 2\\]"),
        (rows[:, :8], frames[:1, 1:9], "\\[2, T, 3, H, W\\]"),
        (rows[:, :8], frames[:, 1:9, :, :8], "expected frames of \\(16, 16\\)"),
        (rows[:, :8], frames[:, 1:9] * 2 + 0.5, "in \\[0, 1\\]"),
        (rows[:, :8] * torch.nan, frames[:, 1:9], "not finite"),
        (None, frames[:, 1:9], "the action rows that led to the frames, .*, got None"),
    ]
    for actions, seen, message in bad:
        with pytest.raises(ValueError, match=message):
            session.commit(actions, seen)
    assert torch.equal(by_rows(session, rows[:, 8:16]), by_rows(twin, rows[:, 8:16]))
    session.step(rows[:, 16])
    with pytest.raises(ValueError, match="1 action rows wait for their block"):
        session.commit(rows[:, :8], frames[:, 9:17])
    twin.write_pending()
    with pytest.raises(ValueError, match="commit what happened right after the step"):
        twin.commit(rows[:, :8], frames[:, 9:17])


def test_a_codec_that_looks_back_cannot_commit_behind_what_was_predicted_and_kept() -> None:
    module, frames, rows = worlds(5, codec=RememberingCodec)
    session, twin = module.open_session(2), module.open_session(2)
    for each in (session, twin):
        each.reset(frames[:, :1], PROMPTS)
        by_rows(each, rows[:, :8])
    with pytest.raises(ValueError, match="this codec looks back in time"):
        session.commit(rows[:, 4:8], frames[:, 5:9])
    assert torch.equal(by_rows(session, rows[:, 8:]), by_rows(twin, rows[:, 8:]))


def test_a_codec_that_encodes_whole_videos_commits_nothing() -> None:
    module, frames, rows = worlds(5, codec=WholeVideos)
    session = module.open_session(2)
    session.reset(frames[:, :1], PROMPTS)
    with pytest.raises(ValueError, match="WholeVideos cannot encode a video part by part"):
        session.commit(rows[:, :4], frames[:, 1:5])
    assert torch.equal(by_rows(session, rows), session_frames(module, frames, rows, 16))


class WholeVideos(LinearVideoCodec):
    _encode_next = VideoCodec._encode_next


def test_a_commit_needs_the_clean_context_and_frames_to_begin_with() -> None:
    module, frames, rows = worlds(5, sampling=Sampling(num_inference_steps=2, context="last_step"))
    session = module.open_session(2)
    session.reset(frames[:, :1], PROMPTS)
    by_rows(session, rows[:, :4])
    with pytest.raises(ValueError, match="under context: clean"):
        session.commit(rows[:, :4], frames[:, 1:5])
    module, frames, rows = worlds(5)
    session = module.open_session(2)
    session.reset(prompt=PROMPTS, frame_size=(16, 16))
    by_rows(session, rows[:, :4])
    with pytest.raises(ValueError, match="had no first frames"):
        session.commit(rows[:, :4], frames[:, 1:5])


def fails_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which finds no memory the so-manieth time that it is called."""
    calls = [call]

    def function_or_failure(*args: Any, **kwargs: Any) -> Any:
        calls[0] -= 1
        if calls[0] == 0:
            raise torch.OutOfMemoryError("no memory")
        return function(*args, **kwargs)

    return function_or_failure


SAMPLERS = {"num_inference_steps": 2, "first_num_inference_steps": 3}


@CODECS
@pytest.mark.parametrize(("method", "call"), [("denoise", 2), ("write", 1)])
def test_a_step_without_memory_takes_nothing_and_can_be_tried_again(
    method: str, call: int, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, frames, rows = worlds(7, codec=codec, causality=BlockCausality(2, 6), sampling=Sampling(**SAMPLERS))
    plain = session_frames(module, frames, rows, 20)
    session = module.open_session(2)
    found = [session.reset(frames[:, :1], PROMPTS)[:, :0]]
    for stop in (4, 12, 20):
        by_rows(session, rows[:, session.pixel_frames - 1 : stop - 1])
        with monkeypatch.context() as patched:
            patched.setattr(module.generator, method, fails_at(call, getattr(module.generator, method)))
            if method == "denoise" or stop > 4:
                with pytest.raises(torch.OutOfMemoryError):
                    session.step(rows[:, stop - 1])
                assert session.rows_wanted == 1
        found.append(session.step(rows[:, stop - 1]))
    assert torch.equal(torch.cat(found, dim=1), plain)


@CODECS
@pytest.mark.parametrize("context", ["clean", "last_step"])
def test_a_block_that_is_not_finite_is_forgotten_or_ends_the_worlds(context: str, codec: Codec) -> None:
    sampling = Sampling(**SAMPLERS, context=context)
    module, frames, rows = worlds(7, codec=codec, causality=BlockCausality(2, 6), sampling=sampling)
    plain, session = session_frames(module, frames, rows, 20), module.open_session(2)
    bias = module.generator.head.head.bias
    for broken in range(3):
        session.reset(frames[:, :1], PROMPTS)
        found = []
        for number, block in enumerate(rows[:, :20].split([4, 8, 8], dim=1)):
            if number == broken:
                good = bias.detach().clone()
                bias.data.fill_(torch.nan)
                with pytest.raises(RuntimeError, match="NaN or infinity"):
                    session.step_block(block)
                bias.data.copy_(good)
                if context == "last_step":
                    break
                assert session.rows_wanted == block.shape[1]
            found.append(session.step_block(block))
        if context == "clean":
            assert torch.equal(torch.cat(found, dim=1), plain)
            continue
        for refused in (partial(session.step_block, block), session.fork, session.write_pending):
            with pytest.raises(RuntimeError, match="cannot go on after what failed before: reset them"):
                refused()


@pytest.mark.parametrize("fails", ["commit", "prompt", "reset"])
def test_what_fails_half_way_ends_the_worlds(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, frames, rows = worlds(7)
    session = module.open_session(2)
    session.reset(frames[:, :1], PROMPTS)
    by_rows(session, rows[:, :4])
    calls = {
        "commit": partial(session.commit, rows[:, :12], frames[:, 1:13]),
        "prompt": partial(session.prompt, "another"),
        "reset": partial(session.reset, frames[:, :13], PROMPTS),
    }
    with monkeypatch.context() as patched:
        patched.setattr(module.generator, "write", fails_at(2, module.generator.write))
        with pytest.raises(torch.OutOfMemoryError):
            calls[fails]()
    with pytest.raises(RuntimeError, match="reset them"):
        session.step(rows[:, 4])
    session.reset(frames[:, :1], PROMPTS)
    assert torch.equal(by_rows(session, rows), session_frames(module, frames, rows, 24))


def test_a_refused_reset_leaves_the_worlds_and_another_frees_them_first(monkeypatch: pytest.MonkeyPatch) -> None:
    module, frames, rows = worlds(7)
    session = module.open_session(2)
    session.reset(frames[:, :1], PROMPTS)
    first = by_rows(session, rows[:, :6])
    for arguments, message in REFUSED:
        with pytest.raises(ValueError, match=message):
            session.reset(**{"first_frames": frames[:, :1], **arguments})
    assert torch.equal(torch.cat([first, by_rows(session, rows[:, 6:])], 1), session_frames(module, frames, rows, 24))
    old, seen = weakref.ref(session._require_worlds()._rollout.cache), []

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append(old())
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(rollout, "KVCache", noted)
    with pytest.raises(torch.OutOfMemoryError):
        session.reset(frames[:, :1], PROMPTS)
    assert seen == [None]
    with pytest.raises(RuntimeError, match="call reset first"):
        session.step(rows[:, 0])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"frame_size": (16, 16)}, "leave frame_size out"),
    ({"sample_id": "ab"}, "a whole number for each world, got 'ab'"),
    ({"sample_id": torch.tensor([0.0, 1.0])}, "a whole number for each world"),
    ({"sample_id": torch.tensor(3)}, "a whole number for each world"),
    ({"sample_id": [0, 2**63]}, "a whole number from -2\\^63"),
    ({"first_frames": torch.zeros(2, 1, 3, 12, 16)}, "whole number of patches"),
    ({"first_frames": None, "frame_size": (16, 12)}, "whole number of patches"),
    ({"first_frames": None, "frame_size": (0, 16)}, "height must be a whole number of at least 1, got 0"),
    ({"first_frames": None, "frame_size": (16, -16)}, "width must be a whole number of at least 1, got -16"),
    ({"first_frames": torch.zeros(2, 1, 3, 16, 0)}, "width must be a whole number of at least 1, got 0"),
]


def test_nothing_grows_with_the_number_of_frames() -> None:
    module, frames, rows = worlds(5)
    session = module.open_session(2)
    session.reset(frames[:, :1], PROMPTS)
    held = []
    for _ in range(5):
        by_rows(session, rows)
        session.prompt("a disc")
        held.append(bytes_held(session))
    # The first pass stands for a window that was not full.
    assert held[0] > 20_000 and len(set(held[1:])) == 1


def bytes_held(root: object) -> int:
    """Bytes of all tensors that can be reached from a session, but those of the model."""
    total, seen, waiting = 0, set(), [root]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, torch.nn.Module | type) or callable(thing) and hasattr(thing, "func"):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            total += thing.untyped_storage().nbytes()
        elif isinstance(thing, list | tuple):
            waiting += thing
        elif isinstance(thing, dict):
            waiting += thing.values()
        elif hasattr(thing, "__dict__"):
            waiting += vars(thing).values()
    return total


def test_memory_must_be_bounded() -> None:
    module, frames, rows = worlds(4, causality=BlockCausality(1))
    with pytest.raises(ValueError, match="would grow for ever"):
        module.open_session()
    short, windowed = module.open_session(2, max_latents=2), module.open_session(2, causality=WINDOW)
    for session in (short, windowed):
        session.reset(frames[:, :1], PROMPTS)
        by_rows(session, rows[:, :4])
        session.write_pending()
    with pytest.raises(ValueError, match="holds 2 latent frames and cannot go on to 3"):
        short.step(rows[:, 4])
    assert by_rows(windowed, rows[:, 4:8]).shape[1] == 4
    with pytest.raises(ValueError, match="holds 2 latent frames and cannot go on to 3"):
        short.reset(frames[:, :9], PROMPTS)


def test_what_cannot_be_is_refused() -> None:
    module, frames, rows = worlds(4, KEYS, causality=WINDOW)
    session = module.open_session(2)
    for early in (lambda: session.step(rows[:, 0]), lambda: session.rows_wanted, session.write_pending, session.fork):
        with pytest.raises(RuntimeError, match="call reset first"):
            early()
    resets: list[tuple[dict[str, Any], str]] = [
        ({}, "give frame_size"),
        ({"first_frames": frames[:1]}, "\\[2, T, 3, H, W\\]"),
        ({"first_frames": frames[:, :3]}, "1 \\+ 4 n"),
        ({"first_frames": frames[:, :1] * 2 - 1}, "in \\[0, 1\\]"),
        ({"first_frames": frames[:, :1] * torch.nan}, "in \\[0, 1\\]"),
        ({"first_frames": frames[:, :1], "prompt": ["one"]}, "or 2 of them"),
        ({"first_frames": frames[:, :1], "sample_id": [1]}, "sample_id of 2 worlds"),
        ({"first_frames": frames[:, :1], "actions": rows[:, :2]}, "\\[B, 1, 4\\]"),
        ({"frame_size": (15, 16)}, "multiples of 4"),
    ]
    for arguments, message in resets:
        with pytest.raises(ValueError, match=message):
            session.reset(**arguments)
    session.reset(frames[:, :1], PROMPTS)
    good = rows[:, 0]
    too_high = torch.cat([good[:, :1] + 5, good[:, 1:]], dim=1)
    for bad, message in ((good[:, :3], "4 columns"), (good[:1], "got \\[1, 4\\]"), (good * torch.nan, "not finite")):
        with pytest.raises(ValueError, match=message):
            session.step(bad)
    with pytest.raises(ValueError, match="whole numbers from 0 to 4"):
        session.step(too_high)
    with pytest.raises(ValueError, match="\\[2, 1, 4\\]"):
        session.step_block(rows[:, :2])
    assert session.rows_wanted == 1
    session.close()
    for late in (lambda: session.step(good), lambda: session.reset(frames[:, :1]), lambda: session.position):
        with pytest.raises(RuntimeError, match="closed"):
            late()


def test_the_parts_of_the_last_block_are_timed() -> None:
    module, frames, rows = worlds(3)
    session = module.open_session(2)
    session.reset(frames[:, :1], PROMPTS)
    assert session.block_seconds == {}
    for _ in range(2):
        session.step_block(rows[:, :4])
        assert list(session.block_seconds) == ["generate", "decode"]
        assert all(0 < seconds < 60 for seconds in session.block_seconds.values())


@pytest.mark.parametrize("causality", [BlockCausality(1, 4, 1), BlockCausality(2, 5, 1), BlockCausality(1, 4)])
def test_relative_positions_begin_to_matter_when_frames_leave_the_window(causality: BlockCausality) -> None:
    module, frames, rows = worlds(16, causality=causality)
    relative = Sampling(num_inference_steps=2, relative_positions=True)
    plain, moved = offline(module, frames[:, :1], rows), offline(module, frames[:, :1], rows, relative)
    inside = 1 + 4 * (4 - 1)
    assert torch.equal(plain[:, :inside], moved[:, :inside])
    if causality.sink_size == 0:
        assert torch.equal(plain, moved)
    else:
        assert (plain - moved)[:, inside:].abs().max() > 1e-5
    session = module.open_session(2, sampling=relative)
    first = [session.reset(frames[:, :1], PROMPTS), by_rows(session, rows[:, :36])]
    fork = session.fork()
    mine = by_rows(session, rows[:, 36:])
    assert torch.equal(torch.cat([*first, mine], dim=1), moved) and torch.equal(by_rows(fork, rows[:, 36:]), mine)


@pytest.mark.parametrize("relative", [False, True])
def test_a_captured_pass_serves_a_session_and_its_forks(relative: bool) -> None:
    captured = Acceleration(capture_pass=True)
    sampling = Sampling(num_inference_steps=2, relative_positions=relative)
    found = []
    for settings in ({}, {"acceleration": captured}):
        module, frames, rows = worlds(9, sampling=sampling, **settings)
        session = module.open_session(2)
        with torch.compiler.set_stance("force_eager"):
            session.reset(frames[:, :1], PROMPTS)
            before = by_rows(session, rows[:, :20])
            fork = session.fork()
            found.append((before, by_rows(session, rows[:, 20:]), by_rows(fork, rows[:, 20:])))
    for plain, one in zip(*found, strict=True):
        torch.testing.assert_close(one, plain, atol=1e-5, rtol=0)


def test_a_pass_is_captured_for_what_stays_and_not_for_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Noted(video.CapturedPass):
        def __init__(self, generator: Any, text: Any, cache: Any) -> None:
            super().__init__(generator, text, cache)
            sizes.append(cache.keys.shape[1])

    monkeypatch.setattr(video, "CapturedPass", Noted)
    module, frames, rows = worlds(9, acceleration=Acceleration(capture_pass=True))
    session = module.open_session(2)
    with torch.compiler.set_stance("force_eager"):
        session.reset(frames[:, :1], PROMPTS)
        by_rows(session, rows[:, :20])
        assert sizes == [2]
        fork, chosen = session.fork(), session.select([1, 0, 1])
        by_rows(fork, rows[:, 20:])
        assert sizes == [2]
        by_rows(chosen, rows[[1, 0, 1], 20:])
        assert sizes == [2, 3]
        fork.reset(frames[:, :1], PROMPTS)
        by_rows(fork, rows[:, :20])
    assert sizes == [2, 3, 2]

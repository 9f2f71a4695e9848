"""A world model as an environment: checked by gymnasium, and against the session under it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from lightning_action import ActionVideoModule, BlockCausality, WorldModelEnv, WorldModelVectorEnv, WorldSession
from lightning_action.action.schema import ActionPart, ActionSchema
from tests.support.small_generator import fill
from tests.support.sprite_module import ready
from tests.support.written_run import write_run

WINDOW = BlockCausality(1, 4, 1)


def parts(**settings: Any) -> tuple[ActionVideoModule, Tensor]:
    module, batch = ready(**{"causality": WINDOW, **settings})
    return module, (batch["video"][:, :1] * 0.5 + 0.5).clamp(0, 1)


def brightness(frames: np.ndarray, rows: np.ndarray, info: dict[str, Any]) -> float:
    return float(frames.mean()) / 255 + info["step"]


MIXED = ActionSchema([ActionPart("key", "discrete", 5), ActionPart("stick", size=2)], "transition")


@pytest.mark.parametrize(
    ("schema", "holds_action"), [(ActionSchema(), True), (ActionSchema(), False), (MIXED, True), (MIXED, False)]
)
def test_gymnasium_finds_nothing_wrong(schema: ActionSchema, holds_action: bool) -> None:
    module, starts = parts(schema=schema)
    make = partial(WorldModelEnv, module, starts, brightness, max_steps=3, holds_action=holds_action)
    # What a specification is needed for: other modes of rendering are tried, too.
    spec = EnvSpec("World-v0", entry_point=make, disable_env_checker=True)
    env = gymnasium.make(spec, render_mode="rgb_array").unwrapped
    check_env(env)
    assert env.observation_space.shape == (16, 16, 3) and env.metadata["render_fps"] == 4
    env.close()


def test_without_gymnasium_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "lightning_action.play.world_model_env")
    with pytest.raises(ImportError, match="pip install 'lightning_action\\[env\\]'"):
        importlib.import_module("lightning_action.play.world_model_env")


def test_a_held_action_is_its_row_for_the_whole_block() -> None:
    module, starts = parts()
    held, whole = WorldModelEnv(module, starts), WorldModelEnv(module, starts, holds_action=False)
    action = np.float32([0.5, -0.25])
    for env in (held, whole):
        env.reset(seed=3)
    seen, _, _, _, info = held.step(action)
    same, *_, same_info = whole.step(np.tile(action, (4, 1)))
    assert np.array_equal(seen, same) and np.array_equal(info["frames"], same_info["frames"])
    assert info["frames"].shape == (4, 16, 16, 3) and np.array_equal(info["frames"][-1], seen)
    assert np.array_equal(held.render(), seen)
    other, *_ = whole.step(np.tile(-action, (4, 1)))
    assert np.abs(other.astype(int) - held.step(action)[0]).max() > 0


def test_a_step_is_what_the_session_does() -> None:
    module, starts = parts()
    env = WorldModelEnv(module, starts, brightness, lambda frames, info: info["step"] == 2, max_steps=2)
    observation, info = env.reset(seed=1, options={"start": 1})
    assert info == {"start": 1, "step": 0}
    fork = env.session.fork()
    rows = torch.tensor([[[0.5, 0.25]] * 4])
    expected = (fork.step_block(rows)[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    seen, reward, terminated, truncated, info = env.step(np.float32([0.5, 0.25]))
    assert np.array_equal(info["frames"], expected) and not np.array_equal(seen, observation)
    assert reward == pytest.approx(expected.mean() / 255 + 1) and (terminated, truncated) == (False, False)
    assert env.step(np.float32([0.5, 0.25]))[2:4] == (True, True)


def test_seeds_choose_start_and_noise() -> None:
    module, starts = parts()
    env = WorldModelEnv(module, starts)

    def seen(seed: int | None, **options: Any) -> tuple[Any, Any]:
        first, _ = env.reset(seed=seed, options=options)
        return first, env.step(np.float32([1, 0]))[0]

    assert all(np.array_equal(*pair) for pair in zip(seen(1), seen(1), strict=True))
    one, other = seen(1, start=0), seen(2, start=0)
    assert np.array_equal(one[0], other[0]) and not np.array_equal(one[1], other[1])
    assert not np.array_equal(seen(1, start=1)[0], one[0])


def test_a_model_without_window_needs_an_end() -> None:
    module, starts = parts(causality=BlockCausality(1))
    with pytest.raises(ValueError, match="would grow for ever"):
        WorldModelEnv(module, starts)
    env = WorldModelEnv(module, starts, max_steps=2)
    env.reset()
    assert [env.step(np.float32([0, 0]))[3] for _ in range(2)] == [False, True]
    endless = WorldModelEnv(module, starts, causality=WINDOW)
    opened = WorldModelEnv(lambda count: module.open_session(count, causality=WINDOW), starts)
    for each in (endless, opened):
        each.reset(seed=3)
    assert np.array_equal(endless.step(np.float32([0, 1]))[0], opened.step(np.float32([0, 1]))[0])
    with pytest.raises(ValueError, match="causality are for a module"):
        WorldModelEnv(lambda count: module.open_session(count), starts, causality=WINDOW)


@pytest.mark.parametrize(
    ("schema", "causality", "steps_per_second"),
    [
        (ActionSchema(), WINDOW, 4),
        (ActionSchema(alignment="per_latent"), WINDOW, 4),
        (ActionSchema(rows_per_frame=2), WINDOW, 4),
        (ActionSchema(), BlockCausality(2, 5), 2),
    ],
)
def test_a_second_has_as_many_steps_as_blocks(
    schema: ActionSchema, causality: BlockCausality, steps_per_second: int
) -> None:
    module, starts = parts(schema=schema, causality=causality)
    assert WorldModelEnv(module, starts, fps=16).metadata["render_fps"] == steps_per_second
    assert WorldModelVectorEnv(module, starts, 2, fps=16).metadata["render_fps"] == steps_per_second


def test_frames_may_be_written_into() -> None:
    module, starts = parts()
    env = WorldModelEnv(module, starts, lambda frames, rows, info: float(frames.fill(0) or 1))
    vector = WorldModelVectorEnv(module, starts, 2)
    for each, action in ((env, np.float32([1, 0])), (vector, np.float32([[1, 0], [0, 1]]))):
        each.reset(seed=1)
        seen, *_, info = each.step(action)
        for frames in info["frames"]:
            frames.fill(0)
        shown = each.render()
        assert shown is not None and np.array_equal(np.stack(shown), seen) and seen.any()


def test_blocks_of_other_lengths_are_held_or_refused() -> None:
    module, starts = parts(causality=BlockCausality(2, 5))
    env = WorldModelEnv(module, starts)
    env.reset()
    assert [len(env.step(np.float32([0, 0]))[4]["frames"]) for _ in range(2)] == [4, 8]
    with pytest.raises(ValueError, match="the first block takes 4 action rows and later ones 8"):
        WorldModelEnv(module, starts, holds_action=False)


def test_what_cannot_be_is_refused() -> None:
    module, starts = parts()
    env = WorldModelEnv(module, starts)
    with pytest.raises(RuntimeError, match="call reset first"):
        env.step(np.float32([0, 0]))
    with pytest.raises(ValueError, match="rgb_array or None"):
        WorldModelEnv(module, starts, render_mode="human")
    with pytest.raises(ValueError, match="max_steps"):
        WorldModelEnv(module, starts, max_steps=0)
    env.reset()
    with pytest.raises(ValueError, match="1 x 2 values"):
        env.step(np.float32([0, 0, 0]))
    env.close()


def start_of(number: int) -> tuple[Tensor, str]:
    """First frames that are those of a number alone."""
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(number)), "a disc"


def end_of(number: int) -> int:
    """Steps of the world that begins at a number."""
    return 1 + number % 3


Ended = Callable[[np.ndarray, dict[str, Any]], bool]


def alone(module: ActionVideoModule, seed: int, actions: np.ndarray, ended: Ended) -> list[np.ndarray]:
    """Observations of one world that begins anew, one step late, whenever it has ended."""
    env = WorldModelEnv(module, start_of, terminated=ended)
    seen, has_ended = [env.reset(seed=seed)[0]], False
    for action in actions:
        if has_ended:
            seen.append(env.reset()[0])
            has_ended = False
        else:
            observation, _, has_ended, _, _ = env.step(action)
            seen.append(observation)
    return seen


@pytest.mark.parametrize("ends_alike", [True, False])
def test_a_vector_is_so_many_environments(ends_alike: bool) -> None:
    module, _ = parts()
    assert module.action_projection is not None
    fill(module.action_projection, scale=3.0)

    def ended(frames: np.ndarray, info: dict[str, Any]) -> bool:
        return info["step"] == (3 if ends_alike else end_of(info["start"]))

    vector = WorldModelVectorEnv(
        module, start_of, 3, brightness, None if ends_alike else ended, 3 if ends_alike else None
    )
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 3, 2)).astype(np.float32)
    seen, began = [vector.reset(seed=5)[0]], np.zeros(3, bool)
    batches, ways = [vector.num_batches], set()
    for action in actions:
        observation, reward, terminated, truncated, infos = vector.step(action)
        seen.append(observation)
        batches.append(vector.num_batches)
        assert [frames is None for frames in infos["frames"]] == began.tolist()
        assert (reward[~began] > 0).all() and not reward[began].any()
        began = terminated | truncated
        ways.add(tuple(began.tolist()))
    assert batches == [1] * 9 if ends_alike else max(batches) > 1 and len(ways) > 3
    for world in range(3):
        expected = alone(module, 5 + world, actions[:, world], ended)
        for one, other in zip([observation[world] for observation in seen], expected, strict=True):
            # A batch of another size may round to the next byte.
            assert np.abs(one.astype(int) - other).max() <= 1
        under_others = alone(module, 5 + world, actions[:, world - 1], ended)
        assert max(np.abs(one.astype(int) - other).max() for one, other in zip(expected, under_others, strict=True)) > 5
    differences = [np.abs(each[0].astype(int) - each[1]).max() for each in seen]
    assert min(differences) > 10
    vector.close()
    assert vector.num_batches == 0


def vector_of_two_batches(module: ActionVideoModule) -> WorldModelVectorEnv:
    """Three worlds: the second and the third in one batch, the first, which began anew, in another."""
    # In the order of the batches: those of the first step, of the second, of the third.
    ends = chain([True, False, False, False, False, True, False, True], repeat(False))
    vector = WorldModelVectorEnv(module, start_of, 3, terminated=lambda frames, info: next(ends))
    vector.reset(seed=5)
    for _ in range(2):
        vector.step(np.zeros((3, 2), np.float32))
    assert vector.num_batches == 2
    return vector


def test_batches_that_have_ended_are_freed_before_others_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    vector, calls = vector_of_two_batches(parts()[0]), []
    vector.step(np.zeros((3, 2), np.float32))

    def noted(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: WorldSession, *given: Any) -> Any:
            calls.append((name, self.num_worlds))
            return own(self, *given)

        return call

    for name in ("select", "close"):
        monkeypatch.setattr(WorldSession, name, noted(name, getattr(WorldSession, name)))
    vector.step(np.zeros((3, 2), np.float32))
    assert calls == [("close", 1), ("select", 2), ("close", 2)]


def test_an_action_that_does_not_fit_moves_no_world_and_a_failure_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = parts()
    vector, twin = vector_of_two_batches(module), vector_of_two_batches(module)
    for place in range(3):
        bad = np.zeros((3, 2), np.float32)
        bad[place] = np.nan
        with pytest.raises(ValueError, match="not finite"):
            vector.step(bad)
    actions = np.full((3, 2), 0.5, np.float32)
    assert np.array_equal(vector.step(actions)[0], twin.step(actions)[0])
    calls, step_block = [0], WorldSession.step_block

    def fails_late(self: WorldSession, rows: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == 2:
            raise torch.OutOfMemoryError("no memory")
        return step_block(self, rows)

    vector = vector_of_two_batches(module)
    monkeypatch.setattr(WorldSession, "step_block", fails_late)
    with pytest.raises(torch.OutOfMemoryError):
        vector.step(actions)
    with pytest.raises(RuntimeError, match="call reset first"):
        vector.step(actions)
    assert vector.reset(seed=5)[0].shape == (3, 16, 16, 3)


def test_a_vector_of_a_run_is_so_many_environments_of_it(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    settings: dict[str, Any] = {"causality": BlockCausality(1, 3), "split": "validation"}
    vector, env = (
        WorldModelVectorEnv.from_run(*run, 2, **settings),
        WorldModelEnv.from_run(*run, **settings),
    )
    actions = np.float32([[1, 0.5], [-1, 0]])
    seen = vector.reset(seed=3)[0], vector.step(actions)[0]
    for world in range(2):
        alone = env.reset(seed=3 + world)[0], env.step(actions[world])[0]
        for one, other in zip(seen, alone, strict=True):
            assert np.abs(one[world].astype(int) - other).max() <= 1
    assert not np.array_equal(seen[0][0], seen[0][1])


def test_a_vector_has_the_spaces_of_its_worlds() -> None:
    module, starts = parts(schema=MIXED)
    vector = WorldModelVectorEnv(module, starts, 2, max_steps=4)
    with pytest.raises(RuntimeError, match="call reset first"):
        vector.step(vector.action_space.sample())
    observation, infos = vector.reset(seed=[3, None])
    assert vector.observation_space.contains(observation) and observation.shape == (2, 16, 16, 3)
    assert infos["start"].shape == (2,)
    observation, *_ = vector.step(vector.action_space.sample())
    frames = vector.render()
    assert frames is not None and np.array_equal(np.stack(frames), observation)


def test_a_vector_without_worlds_shows_nothing() -> None:
    vector = WorldModelVectorEnv(*parts(), 2)
    with pytest.raises(RuntimeError, match="call reset first"):
        vector.render()
    vector.reset(seed=1)
    vector.close_extras()
    with pytest.raises(RuntimeError, match="call reset first"):
        vector.render()


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([1, 2], "expected a seed, or one for each of the 3 worlds, got 2"),
        ((1, 2, 3, 4), "for each of the 3 worlds, got 4"),
        (np.arange(2), "for each of the 3 worlds, got 2"),
        ([1, 2, -1], "non-negative"),
    ],
)
def test_seeds_that_do_not_fit_change_nothing(seeds: Any, message: str) -> None:
    module, starts = parts()
    vector, twin = (WorldModelVectorEnv(module, starts, 3) for _ in range(2))
    for each in (vector, twin):
        each.reset(seed=5)
    with pytest.raises(ValueError, match=message):
        vector.reset(seed=seeds)
    actions = np.zeros((3, 2), np.float32)
    assert np.array_equal(vector.step(actions)[0], twin.step(actions)[0])
    assert np.array_equal(vector.reset()[1]["start"], twin.reset()[1]["start"]), "the generators are as they were"


def test_seeds_may_be_an_array() -> None:
    vector = WorldModelVectorEnv(*parts(), 3)
    starts = [vector.reset(seed=seed)[1]["start"].tolist() for seed in (np.array([4, 5, 6]), [4, 5, 6], 4, np.int64(4))]
    assert starts == [starts[0]] * 4


@pytest.mark.parametrize("count", [2, 4])
def test_there_is_an_action_for_each_world(count: int) -> None:
    plain, mixed = (WorldModelVectorEnv(*parts(schema=schema), 3, max_steps=4) for schema in (ActionSchema(), MIXED))
    message = f"expected an action for each of the 3 worlds, got the shape .{count}, 2"
    plain.reset(seed=1)
    with pytest.raises(ValueError, match=message):
        plain.step(np.zeros((count, 2), np.float32))
    mixed.reset(seed=1)
    with pytest.raises(ValueError, match=message):
        mixed.step({"key": np.zeros(3, np.int64), "stick": np.zeros((count, 2), np.float32)})

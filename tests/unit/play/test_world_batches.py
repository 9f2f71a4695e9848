"""What worlds have in common; tests/unit/play/test_world_model_env.py steps them as gymnasium does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.generation.world_session import WorldSession
from lightning_action.generator.causality import BlockCausality
from lightning_action.play.world_batches import Rules, WorldBatches, draw_start
from tests.support.sprite_module import ready

WINDOW = BlockCausality(1, 4, 1)
KEYS = ActionSchema([ActionPart("key", "discrete", 5)])
MODULE, BATCH = ready(causality=WINDOW, schema=KEYS)
STARTS = (BATCH["video"][:, :1] * 0.5 + 0.5).clamp(0, 1)


def worlds(rules: Rules | None = None, **settings: Any) -> WorldBatches:
    return WorldBatches(MODULE, STARTS, rules or Rules(), **settings)


def test_rules_are_numbers_in_their_ranges() -> None:
    for wrong in ({"max_steps": 0}, {"max_steps": 1.5}, {"fps": 0}, {"fps": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Rules(**wrong)  # type: ignore[arg-type]
    assert Rules(max_steps=1, fps=0.5).holds_action


def test_an_action_is_a_row_that_is_held_or_all_rows_of_a_block() -> None:
    held, whole = worlds(Rules(fps=10)), worlds(Rules(holds_action=False))
    assert (held.num_rows, whole.num_rows, held.frame_shape, held.schema) == (None, 4, (16, 16, 3), KEYS)
    assert held.steps_per_second == 2, "blocks of 4 frames, 10 frames a second: 2.5, rounded to even"
    with held.begin([0, 1], [7, 8]).session as session:
        assert held.rows_of([3, 1], session).tolist() == [[[3]] * 4, [[1]] * 4]
        assert whole.rows_of([[0, 1, 2, 3], [4, 4, 4, 4]], session)[0].tolist() == [[0], [1], [2], [3]]
        with pytest.raises(ValueError, match="takes whole numbers from 0 to 4, got values from 1 to 5"):
            held.rows_of([5, 1], session)
        with pytest.raises(ValueError, match="expected an action of 4 x 1 values"):
            whole.rows_of([0, 1], session)


def test_worlds_begin_at_their_starts() -> None:
    batch = worlds().begin([3, 0], [7, 8])
    assert batch.frames.dtype == np.uint8 and batch.frames.shape == (2, 1, 16, 16, 3) and batch.worlds == [0]
    other = worlds().begin([1, 2], [7, 8])
    assert np.array_equal(batch.frames, other.frames), "two starts: number i is row i modulo 2"
    assert not np.array_equal(batch.frames[0], batch.frames[1])
    longer = WorldBatches(MODULE, (BATCH["video"][:, :5] + 1) / 2, Rules()).begin([0], [7])
    assert longer.frames.shape == (1, 1, 16, 16, 3), "the last of the frames that it begins with"
    for each in (batch, other, longer):
        each.session.close()


def test_blocks_are_alike_where_an_action_has_all_their_rows() -> None:
    with pytest.raises(ValueError, match="the first block takes 4 action rows and later ones 8: hold one action for"):
        worlds(Rules(holds_action=False), causality=BlockCausality(2, 5))
    assert worlds(causality=BlockCausality(2, 5)).steps_per_second == 2


def test_without_a_window_the_last_step_bounds_a_world() -> None:
    with pytest.raises(ValueError, match="max_latents"):
        worlds(causality=BlockCausality(1))
    bounded = worlds(Rules(max_steps=2), causality=BlockCausality(1))
    with bounded.begin([0], [0]).session as session:
        for _ in range(2):
            session.step_block(torch.zeros(1, 4, 1))
        with pytest.raises(ValueError, match="3"):
            session.step_block(torch.zeros(1, 4, 1))


def test_what_opens_sessions_takes_no_settings() -> None:
    opened: list[int] = []

    def open_session(num_worlds: int) -> WorldSession:
        opened.append(num_worlds)
        return MODULE.open_session(num_worlds)

    WorldBatches(open_session, STARTS, Rules(), sampling=None).begin([0, 1], [7, 8]).session.close()
    assert opened == [1, 2]
    with pytest.raises(ValueError, match="sampling are for a module: give them to what opens sessions"):
        WorldBatches(open_session, STARTS, Rules(), sampling=MODULE.sampling)


def test_a_step_is_judged_by_the_rules() -> None:
    frames, rows = np.full((4, 16, 16, 3), 6, np.uint8), np.ones((4, 1), np.float32)

    def reward(seen: np.ndarray, rows: np.ndarray, info: dict[str, Any]) -> int:
        return int(seen.max() * rows.sum() + info["step"])

    judged = worlds(Rules(reward, lambda seen, info: np.bool_(info["start"] == 9), max_steps=3))
    last, value, ends, is_long, info = judged.judge(frames, rows, 2, 9)
    assert (value, ends, is_long) == (26.0, True, False) and type(value) is float and type(ends) is bool
    assert info.keys() == {"frames", "start", "step"} and last.shape == (16, 16, 3)
    last[:], info["frames"][:] = 0, 0
    assert frames.min() == 6, "whoever gets frames may write into them"
    assert judged.judge(frames, rows, 3, 8)[2:4] == (False, True)
    assert worlds().judge(frames, rows, 10**6, 0)[1:4] == (0.0, False, False)


def test_starts_are_drawn_or_chosen() -> None:
    start, sample = draw_start(np.random.default_rng(3), None)
    assert 0 not in (start, sample)
    assert (start, sample) == draw_start(np.random.default_rng(3), {}) != draw_start(np.random.default_rng(4), None)
    assert draw_start(np.random.default_rng(3), {"start": 5}) == (5, sample)

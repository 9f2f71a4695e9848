from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.distillation.going_rollout import GoingRollout
from lightning_action.generation.batch_generator import RolloutStart

SCHEMA = ActionSchema([ActionPart("stick", size=3)], "transition", temporal_compression_ratio=4)
START = RolloutStart(torch.zeros(2, 4, 9), torch.zeros(2, 2, 5, 3, 6), (7, 5, 3, 6))
ACTION, HAS_ACTION = torch.arange(2 * 24 * 3.0).view(2, 24, 3), torch.tensor([True, False])


def going(**changes: Any) -> GoingRollout:
    settings: dict[str, Any] = {
        "session": None,
        "start": START,
        "last": torch.ones(2, 2, 5, 3, 6),
        "action": ACTION,
        "has_action": HAS_ACTION,
        "num_chunks": 1,
        "num_updates": 0,
    }
    return GoingRollout(**{**settings, **changes})


def test_a_batch_of_the_same_kind_fits() -> None:
    other_prompts = START._replace(text=torch.ones(2, 8, 9), initial=None)
    assert going().fits(other_prompts, {"action": -ACTION, "has_action": HAS_ACTION.clone()})
    assert going(action=None, has_action=None).fits(START, {"action": None})


@pytest.mark.parametrize(
    ("start", "batch"),
    [
        (START._replace(text=torch.zeros(3, 4, 9)), {"action": ACTION, "has_action": HAS_ACTION}),
        (START._replace(shape=(6, 5, 3, 6)), {"action": ACTION, "has_action": HAS_ACTION}),
        (START, {"action": ACTION[:, :20], "has_action": HAS_ACTION}),
        (START, {"action": None, "has_action": HAS_ACTION}),
        (START, {"action": ACTION, "has_action": ~HAS_ACTION}),
        (START, {"action": ACTION}),
    ],
    ids=["clips", "length", "rows", "no actions", "other samples act", "all samples act"],
)
def test_another_batch_does_not(start: RolloutStart, batch: dict[str, Any]) -> None:
    assert not going().fits(start, batch)


def test_the_next_chunk_begins_with_the_last_latents_and_their_rows() -> None:
    """Two latent frames are given, which take the rows of one step: 4, the last ones of the batch before."""
    batch = {"action": -ACTION, "has_action": HAS_ACTION}
    start, after = going().next(START._replace(text=torch.ones(2, 8, 9)), batch, SCHEMA)
    assert start.initial is not None and start.initial.all() and start.text.all() and start.shape == START.shape
    assert torch.equal(after["action"], torch.cat([ACTION[:, 20:], -ACTION[:, 4:]], dim=1))
    assert after["has_action"] is HAS_ACTION and torch.equal(batch["action"], -ACTION)


@pytest.mark.parametrize("changes", [{"action": None}, {"last": torch.ones(2, 1, 5, 3, 6)}])
def test_rows_stay_where_none_came_before_or_none_is_given(changes: dict[str, Any]) -> None:
    """A single latent frame has no row, for `transition` begins after it."""
    batch = {"action": -ACTION}
    assert going(**changes).next(START, batch, SCHEMA)[1] is batch

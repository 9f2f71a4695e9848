"""What a run writes beside weights is what it reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.checkpoints.run_format import RunEntries

SCHEMA = ActionSchema([ActionPart("stick", size=3)], "state", "concat")


@pytest.mark.parametrize(
    "entries",
    [
        RunEntries(SCHEMA, {"num_heads": "4", "preconditioned": "True"}, 2.5),
        RunEntries(SCHEMA, {"num_heads": "4"}, 2.5, {"mean": torch.arange(3.0)}, 6.0, 7),
    ],
)
def test_what_is_written_is_read(entries: RunEntries) -> None:
    checkpoint: dict[str, Any] = {"state_dict": {}}
    entries.write(checkpoint)
    assert RunEntries.read(checkpoint) == entries and checkpoint["state_dict"] == {}


def test_early_checkpoints_lack_what_came_later() -> None:
    early = {"action_schema": SCHEMA.to_dict(), "fit_seconds": 1.0}
    assert RunEntries.read(early) == RunEntries(SCHEMA, {}, 1.0)
    for key in early:
        with pytest.raises(ValueError, match="not written by ActionVideoModule"):
            RunEntries.read({name: value for name, value in early.items() if name != key})

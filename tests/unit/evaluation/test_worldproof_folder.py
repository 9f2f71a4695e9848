"""The folder format of worldproof 0.1, read back by its description."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_action.action.schema import ActionSchema, Alignment
from lightning_action.evaluation.worldproof_folder import RolloutFacts, actions_by_frame, write_rollout
from tests.support.worldproof_reader import read_rollout

FACTS = RolloutFacts("000007", "runs/demo/last.ckpt", 5, 16.0, 0.25)


def test_what_is_written_is_what_was_given(tmp_path: Path) -> None:
    context, truth = (torch.randint(0, 256, (count, 3, 6, 5), dtype=torch.uint8) for count in (2, 4))
    predictions = torch.randint(0, 256, (3, 4, 3, 6, 5), dtype=torch.uint8)
    action = torch.arange(8.0).reshape(4, 2)
    write_rollout(tmp_path / "a", FACTS, action, context, predictions, truth)
    rollout = read_rollout(tmp_path / "a")
    np.testing.assert_array_equal(rollout.context, context.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(rollout.predictions, predictions.permute(0, 1, 3, 4, 2).numpy())
    np.testing.assert_array_equal(rollout.ground_truth, truth.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(rollout.actions, action.numpy())
    told = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert (told["context_id"], told["model_id"], told["seed"]) == ("000007", "runs/demo/last.ckpt", 5)
    write_rollout(tmp_path / "b", FACTS, action, context, predictions, None)
    assert read_rollout(tmp_path / "b").ground_truth is None and not (tmp_path / "b" / "ground_truth").exists()


@pytest.mark.parametrize(
    ("alignment", "rows_per_frame", "num_rows", "expected"),
    [
        # 4 latent frames of 2 pixel frames, 7 in all, of which the first 3 (2 latent frames) are given.
        ("transition", 1, 6, [2, 3, 4, 5]),
        ("state", 1, 7, [3, 4, 5, 6]),
        ("per_latent", 1, 4, [2, 2, 3, 3]),
        ("transition", 3, 18, [[6, 7, 8], [9, 10, 11], [12, 13, 14], [15, 16, 17]]),
        ("state", 3, 19, [[7, 8, 9], [10, 11, 12], [13, 14, 15], [16, 17, 18]]),
    ],
)
def test_each_predicted_frame_has_its_action(
    alignment: Alignment, rows_per_frame: int, num_rows: int, expected: list[object]
) -> None:
    schema = ActionSchema(alignment=alignment, temporal_compression_ratio=2, rows_per_frame=rows_per_frame)
    action = torch.arange(float(num_rows))[:, None].expand(-1, 2)
    found = actions_by_frame(schema, action, 2)
    assert found[..., 0].tolist() == expected and found.shape[-1] == 2

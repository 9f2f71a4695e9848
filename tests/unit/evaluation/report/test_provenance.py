"""Fingerprints of test data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld
from lightning_action.evaluation.report.provenance import data_fingerprint, versions
from tests.support import sprite_module


def of(**changes: Any) -> str:
    return data_fingerprint(next(iter(sprite_module.data(**changes).test_dataloader())))


def test_the_same_data_has_the_same_fingerprint_in_batches_of_any_size() -> None:
    assert of() == of(eval_batch_size=2) == of(eval_batch_size=6)


def test_other_data_has_another_one() -> None:
    world = MovingSpriteWorld(image_size=16, sprite_radius=2.5)
    smaller = SpriteDataModule(world, num_latents=sprite_module.LATENTS, test_size=6).test_dataloader()
    assert len({of(), of(seed=1), of(num_latents=4), data_fingerprint(next(iter(smaller)))}) == 4


def test_what_a_batch_has_besides_tensors_counts() -> None:
    batch = {"sample_id": torch.tensor([0]), "prompt": ["a disc"], "video": None, "fps": 16.0, "rows": np.ones(1)}
    assert data_fingerprint(batch) != data_fingerprint({**batch, "prompt": ["a square"]})
    assert data_fingerprint(batch) != data_fingerprint({**batch, "fps": 8.0})


def test_versions_are_those_of_what_runs() -> None:
    assert versions()["torch"] == torch.__version__
    assert versions().keys() == {"lightning_action", "torch", "lightning", "python", "device"}

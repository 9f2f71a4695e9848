"""`docs/measure_drift.py`, by a model that is right, one that stands still, and a small one that knows nothing."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action import BlockCausality, MovingSpriteWorld, Sampling, SpriteDataModule
from tests.support.sprite_module import data, ready

WINDOW, BLOCKS = BlockCausality(1, 4, 1), 6


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "docs" / "measure_drift.py"
    specification = importlib.util.spec_from_file_location("measure_drift", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Simulated:
    """A session, and what opens it, that shows what the simulator does under a multiple of the actions."""

    def __init__(self, source: SpriteDataModule, scale: float) -> None:
        assert isinstance(source.world, MovingSpriteWorld)
        self.world, self.scale = source.world, scale
        self.start = self.world.start(source.dataset("test").seeds(range(2)))
        self.rows = torch.zeros(2, 0, 2)

    def open_session(self, num_worlds: int, **settings: Any) -> Simulated:
        assert num_worlds == 2 and settings["causality"] == WINDOW
        return self

    def __enter__(self) -> Simulated:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def reset(self, frames: Tensor, prompts: list[str]) -> None:
        assert frames.shape == (2, 1, 3, 16, 16) and len(prompts) == 2

    def step_block(self, rows: Tensor) -> Tensor:
        self.rows = torch.cat([self.rows, self.scale * rows], dim=1)
        return (self.world.render(self.start, self.world.simulate(self.start, self.rows)[:, -4:]) + 1) / 2


def test_who_does_what_is_commanded_gains_one_and_who_stands_still_none(script: ModuleType) -> None:
    found = {}
    for scale in (1.0, 0.0):
        figures = script.drift(Simulated(data(), scale), data(), WINDOW, Sampling(), 2, BLOCKS)
        assert figures.shape == (BLOCKS, 5)
        found[scale] = script.average(figures, range(1, BLOCKS))
    there, gain, distance, psnr = found[1.0]
    assert there == 1 and gain == pytest.approx(1, abs=0.1) and distance < 0.5 and psnr > 60
    there, gain, distance, psnr = found[0.0]
    assert there == 1 and gain == pytest.approx(0, abs=0.05) and distance > 1 and psnr < 25


def test_a_model_is_stepped_beside_its_simulator(script: ModuleType) -> None:
    figures = script.drift(ready()[0], data(), WINDOW, Sampling(num_inference_steps=1), 3, 5)
    assert figures.shape == (5, 5) and bool(figures.isfinite().all())
    assert script.average(figures, range(5))[3] < 30


def test_parts_are_averaged_over_their_blocks(script: ModuleType) -> None:
    figures = torch.tensor([[9.0] * 5, [0.5, 1.0, 4.0, 1.0, 0.04], [1.0, 2.0, 2.0, 2.0, 0.04]])
    there, gain, distance, psnr = script.average(figures, range(1, 3))
    assert (there, gain, distance) == (0.75, 0.5, 2.0) and psnr == pytest.approx(-10 * math.log10(0.01))

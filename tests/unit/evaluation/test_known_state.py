from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.data.environment import EnvironmentDataModule
from lightning_action.data.recorded import RecordedDataModule
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.evaluation.known_state import (
    CheckedSimulator,
    Simulator,
    StateReader,
    position_reader,
    simulator,
)


class Reads:
    def read_positions(self, video: Tensor, batch: dict[str, Any], split: str) -> tuple[Tensor, Tensor]:
        return video, torch.tensor([batch["number"], len(split)])


class Plays:
    def simulate(self, batch: dict[str, Any], split: str) -> tuple[Tensor, Tensor]:
        return torch.tensor([-1.0, 0.0, batch["number"]]), torch.tensor(len(split))


class PlaysSometimes(Plays):
    def can_simulate(self, split: str) -> bool:
        return split == "test"


def test_positions_are_read_off_a_split_where_somebody_can() -> None:
    reader = position_reader(Reads(), "validation")
    assert reader is not None
    video, told = reader(torch.tensor([0.0, 0.5, 1.0]), {"number": 7})
    assert video.tolist() == [-1, 0, 1] and told.tolist() == [7, 10]
    assert position_reader(Plays(), "test") is None and position_reader(None, "test") is None


def test_actions_are_played_where_somebody_can() -> None:
    play = simulator(Plays(), "validation")
    assert play is not None
    video, told = play({"number": 0.5})
    assert video.tolist() == [0, 0.5, 0.75] and told.item() == 10
    assert simulator(Reads(), "test") is None
    assert simulator(PlaysSometimes(), "test") is not None and simulator(PlaysSometimes(), "train") is None


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        (SpriteDataModule, {StateReader, Simulator}),
        (RecordedDataModule, {StateReader}),
        (EnvironmentDataModule, {StateReader, Simulator, CheckedSimulator}),
    ],
)
def test_what_our_data_knows(kind: type, known: set[type]) -> None:
    assert {protocol for protocol in (StateReader, Simulator, CheckedSimulator) if issubclass(kind, protocol)} == known

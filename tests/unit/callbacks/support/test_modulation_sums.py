"""ModulationSums against numbers that can be seen to be right."""

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_action.callbacks.support.modulation_sums import SLOTS, ModulationSums, figures

D = 4


def summed(*modulations: tuple[Tensor, Tensor | None], num_layers: int = 0) -> dict[str, float]:
    sums = ModulationSums(num_layers, max_frames=5, device=torch.device("cpu"))
    for modulation, actions in modulations:
        sums.add_modulation(modulation, actions)
    return figures(sums.reduce()[0], sums.per_layer)


def modulation_of(*frames: float) -> Tensor:
    """`[1, F, 6, D]`, whose slot i of frame f holds (i + 1) times the number of the frame."""
    slots = torch.arange(1.0, 7.0)[:, None].expand(6, D)
    return torch.stack([value * slots for value in frames])[None]


ALL_SLOTS = math.sqrt(D * sum(number**2 for number in range(1, 7)))


def test_slots_and_frames() -> None:
    shown = summed((modulation_of(1.0, 0.0, 3.0), None))
    # The mean over frames that have a modulation, 1 and 3.
    assert shown["modulation_norm/all"] == pytest.approx(2 * ALL_SLOTS)
    assert [shown[f"modulation_norm/{slot}"] for slot in SLOTS] == pytest.approx([4.0, 8.0, 12.0, 16.0, 20.0, 24.0])
    by_frame = {name[-2:]: value for name, value in shown.items() if "by_frame" in name}
    assert by_frame == pytest.approx({"00": ALL_SLOTS, "02": 3 * ALL_SLOTS})
    assert shown["null_share"] == pytest.approx(1 / 3)


def test_batches_of_other_lengths_add_up() -> None:
    shown = summed((modulation_of(1.0, 1.0), None), (modulation_of(4.0, 4.0, 4.0, 4.0), None))
    assert shown["modulation_norm/all"] == pytest.approx((2 * 1 + 4 * 4) / 6 * ALL_SLOTS)
    assert shown["modulation_norm_by_frame/frame_00"] == pytest.approx(2.5 * ALL_SLOTS)
    assert shown["modulation_norm_by_frame/frame_03"] == pytest.approx(4 * ALL_SLOTS)


def test_layers_and_tables() -> None:
    sums = ModulationSums(2, max_frames=5, device=torch.device("cpu"))
    layers = torch.stack([modulation_of(1.0, 3.0), modulation_of(2.0, 6.0)], dim=2)
    sums.add_modulation(layers, None)
    sums.add_time(torch.full((1, 2, 6 * D), 0.5))
    sums.set_tables([nn.Parameter(torch.full((1, 6, D), value)) for value in (1.0, 0.0)])
    shown = figures(sums.reduce()[0], sums.per_layer)
    time, table = 0.5 * math.sqrt(6 * D), math.sqrt(6 * D)
    assert shown["modulation_to_time/layer_00"] == pytest.approx(2 * ALL_SLOTS / time)
    assert shown["modulation_to_time/layer_01"] == pytest.approx(4 * ALL_SLOTS / time)
    assert shown["modulation_to_time/all"] == pytest.approx(3 * ALL_SLOTS / time)
    assert shown["modulation_to_table/layer_00"] == pytest.approx(2 * ALL_SLOTS / table)
    # A table of zeros is nothing to divide by.
    assert "modulation_to_table/layer_01" not in shown
    ones = math.sqrt(6 * D)
    assert shown["modulation_to_base/all"] == pytest.approx(3 * ALL_SLOTS / (ones + time + table / 2))


def test_variation_is_between_frames_with_different_actions() -> None:
    frames = modulation_of(1.0, 1.0, 3.0, 0.0, 5.0)
    same = torch.tensor([[[0.0], [1.0], [1.0], [2.0], [3.0]]])
    # Frames 0 and 1 differ in the action alone; 1 and 2 have one action; what touches frame 3 is not compared.
    assert summed((frames, same))["modulation_variation"] == 0
    other = torch.tensor([[[0.0], [1.0], [2.0], [2.0], [3.0]]])
    assert summed((frames, other))["modulation_variation"] == pytest.approx(math.sqrt((0 + 4) / (2 + 10)))
    assert "modulation_variation" not in summed((frames, torch.zeros(1, 5, 1)))
    assert "modulation_variation" not in summed((frames, None))


def test_unrelated_frames_vary_by_one() -> None:
    frames = torch.randn(50, 5, 6, D)
    assert summed((frames, torch.randn(50, 5, 2)))["modulation_variation"] == pytest.approx(1.0, abs=0.05)


def test_nothing_at_all() -> None:
    shown = summed()
    assert shown["modulation_norm/all"] == 0 and "null_share" not in shown


def test_what_is_not_a_number_is_shown_as_such() -> None:
    assert math.isnan(summed((modulation_of(1.0, float("nan")), None))["modulation_norm/gate_sa"])


def test_the_sample_is_bounded() -> None:
    sums = ModulationSums(0, max_frames=5, device=torch.device("cpu"))
    sums.add_modulation(torch.randn(3, 50, 6, 500), None)
    assert 30_000 < len(sums.reduce()[1]) <= 65_536

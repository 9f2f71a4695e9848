"""Samples to look at a model with, and looking without a trace."""

from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn

from lightning_action.batch import other_actions as other_actions_of_a_batch
from lightning_action.callbacks.support.probing import (
    check_action_width,
    format_row,
    generate,
    leaving_no_trace,
    other_actions,
    require_method,
    take_sample,
    take_samples,
    with_actions,
)

B, ROWS, COLUMNS = 3, 5, 2


def batch() -> dict[str, Any]:
    return {
        "action": torch.randn(B, ROWS, COLUMNS),
        "prompt": ["a", "b", "c"],
        "sample_id": torch.tensor([7, 8, 9]),
        "fps": 8,
        "dt": torch.tensor(0.5),
    }


def test_samples_are_copies_of_what_belongs_to_them() -> None:
    whole = batch()
    some = take_samples(whole, slice(1, 3), "Someone")
    assert torch.equal(some["action"], whole["action"][1:]) and some["prompt"] == ["b", "c"]
    assert (some["sample_id"].tolist(), some["fps"], some["dt"].item()) == ([8, 9], 8, 0.5)
    assert some["action"].untyped_storage().nbytes() == 2 * ROWS * COLUMNS * 4
    assert take_sample(whole, 1, "Someone")["prompt"] == ["b"]
    assert take_sample(whole, 99, "Someone")["prompt"] == ["c"]


def test_samples_are_those_with_an_action() -> None:
    """The rows that fill a batch for the others mean nothing."""
    some = {**batch(), "has_action": torch.tensor([True, False, True])}
    assert take_samples(some, slice(2), "Someone")["prompt"] == ["a", "c"]
    last = take_sample(some, 99, "Someone")
    assert last["prompt"] == ["c"] and last["has_action"].tolist() == [True]
    nobody = take_sample({**some, "has_action": torch.zeros(B, dtype=torch.bool)}, 1, "Someone")
    assert nobody["prompt"] == ["b"] and "has_action" not in with_actions(nobody, torch.randn(2, ROWS, COLUMNS))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([1, 2], "Someone needs batches that are dicts .* got list"),
        ({"action": torch.zeros(2, 3)}, r"got \['action'\]"),
        ({"action": None}, r"got \['action'\]"),
    ],
)
def test_what_is_no_batch_is_refused(wrong: Any, message: str) -> None:
    for take in (lambda: take_samples(wrong, slice(1), "Someone"), lambda: take_sample(wrong, 0, "Someone")):
        with pytest.raises(MisconfigurationException, match=message):
            take()


def test_a_sample_is_repeated_for_every_action() -> None:
    one = take_sample(batch(), 1, "Someone")
    actions = torch.randn(4, ROWS, COLUMNS, dtype=torch.float64)
    many = with_actions(one, actions)
    assert torch.equal(many["action"], actions.float())
    assert (many["prompt"], many["sample_id"].tolist(), many["fps"]) == (["b"] * 4, [8] * 4, 8)


@pytest.mark.parametrize(
    ("value", "cut", "repeated"),
    [
        (None, None, None),
        (8, 8, 8),
        ("abc", "abc", "abc"),
        (torch.tensor(0.5), torch.tensor(0.5), torch.tensor(0.5)),
        (torch.arange(4), torch.arange(4), torch.arange(4)),
        (("front", "top"), ("front", "top"), ("front", "top")),
        ([[1], [2], [3]], [[2]], [[2], [2]]),
        ({"task": ["a", "b", "c"], "fps": 30}, {"task": ["b"], "fps": 30}, {"task": ["b", "b"], "fps": 30}),
        (np.arange(3), np.array([1]), np.array([1, 1])),
        (object, object, object),
    ],
)
def test_other_entries_of_a_batch_are_cut_where_they_are_of_samples(value: Any, cut: Any, repeated: Any) -> None:
    one = take_sample({**batch(), "extra": value}, 1, "Someone")
    assert_same(one["extra"], cut)
    many = with_actions(one, torch.randn(2, ROWS, COLUMNS))
    assert_same(many["extra"], repeated)


def assert_same(value: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        torch.testing.assert_close(value, expected)
    else:
        np.testing.assert_equal(value, expected)


@pytest.mark.parametrize("count", [3, 1])
def test_other_actions_are_those_of_the_sample_before_as_in_the_package(count: int) -> None:
    action = torch.arange(6.0).reshape(3, 2, 1)[:count]
    assert torch.equal(other_actions(action), action[[2, 0, 1]] if count == 3 else action.flip(1))
    assert torch.equal(other_actions(action), other_actions_of_a_batch({"action": action})["action"])


class Changing(nn.Module):
    """Changes with every pass in train mode, and takes part in the global randomness in both."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 3))
        self.parts[1].eval()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.parts(x) + torch.rand(1)
        return y


@pytest.mark.parametrize("fails", [False, True])
def test_no_trace_is_left(fails: bool) -> None:
    module = Changing()
    modes = [part.training for part in module.modules()]
    state = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.get_rng_state()
    try:
        with leaving_no_trace(module):
            assert not any(part.training for part in module.modules())
            assert not module(torch.randn(4, 3)).requires_grad
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert fails or torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


class Generator(LightningModule):
    def generate(self, batch: dict[str, Any]) -> Tensor:
        return torch.zeros(2, 5, 3, 4, 4)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(MisconfigurationException, match=r"Someone needs a method fly\(\), and BoringModel has none"):
        require_method(BoringModel(), "Someone", "fly()")
    require_method(BoringModel(), "Someone", "forward()")
    with pytest.raises(MisconfigurationException, match=r"Someone\(actions=...\) has rows of 1 columns"):
        check_action_width("Someone", torch.zeros(1, ROWS, COLUMNS), torch.zeros(4, 1))
    with pytest.raises(MisconfigurationException, match="whole numbers"):
        check_action_width("Someone", torch.zeros(1, ROWS, 1, dtype=torch.int64), torch.full((4, 1), 0.5))
    check_action_width("Someone", torch.zeros(1, ROWS, 1, dtype=torch.int64), torch.ones(4, 1))
    with pytest.raises(MisconfigurationException, match=r"return 3 videos \[B, T, 3, H, W\], got \(2, 5, 3, 4, 4\)"):
        generate(Generator(), {}, 3, "Someone")
    assert generate(Generator(), {}, 2, "Someone").shape == (2, 5, 3, 4, 4)


def test_rows_are_shown_short() -> None:
    assert format_row([1.0, -0.5]) == "(1, -0.5)"
    assert format_row([0.0] * 9) == "(0, 0, 0, 0, ...)"
    assert format_row([-0.0, 2.0]) == "(0, 2)"

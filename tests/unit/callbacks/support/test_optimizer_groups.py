from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import SGD, AdamW

from lightning_action.callbacks.support.optimizer_groups import BackboneGroup, calls_hooks, materialize_state
from tests.support.all_optimizers import LEFT_ALONE, OPTIMIZERS
from tests.support.foreign_optimizers import WithoutHooks


class TwoParts(nn.Module):
    """What the optimizers are made for."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        self.head = nn.Linear(3, 1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_that_sharded_parameters_need(name: str) -> None:
    optimizer = OPTIMIZERS[name](TwoParts())
    if name in LEFT_ALONE:
        with pytest.raises(MisconfigurationException, match=f"cannot prepare the state of {type(optimizer).__name__}"):
            materialize_state(optimizer, must_have_state=True)
        return
    materialize_state(optimizer, must_have_state=True)
    assert name == "counts" or len(optimizer.state) == 6
    assert all("count" not in group for group in optimizer.param_groups)


def test_what_is_there_already_is_kept_and_what_never_trains_has_none() -> None:
    first, second, frozen = (nn.Parameter(torch.tensor([value])) for value in (1.0, 2.0, 3.0))
    frozen.requires_grad_(False)
    optimizer = AdamW([first, second, frozen], lr=0.5)
    optimizer.state[first] = {"step": torch.tensor(7.0)}
    materialize_state(optimizer, must_have_state=True)
    assert optimizer.state[first] == {"step": torch.tensor(7.0)} and frozen not in optimizer.state
    assert {name: float(value) for name, value in optimizer.state[second].items()} == {
        "step": 0,
        "exp_avg": 0,
        "exp_avg_sq": 0,
    }
    assert (first.item(), second.item(), second.grad, optimizer.param_groups[0]["lr"]) == (1, 2, None, 0.5)


def test_what_cannot_be_prepared_is_left_alone_where_it_need_not_be() -> None:
    optimizer = WithoutHooks(AdamW([nn.Parameter(torch.ones(2))]))
    materialize_state(optimizer, must_have_state=False)
    assert not optimizer.state


def test_another_learning_rate_holds_during_a_step_alone() -> None:
    head, backbone = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))
    optimizer = SGD([{"params": [head]}, {"params": [backbone]}], lr=0.25)
    group = BackboneGroup(optimizer, 1)
    assert group.options is optimizer.param_groups[1]
    group.replace_learning_rate(lambda options: 2 * options["lr"])
    for expected in (0.5, 0.0):
        head.grad = backbone.grad = torch.tensor(1.0)
        optimizer.step()
        assert (backbone.item(), [each["lr"] for each in optimizer.param_groups]) == (expected, [0.25, 0.25])
    group.restore_learning_rate()
    optimizer.step()
    assert (head.item(), backbone.item()) == (0.25, -0.25)


def test_a_step_that_fails_leaves_no_other_learning_rate() -> None:
    optimizer = SGD([nn.Parameter(torch.tensor(1.0))], lr=0.25)
    group = BackboneGroup(optimizer, 0)
    group.replace_learning_rate(lambda options: 3.0)

    def fail() -> float:
        assert group.options["lr"] == 3
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(fail)
    group.restore_learning_rate()
    assert group.options["lr"] == 0.25


def test_an_optimizer_without_hooks_keeps_its_learning_rate() -> None:
    optimizer = WithoutHooks(AdamW([nn.Parameter(torch.ones(2))]))
    assert not calls_hooks(optimizer) and calls_hooks(optimizer.inner)
    with pytest.raises(
        MisconfigurationException, match="WithoutHooks calls no hooks .* leave out warmup_steps and lea"
    ):
        BackboneGroup(optimizer, 0).replace_learning_rate(lambda options: 1.0)

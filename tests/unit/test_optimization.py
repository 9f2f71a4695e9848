"""Settings turn into groups of parameters and learning rates."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lightning_action.optimization import JointOptimization, Optimization


def alone(settings: Optimization) -> JointOptimization:
    return JointOptimization({"": settings})


def test_what_trains_has_a_group_with_its_learning_rate() -> None:
    action, backbone = ([nn.Parameter(torch.zeros(size))] for size in (2, 3))
    settings = Optimization(action_learning_rate=0.3, backbone_learning_rate=0.2, warmup_steps=4, betas=(0.5, 0.6))
    optimizer, scheduler = alone(settings).build({"action": action, "backbone": backbone}, lambda: math.inf)
    groups = {group["name"]: (group["initial_lr"], group["params"], group["betas"]) for group in optimizer.param_groups}
    assert groups == {"action": (0.3, action, (0.5, 0.6)), "backbone": (0.2, backbone, (0.5, 0.6))}
    assert scheduler.get_last_lr() == pytest.approx([0.3 / 4, 0.2 / 4])


def test_settings_are_put_back_where_a_checkpoint_had_others() -> None:
    parameters = {"action": [nn.Parameter(torch.zeros(2))], "backbone": [nn.Parameter(torch.zeros(3))]}
    before = Optimization(action_learning_rate=0.3, backbone_learning_rate=0.2, warmup_steps=4)
    after = Optimization(action_learning_rate=0.3, backbone_learning_rate=0.1, warmup_steps=8, betas=(0.5, 0.6))
    optimizer, scheduler = alone(before).build(parameters, lambda: math.inf)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    state = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    assert alone(before).put_back(optimizer, scheduler) == []
    assert (optimizer.state_dict(), scheduler.state_dict()) == state
    told = alone(after).put_back(optimizer, scheduler)
    assert told == [
        "betas of action (0.5, 0.6) (before: (0.9, 0.99))",
        "learning rate of backbone 0.1 (before: 0.2)",
        "betas of backbone (0.5, 0.6) (before: (0.9, 0.99))",
    ]
    # The schedule is that which the optimizer was built with.
    assert [group["lr"] for group in optimizer.param_groups] == [0.3 * 0.75, 0.1 * 0.75]


def test_the_learning_rate_rises_stays_and_falls() -> None:
    settings = Optimization(warmup_steps=4, decay_fraction=0.5)
    factors = [settings.learning_rate_factor(step, 20) for step in range(22)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:11] == [1.0] * 7
    assert factors[11:20] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert factors[20:] == [0.0, 0.0]


def test_without_an_end_nothing_falls() -> None:
    for decay_fraction in (0.0, 0.3):
        settings = Optimization(warmup_steps=2, decay_fraction=decay_fraction)
        factors = [settings.learning_rate_factor(step, math.inf) for step in (0, 1, 10**6)]
        assert factors == [0.5, 1.0, 1.0]


def test_without_decay_the_rate_stays_to_the_end() -> None:
    assert Optimization(warmup_steps=1, decay_fraction=0.0).learning_rate_factor(99, 100) == 1


def test_without_warmup_the_first_step_is_whole() -> None:
    assert Optimization(warmup_steps=0).learning_rate_factor(0, 100) == 1


def test_a_run_shorter_than_its_warmup_rises_and_falls_at_once() -> None:
    settings = Optimization(warmup_steps=10, decay_fraction=1.0)
    factors = [settings.learning_rate_factor(step, 5) for step in range(5)]
    assert factors == pytest.approx([0.1 * 1.0, 0.2 * 0.8, 0.3 * 0.6, 0.4 * 0.4, 0.5 * 0.2])


def test_a_fused_step_is_the_same_to_rounding() -> None:
    weights = []
    for fused in (False, True):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(5, 7))
        optimizer, _ = alone(Optimization()).build({"action": [parameter]}, lambda: math.inf, fused)
        for _ in range(3):
            optimizer.zero_grad()
            parameter.square().sum().backward()
            optimizer.step()
        weights.append(parameter.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-7)


# The schedule of a network that has no gradient yet goes on.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step\\(\\)` before")
def test_two_networks_in_one_train_as_in_one_each() -> None:
    """Whichever of them have a gradient: moments, weight decay and steps of the other stay, to the bit."""
    student = Optimization(backbone_learning_rate=0.02, betas=(0.0, 0.999), warmup_steps=3, weight_decay=0.1)
    critic = Optimization(backbone_learning_rate=0.3, betas=(0.5, 0.9), warmup_steps=0)
    together = JointOptimization({"": student, "critic_": critic})
    weights = [[nn.Parameter(torch.arange(size).float()) for size in (2, 3)] for _ in range(2)]
    one, schedule = together.build({"backbone": weights[0][:1], "critic_backbone": weights[0][1:]}, lambda: 20)
    apart = [alone(s).build({"backbone": [w]}, lambda: 20) for s, w in zip((student, critic), weights[1], strict=True)]
    random = torch.Generator().manual_seed(0)
    for step in range(12):
        trains = (step % 5 == 4, True)
        gradients = [torch.randn(size, generator=random) for size in (2, 3)]
        for parameters in weights:
            for parameter, gradient, has in zip(parameters, gradients, trains, strict=True):
                parameter.grad = gradient if has else None
        one.step()
        schedule.step()
        for (optimizer, its_schedule), trains_now in zip(apart, trains, strict=True):
            if trains_now:
                optimizer.step()
            its_schedule.step()
    assert all(torch.equal(mine, other) for mine, other in zip(*weights, strict=True))
    assert not torch.equal(weights[0][0], torch.arange(2).float())
    steps = [float(one.state[parameter]["step"]) for parameter in weights[0]]
    assert steps == [2, 12]
    assert [group["betas"] for group in one.param_groups] == [(0.0, 0.999), (0.5, 0.9)]

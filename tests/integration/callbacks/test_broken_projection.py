"""A projection that is broken on purpose, in our module: the warning that comes first has the right name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

from lightning_action import ActionModulationProjection
from lightning_action.callbacks import ActionModulationMonitor, ActionModulationWarning
from tests.support.short_fits import quiet_trainer
from tests.support.small_demo import build_projection, small_data, small_demo

STEPS = 16


class Detached(ActionModulationProjection):
    """Its modulation acts, and nothing comes back."""

    def forward(self, action: Tensor, present: Tensor | None = None) -> Tensor:
        return super().forward(action, present).detach()


def detached(action_dim: int, dim: int) -> ActionModulationProjection:
    return Detached(action_dim, dim, hidden_dim=20, zero_init=False)


def detached_at_zero(action_dim: int, dim: int) -> ActionModulationProjection:
    return Detached(action_dim, dim, hidden_dim=20)


def frozen(action_dim: int, dim: int) -> ActionModulationProjection:
    return build_projection(action_dim, dim).requires_grad_(False)


def exploding(action_dim: int, dim: int) -> ActionModulationProjection:
    return ActionModulationProjection(action_dim, dim, hidden_dim=20, action_modulation_scale=1e5)


def deaf(action_dim: int, dim: int) -> ActionModulationProjection:
    """Its modulation is the same whatever the action is."""
    projection = ActionModulationProjection(action_dim, dim, hidden_dim=20)
    nn.init.zeros_(projection.action_embedding[0].weight)
    projection.action_embedding.requires_grad_(False)
    return projection


@pytest.mark.parametrize(
    ("projection", "expected"),
    [
        (build_projection, None),
        (detached, "detached projection"),
        (detached_at_zero, "detached projection"),
        (frozen, "frozen projection"),
        (exploding, "exploded modulation"),
        (deaf, "saturated modulation"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_first_warning_names_the_fault(
    projection: Callable[[int, int], ActionModulationProjection], expected: str | None, tmp_path: Path
) -> None:
    monitor = ActionModulationMonitor(every_n_steps=2, warn_after_steps=8)
    trainer = quiet_trainer(tmp_path, monitor, max_steps=STEPS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(small_demo(projection, learning_rate=0.01), small_data())
    said = [str(warning.message) for warning in caught if issubclass(warning.category, ActionModulationWarning)]
    assert [message.partition(":")[0] for message in said[:1]] == ([expected] if expected else [])
    assert all("`action_projection`" in message for message in said)

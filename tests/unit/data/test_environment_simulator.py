"""An environment that is played again from a sample's own episode says what other actions show."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_action import EnvironmentDataModule
from lightning_action.batch import Batch, other_actions, to_unit_range
from lightning_action.evaluation.known_state import CheckedSimulator, Simulate, position_reader, simulator
from lightning_action.evaluation.metrics.loss_gap import OTHER_ACTIONS
from lightning_action.evaluation.obedience import ObedienceTest
from lightning_action.losses import Loss
from tests.support.dot_world import RADIUS, DotWorld, locate

WORLDS = "tests.support.dot_world"
POSITION = f"{WORLDS}:place_of"
NO_REPLAY = "does not show the same again from the same seed and actions"
ROOM = torch.tensor([48.0, 32.0]) - RADIUS


def data(**changes: Any) -> EnvironmentDataModule:
    """13 pixel frames, of 5 latent frames at ratio 3."""
    sizes = {"num_latents": 5, "temporal_compression_ratio": 3, "test_size": 6, "eval_batch_size": 6}
    return EnvironmentDataModule(**{"env": f"{WORLDS}:DotWorld", "locator": locate, **sizes, **changes})


def batch_of(module: EnvironmentDataModule) -> Batch:
    batch: Batch = next(iter(module.test_dataloader()))
    return batch


def simulate_of(module: EnvironmentDataModule) -> Simulate:
    found = simulator(module, "test")
    assert found is not None
    return found


def frames(places: Tensor) -> Tensor:
    """What the environment shows where the dot is at `[T, 2]`."""
    env, shown = DotWorld(), []
    for place in places:
        env.place = place.double().numpy()
        shown.append(torch.from_numpy(env.render()).permute(2, 0, 1) / 255)
    return torch.stack(shown)


def measured(module: EnvironmentDataModule, generate: Callable[[Batch], Tensor]) -> ObedienceTest:
    """The test of a model whose losses tell nothing, and that takes zeros for no actions."""

    def video(batch: Batch, scale: float | None, draw: int) -> Tensor:
        zeros = torch.zeros(len(batch["sample_id"]), 12, 2)
        return generate(batch if batch["action"] is not None else {**batch, "action": zeros})

    test = ObedienceTest(
        video,
        lambda batch: to_unit_range(batch["video"]),
        module.action_schema,
        num_initial_latents=1,
        read_positions=position_reader(module, "test"),
        simulate=simulator(module, "test"),
    )
    for batch in module.test_dataloader():
        ones = torch.ones(len(batch["sample_id"]), 5)
        losses = dict.fromkeys(("true", *OTHER_ACTIONS), Loss(ones.mean(dim=1), ones, 500 * ones))
        truth = test.add_model(batch, losses)
        test.add_baselines(batch, losses, truth)
    test.add_probes(batch_of(module))
    return test


@pytest.mark.parametrize(
    "changes",
    [
        {"position": POSITION},
        {"position": POSITION, "frame_size": (16, 36)},
        {"policy": f"{WORLDS}:anywhere"},
        {"policy": f"{WORLDS}:Alternating", "env_kwargs": {"end_right_of": 24.0}},
        *({"env_kwargs": {"actions": kind}} for kind in ("discrete", "multi_discrete", "multi_binary")),
        {"num_workers": 2, "position": POSITION},
    ],
)
def test_own_actions_give_the_own_video(changes: dict[str, Any]) -> None:
    module = data(**changes)
    batch = batch_of(module)
    assert batch["action"].unique().numel() > 1
    video, positions = simulate_of(module)(batch)
    assert torch.equal(video, to_unit_range(batch["video"])) and torch.equal(positions, batch["position"])
    # In any order, and after others.
    few: Batch = {"sample_id": torch.tensor([4, 0, 4]), "action": batch["action"][[4, 0, 4]]}
    assert torch.equal(simulate_of(module)(few)[0], to_unit_range(batch["video"][[4, 0, 4]]))


def test_other_actions_give_what_the_environment_shows() -> None:
    module = data(position=POSITION)
    batch = batch_of(module)
    other = other_actions(batch)
    video, positions = simulate_of(module)(other)
    own = to_unit_range(batch["video"])
    assert torch.equal(video[:, 0], own[:, 0]) and not torch.equal(video, own)
    moved = positions[:, :-1] + other["action"]
    torch.testing.assert_close(positions[:, 1:], moved.clamp(min=torch.tensor(float(RADIUS)), max=ROOM))
    for each, places in zip(video, positions, strict=True):
        # The place is known in float32 alone, so a value that lies between two may be rounded to either.
        torch.testing.assert_close(each, frames(places), atol=1.01 / 255, rtol=0)


def test_an_end_is_held() -> None:
    """An action to the right leaves the allowed half at once or late; what it did there is seen, and stays."""
    module = data(position=POSITION, env_kwargs={"end_right_of": 24.0})
    batch = batch_of(module)
    right = torch.tensor([2.0, 0.25]).expand_as(batch["action"])
    video, positions = simulate_of(module)({**batch, "action": right})
    ends = (positions[..., 0] > 24).long().argmax(dim=1)
    assert len(ends.unique()) > 1 and ends.min() > 0 and ends.max() < 12
    for each, places, end in zip(video, positions, ends.tolist(), strict=True):
        assert bool((each[end:] == each[end]).all()) and bool((places[end:] == places[end]).all())
        steps = torch.arange(end + 1)[:, None] * torch.tensor([2.0, 0.25])
        torch.testing.assert_close(places[: end + 1], (places[0] + steps).clamp(max=ROOM))
        torch.testing.assert_close(each, frames(places), atol=1.01 / 255, rtol=0)


@pytest.mark.parametrize("world", ["RestlessDotWorld", "RememberingDotWorld"])
def test_an_environment_that_does_not_play_the_same_again_is_no_simulator(world: str) -> None:
    module = data(env=f"{WORLDS}:{world}")
    assert isinstance(module, CheckedSimulator)
    with pytest.warns(UserWarning, match=f"{WORLDS}:{world} {NO_REPLAY}.* let reset"):
        assert simulator(module, "validation") is None
    # Once is enough.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert simulator(module, "test") is None


def test_all_ranks_simulate_or_none() -> None:
    alone = data()
    alone.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    assert alone.can_simulate("test")
    # What the strategy says of another rank that saw a difference.
    beside_another = data()
    strategy = SimpleNamespace(reduce_boolean_decision=lambda is_same: False)
    beside_another.trainer = SimpleNamespace(strategy=strategy)  # type: ignore[assignment]
    with pytest.warns(UserWarning, match=NO_REPLAY):
        assert not beside_another.can_simulate("test")


def test_pixels_are_exact_where_nobody_knows_positions() -> None:
    module = data(locator=None)
    batch = batch_of(module)
    video, positions = simulate_of(module)(batch)
    assert torch.equal(video, to_unit_range(batch["video"]))
    assert positions.shape == (6, 13, 2) and bool(positions.isnan().all())
    figures = measured(module, lambda batch: simulate_of(module)(batch)[0]).compute("model")
    assert figures["counterfactual_ratio"] == pytest.approx(0, abs=1e-4) and "gain_x" not in figures


@pytest.mark.usefixtures("few_draws")
def test_the_environment_itself_obeys() -> None:
    module = data(position=POSITION, test_size=12, eval_batch_size=8)
    report = measured(module, lambda batch: simulate_of(module)(batch)[0]).report()
    assert report["counterfactual_ratio"] == pytest.approx(0, abs=1e-4) and report["true_difference"] > 0.001
    assert report["cross_swap_accuracy"] == 1 and report["held_drift_px"] < 0.1
    assert report["verdict"]["label"] == "obeys", report["verdict"]["reasons"]


@pytest.mark.usefixtures("few_draws")
def test_a_model_that_stands_still_does_not() -> None:
    module = data(position=POSITION, test_size=12, eval_batch_size=8)
    report = measured(module, lambda batch: to_unit_range(batch["video"][:, :1].expand_as(batch["video"]))).report()
    assert report["counterfactual_ratio"] == pytest.approx(1) and report["verdict"]["label"] != "obeys"

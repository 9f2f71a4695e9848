"""EMA on two processes: replicated (DDP) and sharded (FSDP2) parameters, and their checkpoints on one."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint

from lightning_action.callbacks import EMA
from tests.integration.callbacks import ema_script
from tests.integration.callbacks.ema_script import STRATEGIES, Model, Watcher, equal, weights
from tests.support.forked_processes import facts_of
from tests.support.short_fits import quiet_trainer
from tests.support.someones_dit import moving_spots

pytestmark = pytest.mark.distributed

# By strategy, what each rank saw.
Facts = dict[str, list[dict[str, Any]]]


class Seen(NamedTuple):
    folder: Path
    by_two: Facts
    by_one: Facts


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What two processes saw and left behind, and what one made of their checkpoints: launched once for all tests."""
    folder = tmp_path_factory.mktemp("ema")
    return Seen(folder, facts_of(ema_script.main, folder, processes=2), facts_of(ema_script.main, folder, processes=1))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_average_is_what_the_formula_says_on_every_rank(seen: Seen, strategy: str) -> None:
    for facts in seen.by_two[strategy]:
        assert facts["differs_from_by_hand"] < 1e-6
        assert facts["differs_from_trained"] > 1e-3
        assert facts["trains_as_without"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resumed_fit_equals_uninterrupted_fit(seen: Seen, strategy: str) -> None:
    assert [facts["resumed"] for facts in seen.by_two[strategy]] == [{"0": True, "1": True}] * 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prediction_uses_the_average_on_any_number_of_ranks(seen: Seen, strategy: str) -> None:
    for facts in (*seen.by_two[strategy], *seen.by_one[strategy]):
        assert facts["predicts_with_average"]
        assert facts["leaves_trained"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_average_as_one_does(seen: Seen, strategy: str) -> None:
    (facts,) = seen.by_one[strategy]
    assert facts["differs_from_one_process"] < 1e-6


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prediction_without_distributed_training(seen: Seen, strategy: str, tmp_path: Path) -> None:
    checkpoint = seen.folder / strategy / "epoch=2.ckpt"
    if strategy.endswith("_sharded"):
        # As `python -m lightning.fabric.utilities.consolidate_checkpoint` does.
        torch.save(_load_distributed_checkpoint(checkpoint), tmp_path / "one_file.ckpt")
        checkpoint = tmp_path / "one_file.ckpt"
    watcher, model = Watcher(), Model()
    trainer = quiet_trainer(tmp_path, EMA(), watcher)
    trainer.predict(model, moving_spots(), ckpt_path=checkpoint, return_predictions=False)
    expected = torch.load(seen.folder / strategy / "seen.pt", weights_only=True)
    assert equal(watcher.evaluated[0], expected["average"])
    assert equal(weights(model), expected["trained"])

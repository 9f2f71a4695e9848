"""The callbacks that log statistics, on two processes (DDP, FSDP2) against one with the same global batch."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.callbacks import statistics_script
from tests.support.forked_processes import facts_of

pytestmark = pytest.mark.distributed

STRATEGIES = pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
PER_LAYER = pytest.mark.parametrize("per_layer", [False, True])
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script saw: one launch for all tests, because starting the processes takes longer than the fits."""
    return facts_of(statistics_script.main, tmp_path_factory.mktemp("statistics"))


@PER_LAYER
@STRATEGIES
def test_figures_are_those_of_one_process(
    facts: dict[str, Any], tmp_path: Path, strategy: str, per_layer: bool
) -> None:
    watching = statistics_script.callbacks()
    alone = statistics_script.fit(tmp_path, statistics_script.build_module(per_layer), watching)
    together = facts[f"{strategy} {per_layer}"]
    assert together["shown"].keys() == alone.keys()
    for tag, values in alone.items():
        seen = {int(step): value for step, value in together["shown"][tag].items()}
        assert seen.keys() == values.keys(), tag
        if not tag.startswith("throughput/"):
            assert seen == pytest.approx(values, rel=TOLERANCE), tag
    # Shares of both ranks, in a checkpoint, that add up to what one process has.
    pending = watching[2].state_dict()["training"]
    assert sum(pending[1]) == statistics_script.GLOBAL_BATCH * 2 * 3
    for mine, share in zip(pending, together["pending"]["training"], strict=True):
        assert [2 * value for value in share] == pytest.approx(mine, rel=TOLERANCE)


@STRATEGIES
def test_something_of_every_callback_was_compared(facts: dict[str, Any], strategy: str) -> None:
    tags = facts[f"{strategy} True"]["shown"]
    assert {tag.split("/")[0] for tag in tags} >= {"action", "grad", "loss", "throughput"}
    assert {"loss/noise_level/0250-0500", "loss/noise_level_validation/0250-0500"} <= tags.keys()
    assert {"action/modulation_to_time/layer_01", "action/projection_grad_norm"} <= tags.keys()
    assert {"grad/cosine/transformer.layers.01", "grad/update_to_weight/action", "grad/clipped_norm/all"} <= tags.keys()


@STRATEGIES
def test_all_ranks_stop_where_a_gradient_is_not_finite_on_one(facts: dict[str, Any], strategy: str) -> None:
    one, other = facts[strategy]["stopped"]
    assert one == other
    assert one.startswith("GradientStatistics: step 2 ")
    assert "`transformer.layers.1.mix.0` (8 of 64 values of `transformer.layers.1.mix.0.weight`)" in one


def test_sharded_and_replicated_gradients_add_up(facts: dict[str, Any]) -> None:
    assert facts["mixed"] == pytest.approx(12 + 6 + 1 + 5, rel=TOLERANCE)

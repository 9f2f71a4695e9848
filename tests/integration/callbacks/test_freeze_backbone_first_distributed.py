"""FreezeBackboneFirst on two processes: replicated (DDP) and sharded (FSDP2) parameters, with gloo on the CPU."""

from typing import Any

import pytest

from tests.integration.callbacks import freeze_backbone_first_script
from tests.support.forked_processes import facts_of

pytestmark = pytest.mark.distributed

REPLICATED = ["ddp_step", "ddp_plateau"]
SHARDED = ["fsdp2_sharded_step", "fsdp2_sharded_plateau", "fsdp2_full_step", "fsdp2_full_plateau"]
WITH_LORA = ["ddp_lora_plateau", "fsdp2_sharded_lora_step", "fsdp2_full_lora_plateau"]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script saw: one launch for all tests, because starting the processes takes longer than the fits."""
    return facts_of(freeze_backbone_first_script.main, tmp_path_factory.mktemp("freeze_backbone_first"))


@pytest.mark.parametrize("scenario", REPLICATED + SHARDED)
def test_backbone_moves_from_the_switch_on_and_all_ranks_agree(facts: dict[str, Any], scenario: str) -> None:
    assert facts[scenario]["first_step"] == {"backbone": 6}
    assert facts[scenario]["ranks_agree"]


@pytest.mark.parametrize("scenario", WITH_LORA)
def test_lora_moves_a_phase_earlier(facts: dict[str, Any], scenario: str) -> None:
    # A plateau of the backbone's own needs two validations after LoRA has begun to train.
    expected = 6 if scenario.endswith("step") else 9
    assert facts[scenario]["first_step"] == {"lora": 3, "backbone": expected}
    assert facts[scenario]["ranks_agree"]


@pytest.mark.parametrize("scenario", REPLICATED + SHARDED + WITH_LORA)
def test_resumed_fit_equals_uninterrupted_fit(facts: dict[str, Any], scenario: str) -> None:
    # After epoch 0 the backbone is frozen, after epoch 1 it is about to train, after epoch 2 it is in its warm-up.
    assert facts[scenario]["resumed"] == {"0": True, "1": True, "2": True}


@pytest.mark.parametrize("scenario", ["ddp_step", "fsdp2_sharded_step", "fsdp2_full_step"])
def test_another_switch_gives_other_weights(facts: dict[str, Any], scenario: str) -> None:
    assert not facts[scenario]["equal_with_another_switch"]


def test_gradients_are_summed_in_the_dtype_of_the_policy(facts: dict[str, Any]) -> None:
    assert facts["gradient_summed_in_float32"] == (1 + 2**-10) / 2
    assert facts["gradient_summed_in_bfloat16"] == 0.5, "the control: bfloat16 would lose the smaller one"


@pytest.mark.parametrize("reason", ["refused_without_find_unused_parameters", "refused_with_static_graph"])
def test_ddp_that_waits_for_frozen_parameters_is_refused(facts: dict[str, Any], reason: str) -> None:
    assert facts[reason].startswith("MisconfigurationException: ")
    assert "ddp_find_unused_parameters_true" in facts[reason]

from __future__ import annotations

from collections.abc import Callable

import pytest

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.action.schema import ActionPart
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.generation.sampling import Sampling
from lightning_action.optimization import Optimization
from tests.support.small_generator import small_generator
from tests.support.small_module import small_module

NAN, INF = float("nan"), float("inf")


def project(**sizes: object) -> ActionModulationProjection:
    return ActionModulationProjection(2, 6, **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "name", "bad", "good"),
    [
        (Sampling, "num_inference_steps", [0, -1, 1.5, True], [1, 9]),
        (Sampling, "num_initial_latents", [-1, 0.5], [0, 3]),
        (Sampling, "seed", [-1, 2**63], [0, 2**63 - 1]),
        (Sampling, "action_guidance_scale", [NAN, INF], [-1.0, 0, 3.5]),
        (Sampling, "denoising_step_list", [[], [1000, 0], [500, 700], [700, 700], [1001], [NAN]], [[1000, 500.5, 1]]),
        (Optimization, "action_learning_rate", [-1e-3, NAN, INF], [0, 1e-3]),
        (Optimization, "lora_learning_rate", [-1e-3, NAN], [0.0]),
        (Optimization, "weight_decay", [-0.1, NAN], [0]),
        (Optimization, "warmup_steps", [-1, 2.5], [0, 7]),
        (Optimization, "decay_fraction", [-0.1, 1.1, NAN], [0, 1]),
        (Optimization, "betas", [(0.9, 1.0), (-0.1, 0.9), (0.9,), (NAN, 0.9)], [(0.0, 0.99)]),
        (FlowMatchSchedule, "shift", [0, -1.0, NAN, INF], [1, 5.0]),
        (ActionPart, "low", [NAN, -INF, 1 - 1e-12, 2.0], [0.5]),
        (small_generator, "ffn_dim", [0, -4], [3]),
        (small_generator, "freq_dim", [0, 7], [8]),
        (small_generator, "num_heads", [0], [1]),
        (small_generator, "num_layers", [0], [1]),
        (small_generator, "patch_size", [(1, 0, 2), (1, 2)], [(1, 1, 2)]),
        (small_module, "seed", [-1, 2**63, 0.5, True], [0, 2**63 - 1]),
        (small_module, "action_dropout_prob", [-0.1, 1.1, NAN, True], [0, 1.0]),
        (project, "hidden_dim", [0, -1], [5]),
        (project, "num_layers", [0], [3]),
        (project, "action_modulation_scale", [NAN, INF], [0.0]),
    ],
)
def test_numbers_are_refused_where_they_are_given(
    build: Callable[..., object], name: str, bad: list[object], good: list[object]
) -> None:
    for value in good:
        build(**{name: value})
    for value in bad:
        with pytest.raises(ValueError, match="got"):
            build(**{name: value})

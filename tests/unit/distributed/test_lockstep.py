"""What a single process shows; that ranks wait for each other is shown in tests/integration/test_sharding.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.distributed.lockstep import Lockstep, idle_pass
from lightning_action.generation.rollout import rollout
from lightning_action.generation.sampling import BlockContext, Sampling
from lightning_action.generator.causality import BlockCausality
from tests.support.small_generator import small_generator
from tests.support.small_rollout import EULER, FEW, SHAPE, session


@pytest.mark.parametrize("num_initial", [0, 2, 3, 4, 7])
@pytest.mark.parametrize("sampler", [FEW, EULER], ids=["few", "euler"])
@pytest.mark.parametrize("context", ["clean", "last_step"])
@torch.no_grad()
def test_passes_are_counted_before_they_are_made(num_initial: int, sampler: Any, context: BlockContext) -> None:
    generator, causality = small_generator(), BlockCausality(3, independent_first_frame=True)
    passes: list[Tensor] = []
    generator.patch_embedding.register_forward_hook(lambda module, arguments, output: passes.append(output))
    run = session(generator, torch.randn(2, 6, 9), causality, 7, sampler, context=context)
    list(rollout(run, 7, None, torch.randn(2, num_initial, *SHAPE)))
    sampling = Sampling(num_inference_steps=3 if sampler is FEW else 4, context=context)
    assert len(passes) == sampling.count_passes(causality.split(7), num_initial)


@pytest.mark.parametrize("changes", [{}, {"image_dim": 8, "in_dim": 9}, {"image_dim": 8, "num_image_positions": 4}])
def test_an_idle_pass_goes_through_every_layer(changes: dict[str, int]) -> None:
    generator = small_generator(**changes)
    seen: list[int] = []
    for index, layer in enumerate(generator.blocks):
        layer.register_forward_hook(lambda module, arguments, output, index=index: seen.append(index))
    idle_pass(generator, torch.float32)
    assert seen == [0, 1]


def test_without_sharding_nobody_is_waited_for() -> None:
    lockstep = Lockstep(small_generator(), torch.float32)
    assert not lockstep.begin(5)
    lockstep.end()
    lockstep.wait_for_others()

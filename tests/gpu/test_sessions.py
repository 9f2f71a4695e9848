"""A session on a CUDA device, against the rollout that knows all actions beforehand, in bfloat16."""

from __future__ import annotations

import pytest
import torch

from lightning_action import BlockCausality, Sampling
from lightning_action.generator.acceleration import Acceleration
from tests.support.sprite_module import ready

CUDA = torch.device("cuda")


@pytest.mark.parametrize("captures", [False, True])
def test_a_session_is_the_rollout_and_its_forks_go_on(captures: bool) -> None:
    """Behind a window whose sink has relative positions."""
    module, batch = ready(
        causality=BlockCausality(1, 4, 1),
        sampling=Sampling(num_inference_steps=2, relative_positions=True),
        acceleration=Acceleration(capture_pass=captures),
    )
    module.to(CUDA, torch.bfloat16)
    rows = torch.rand(2, 40, 2, generator=torch.Generator().manual_seed(3))
    # Zero and one, of which both ranges hold the bits.
    start = (batch["video"][:, :1] > 0).float()
    whole = module.generate({**batch, "video": start * 2 - 1, "action": rows})
    session = module.open_session(2)
    first = session.reset(start, batch["prompt"], sample_id=batch["sample_id"])
    before = [session.step_block(block) for block in rows[:, :24].split(4, dim=1)]
    fork = session.fork()
    forked, mine, other = [], [], []
    for block in rows[:, 24:].split(4, dim=1):
        forked.append(fork.step_block(block))
        mine.append(session.step_block(block))
    with session.fork() as futures:
        other = futures.step_block(-rows[:, :4])
    assert first.device.type == CUDA.type and session.latent_frames == 11
    assert torch.equal(torch.cat([first, *before, *mine], dim=1), whole)
    # Forks make plain passes, which round otherwise than captured ones.
    torch.testing.assert_close(torch.cat(forked, dim=1), torch.cat(mine, dim=1), atol=0.1 * captures, rtol=0)
    assert (other - mine[-1]).abs().max() > 0.1

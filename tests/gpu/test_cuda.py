from __future__ import annotations

from functools import partial

import torch

from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import frame_noise
from lightning_action.diffusion.samplers import few_step
from lightning_action.generator.attention import attend_flex, attend_masked, frame_mask
from lightning_action.generator.blocks import BlockCausality, teacher_forcing
from lightning_action.rollout import CausalRollout, rollout
from tests.helpers import small_generator, small_inputs


def test_flex_attention_agrees_with_the_mask() -> None:
    plan = teacher_forcing(6, BlockCausality(3, 6, 1))
    grads = []
    for attend in (attend_flex, attend_masked):
        torch.manual_seed(0)
        tokens = frame_mask(plan).shape[0] * 24
        inputs = [torch.randn(2, tokens, 2, 32, device="cuda", requires_grad=True) for _ in range(3)]
        out = attend(*inputs, plan, 24)
        out.square().sum().backward()
        grads.append([out, *(x.grad for x in inputs)])
    torch.testing.assert_close(grads[0], grads[1], atol=2e-3, rtol=2e-3)


@torch.no_grad()
def test_rollout_is_that_of_the_cpu() -> None:
    generator, x = small_generator(), small_inputs(9)
    causality = BlockCausality(3, 6, 3)
    sampler = partial(few_step, timesteps=(1000.0, 500.0), schedule=FlowMatchSchedule(5.0))
    videos = []
    for device in ("cpu", "cuda"):
        noise = frame_noise(0, (3, 8), (5, 4, 3), device)
        session = CausalRollout(generator.to(device), x["text"].to(device), causality, sampler, noise, (5, 4, 3), 9)
        videos.append(torch.cat(list(rollout(session, 9, x["modulation"].to(device))), dim=1).cpu())
    torch.testing.assert_close(videos[0], videos[1], atol=1e-3, rtol=0)

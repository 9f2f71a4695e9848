"""All ways are measured, and take the less the less they keep; the plain one is the same video."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks import distillation_memory
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import frame_noise
from lightning_action.distillation.self_rollout import SelfRollouts
from lightning_action.generation.sampling import Sampling
from lightning_action.generation.video import VideoGenerator
from lightning_action.generator.causality import BlockCausality
from tests.support.small_generator import small_generator, small_inputs


def test_ours_takes_less_than_the_plain_way(tmp_path: Path) -> None:
    distillation_memory.main(["--tiny", "--json", str(tmp_path / "memory.json")])
    figures = json.loads((tmp_path / "memory.json").read_text())
    assert figures.keys() == {"plain_mb", "beside_cache_mb", "ours_mb", "ours_to_plain"}
    assert 0 < figures["ours_mb"] < figures["beside_cache_mb"] < figures["plain_mb"]


def test_the_plain_way_makes_the_same_video_with_gradient_to_the_past() -> None:
    generator, schedule, causality = small_generator(), FlowMatchSchedule(5.0), BlockCausality(3, 12, 3)
    text, shape = small_inputs(6)["text"], (5, 4, 3)
    rollouts = SelfRollouts(VideoGenerator(generator, causality, Sampling(), schedule), (1000.0, 750.0))
    clip = rollouts.make(rollouts.begin(text, frame_noise(0, [0, 1], shape), (6, *shape)), 6, 1)
    video = distillation_memory.grown_with_cache(generator, clip, causality, text)
    torch.testing.assert_close(video, clip.clean, atol=2e-5, rtol=0)
    ours = clip.with_gradient(generator, text, schedule, None)
    weight = generator.blocks[0].self_attn.k.weight
    mine, its = (torch.autograd.grad(each[:, 3:].sum(), weight)[0] for each in (ours, video))
    assert (mine - its).abs().max() > 1e-3 * its.abs().max()

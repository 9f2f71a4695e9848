"""Scores see actions, prompts and the past as they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.diffusion.guidance import Guidance
from lightning_action.distillation.score import (
    LatentClip,
    Noised,
    ScoreNetwork,
    Sight,
    denoising_loss,
    frames_that_count,
    groups_of,
    with_noise,
)
from lightning_action.generator.causality import BlockCausality
from tests.support.small_generator import fill, small_generator, small_inputs

CAUSALITY = BlockCausality(2)
SCHEMA = ActionSchema([ActionPart("stick", size=3)], "transition", "concat")
# Six latent frames have 20 transitions between 21 pixel frames.
ROWS = 20


def network(sight: Sight, takes_actions: bool = True) -> ScoreNetwork:
    projection = ActionModulationProjection(SCHEMA.action_dim, 36, 10, num_layers=2)
    fill(projection, 5)
    return ScoreNetwork(small_generator(), projection if takes_actions else None, SCHEMA, sight).eval()


def clip_of(**changes: Any) -> tuple[LatentClip, Noised]:
    inputs, random = small_inputs(6), torch.Generator().manual_seed(8)
    batch = {"action": torch.rand(2, ROWS, 3, generator=random), "sample_id": torch.arange(2)}
    clip = LatentClip(inputs["clean"], inputs["text"], batch, CAUSALITY)._replace(**changes)
    return clip, with_noise(clip, inputs["timestep"], inputs["noisy"])


def other_action(clip: LatentClip) -> LatentClip:
    return clip._replace(batch={**clip.batch, "action": -clip.batch["action"]})


@pytest.mark.parametrize("sight", ["causal", "bidirectional"])
def test_actions_are_seen_unless_they_are_hidden(sight: Sight) -> None:
    clip, noised = clip_of()
    seeing, blind = network(sight), network(sight, takes_actions=False)
    assert (seeing.clean(clip, noised) - seeing.clean(other_action(clip), noised)).abs().max() > 0.01
    hidden = seeing.clean(clip, noised, takes_action=False)
    assert torch.equal(hidden, seeing.clean(other_action(clip), noised, takes_action=False))
    assert torch.equal(hidden, blind.clean(clip, noised)) and torch.equal(
        hidden, blind.clean(other_action(clip), noised)
    )


def test_a_causal_score_sees_the_clean_past_and_no_future() -> None:
    clip, noised = clip_of()
    later, earlier = clip.clean.clone(), clip.clean.clone()
    later[:, 4:] += 1
    earlier[:, :2] += 1
    score = network("causal")
    found, after, before = (score.clean(clip._replace(clean=clean), noised) for clean in (clip.clean, later, earlier))
    assert torch.equal(found, after)
    assert torch.equal(found[:, :2], before[:, :2]) and (found - before)[:, 2:].abs().amax((0, 2, 3, 4)).min() > 1e-3


def test_a_bidirectional_score_sees_all_of_the_noisy_clip_alone() -> None:
    clip, noised = clip_of()
    score = network("bidirectional")
    found = score.clean(clip, noised)
    assert torch.equal(found, score.clean(clip._replace(clean=clip.clean + 1), noised))
    latents = noised.latents.clone()
    latents[:, 5] += 1
    changed = score.clean(clip, noised._replace(latents=latents))
    assert (found - changed)[:, :2].abs().amax((0, 2, 3, 4)).min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("sight", ["causal", "bidirectional"])
def test_guidance_is_in_the_convention_of_sampling(sight: Sight) -> None:
    clip, noised = clip_of(negative_text=torch.zeros(2, 6, 9))
    score = network(sight)
    own, null = score.velocity(clip, noised), score.velocity(clip, noised, takes_action=False)
    negative = score.velocity(clip, noised, takes_prompt=False)
    guided = score.guided_velocity(clip, noised, Guidance(prompt_scale=3.0, action_scale=1.5))
    torch.testing.assert_close(guided, own + 2 * (own - negative) + 0.5 * (own - null))
    assert min(float((own - other).abs().max()) for other in (null, negative)) > 1e-3
    sigma = noised.timestep[:, :, None, None, None] / 1000
    torch.testing.assert_close(score.clean(clip, noised), noised.latents - sigma * own)
    with pytest.raises(ValueError, match="guidance by prompts needs negative_text"):
        score.guided_velocity(clip._replace(negative_text=None), noised, Guidance(prompt_scale=3.0))


def test_given_frames_stay_clean_and_do_not_count() -> None:
    clip, noised = clip_of(num_initial_latents=3)
    assert torch.equal(noised.latents[:, :3], clip.clean[:, :3]) and not noised.timestep[:, :3].any()
    assert (noised.latents[:, 3:] - clip.clean[:, 3:]).abs().amax((2, 3, 4)).min() > 1e-3
    counts = frames_that_count(clip)
    assert counts.tolist() == [False] * 3 + [True] * 3
    velocity = noised.noise - clip.clean
    off: Tensor = velocity.clone()
    off[:, :3] += 5
    assert denoising_loss(off, clip, noised) == 0
    off[:, 3:] += 2
    assert denoising_loss(off, clip, noised) == pytest.approx(4)


def test_frames_that_share_a_level() -> None:
    clip, _ = clip_of()
    assert groups_of("bidirectional", clip) == [range(6)]
    assert groups_of("causal", clip) == [range(0, 2), range(2, 4), range(4, 6)]

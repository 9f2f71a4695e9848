"""Losses of our module's batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_action.generation.sampling import Sampling
from lightning_action.generator import causality
from lightning_action.generator.estimates import training_flops
from lightning_action.losses import Encoded, Loss
from lightning_action.module.action_video_module import ActionVideoModule
from tests.support.sprite_module import LATENTS, data, ready


def training_loss(
    module: ActionVideoModule, batch: dict[str, Any], epoch: int = 0, batch_idx: int = 0, dropout: float = 0.0
) -> Loss:
    return module.losses.of_training(encoded(module, batch), epoch, batch_idx, dropout)


def encoded(module: ActionVideoModule, batch: dict[str, Any]) -> Encoded:
    latents = module.frozen.encode_video(batch["video"])
    return Encoded(batch, latents, module.frozen.encode_text(batch["prompt"]))


def test_noise_and_dropout_of_a_sample_do_not_depend_on_its_batch() -> None:
    module, both = ready()
    together = training_loss(module, both, 3, 5, 0.5)
    for index, sample in enumerate([0, 4]):
        alone = training_loss(module, data().dataset("test").batch([sample]), 3, 5, 0.5)
        assert torch.equal(alone.timestep[0], together.timestep[index])
        torch.testing.assert_close(alone.per_frame[0], together.per_frame[index])
    for epoch, batch_idx in ((4, 5), (3, 6)):
        assert not torch.equal(together.timestep, training_loss(module, both, epoch, batch_idx, 0.5).timestep)


@pytest.mark.parametrize("weighting", ["bell", "uniform"])
def test_a_loss_tells_where_it_comes_from(weighting: str) -> None:
    module, batch = ready(loss_weighting=weighting)
    loss = training_loss(module, batch)
    assert loss.per_frame.shape == loss.timestep.shape == (2, LATENTS) and loss.per_sample.shape == (2,)
    assert loss.per_sample.requires_grad and not loss.per_frame.requires_grad
    schedule = module.schedule
    weight = schedule.weights[schedule.nearest(loss.timestep)] if weighting == "bell" else torch.ones(2, LATENTS)
    torch.testing.assert_close(loss.per_sample.detach(), (weight * loss.per_frame).mean(1))


def test_velocity_of_a_probe_follows_from_batch_timestep_and_seed() -> None:
    module, batch = ready()
    predicted, true = module.predict_velocity(batch, 600.0, 3)
    assert predicted.shape == true.shape == (2, LATENTS, 7, 4, 4) and not predicted.requires_grad
    torch.manual_seed(99)
    assert torch.equal(predicted, module.predict_velocity(batch, 600.0, 3)[0])
    changes: list[tuple[dict[str, Any], float, int]] = [
        ({**batch, "action": -batch["action"]}, 600.0, 3),
        ({**batch, "action": None}, 600.0, 3),
        (batch, 500.0, 3),
        (batch, 600.0, 4),
    ]
    assert all(not torch.equal(predicted, module.predict_velocity(*change)[0]) for change in changes)
    assert torch.equal(true, module.predict_velocity(*changes[0])[1])


def test_losses_under_other_actions_are_matched_and_tell_what_moves() -> None:
    module, batch = ready()
    moving = torch.zeros(2, LATENTS, 4, 4, dtype=torch.bool)
    moving[:, 1:, 1:3, 2] = True
    losses = module.losses.matched(encoded(module, batch), moving=moving)
    assert list(losses) == ["true", "swapped", "shuffled", "null"]
    for name, loss in losses.items():
        assert torch.equal(loss.timestep, losses["true"].timestep)
        assert loss.per_frame_moving is not None and loss.per_frame_moving.shape == loss.per_frame.shape
        assert torch.equal(loss.per_frame_moving.isnan()[:, :LATENTS], ~moving.any(dim=(2, 3)))
        assert name == "true" or not torch.equal(loss.per_frame, losses["true"].per_frame)
    everywhere = module.losses.matched(encoded(module, batch), ("swapped",), torch.ones_like(moving))["swapped"]
    torch.testing.assert_close(everywhere.per_frame_moving, losses["swapped"].per_frame)
    assert torch.equal(everywhere.per_frame, losses["swapped"].per_frame)
    alone = module.losses.matched(encoded(module, data().dataset("test").batch([4])), ("shuffled",))["shuffled"]
    torch.testing.assert_close(alone.per_frame[0], losses["shuffled"].per_frame[1])
    assert alone.per_frame_moving is None and training_loss(module, batch).per_frame_moving is None


def test_the_modulation_of_all_draws_is_computed_once() -> None:
    module, batch = ready()
    calls = []
    module.action_projection.register_forward_hook(lambda *_: calls.append(1))
    module.losses.matched(encoded(module, batch), ("swapped", "null"))
    assert len(calls) == 2, "under its own actions and under others; none need no projection"


def test_noise_on_the_past_changes_what_later_blocks_see_and_nothing_else() -> None:
    (plain, both), (noisy, _) = ready(), ready(past_noise=0.5)
    before, after = training_loss(plain, both), training_loss(noisy, both)
    assert torch.equal(before.timestep, after.timestep)
    # The first block has no past.
    torch.testing.assert_close(before.per_frame[:, 0], after.per_frame[:, 0])
    assert bool((before.per_frame[:, 1:] != after.per_frame[:, 1:]).all())
    alone = training_loss(noisy, data().dataset("test").batch([4]))
    torch.testing.assert_close(alone.per_frame[0], after.per_frame[1])
    measured = [module.matched_losses(both)["true"].per_sample for module in (plain, noisy)]
    assert torch.equal(*measured), "it is for training alone"


def test_noise_on_the_past_is_for_teacher_forcing() -> None:
    with pytest.raises(ValueError, match="past_noise is for teacher_forcing"):
        ready(objective="diffusion_forcing", past_noise=0.5)
    with pytest.raises(ValueError, match="past_noise must be"):
        ready(past_noise=-1.0)


@pytest.mark.parametrize("objective", ["teacher_forcing", "diffusion_forcing"])
def test_operations_of_a_training_step(objective: str) -> None:
    """Of two videos of five latent frames of four tokens; what one of them costs is shown in test_estimates.py."""
    module, batch = ready(objective=objective)
    sees = causality.teacher_forcing if objective == "teacher_forcing" else causality.block_causal
    one = training_flops(module.generator, sees(LATENTS, module.causality), 4)
    assert module.flops_per_batch == 0, "before the first step"
    module.training_step(batch, 0)
    assert module.flops_per_batch == 2 * one.total
    module.generator.requires_grad_(False)
    frozen = training_flops(module.generator, sees(LATENTS, module.causality), 4)
    assert module.flops_per_batch == 2 * frozen.total < 2 * one.total
    assert module.action_projection is not None
    module.action_projection.requires_grad_(False)
    nothing = training_flops(module.generator, sees(LATENTS, module.causality), 4, modulation_learns=False)
    assert module.flops_per_batch == 2 * nothing.total < 2 * frozen.total


def test_a_rollout_without_clean_passes_is_trained_for() -> None:
    sampling = Sampling(denoising_step_list=[1000, 500, 250], context="last_step")
    (plain, both), (skipping, _) = ready(), ready(sampling=sampling)
    assert skipping.losses.past_timesteps is not None and plain.losses.past_timesteps is None
    before, after = training_loss(plain, both), training_loss(skipping, both)
    assert torch.equal(before.timestep, after.timestep)
    # The first block has no past, and the second sees the frame that rollouts are given.
    torch.testing.assert_close(before.per_frame[:, :2], after.per_frame[:, :2])
    assert bool((before.per_frame[:, 2:] != after.per_frame[:, 2:]).all())
    measured = [module.matched_losses(both)["true"].per_sample for module in (plain, skipping)]
    assert not torch.equal(*measured)
    assert not torch.equal(plain.predict_velocity(both, 600.0, 3)[0], skipping.predict_velocity(both, 600.0, 3)[0])
    assert ready(sampling=sampling, objective="diffusion_forcing")[0].losses.past_timesteps is None
    with pytest.raises(ValueError, match="past_noise is for sampling.context clean"):
        ready(sampling=sampling, past_noise=0.5)


def test_samples_lose_their_prompts_by_chance() -> None:
    module, batch = ready()
    given = encoded(module, batch)
    # Shorter than the prompts: what is joined has one length.
    no_prompt = torch.randn(1, 2, 6)

    def loss(prompt_dropout: float, number: int) -> torch.Tensor:
        return module.losses.of_training(given, 0, number, 0.0, prompt_dropout, no_prompt).per_sample.detach()

    empty = replace(given, text=torch.cat([no_prompt.expand(2, -1, -1), torch.zeros(2, 2, 6)], dim=1))
    outcomes = set()
    for number in range(12):
        kept = training_loss(module, batch, batch_idx=number).per_sample.detach()
        lost = module.losses.of_training(empty, 0, number, 0.0).per_sample.detach()
        assert torch.equal(loss(0.0, number), kept) and torch.equal(loss(1.0, number), lost)
        assert not torch.isclose(kept, lost, rtol=1e-6).any()
        some = loss(0.5, number)
        assert all(bool(torch.isclose(some[i], kept[i]) | torch.isclose(some[i], lost[i])) for i in range(2))
        outcomes.add(tuple(torch.isclose(some, lost, rtol=1e-6).tolist()))
    assert len(outcomes) == 4, "each sample by a chance of its own"


def test_a_fit_shows_empty_prompts() -> None:
    (blind, batch), (plain, _) = ready(prompt_dropout_prob=1.0, action_dropout_prob=0.0), ready(action_dropout_prob=0.0)
    cases = ((blind, batch), (plain, {**batch, "prompt": [""] * 2}), (plain, batch))
    blinded, without, given = (module.training_step(shown, 0)["loss"] for module, shown in cases)
    assert torch.equal(blinded, without) and not torch.equal(without, given)


@torch.no_grad()
def test_an_empty_prompt_that_is_encoded_already_needs_no_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(num_inference_steps=2, prompt_guidance_scale=3.0)
    module, batch = ready(sampling=sampling, prompt_dropout_prob=1.0, action_dropout_prob=0.0)
    texts = {"text": module.frozen.encode_text(batch["prompt"]), "empty_text": module.frozen.encode_text([""] * 2)}
    expected = module.training_step(batch, 0)["loss"], module.generate(batch)

    def refused(*_: object) -> None:
        raise AssertionError("asked the text encoder")

    monkeypatch.setattr(module.frozen.text_encoder, "encode", refused)
    found = module.training_step({**batch, **texts}, 0)["loss"], module.generate({**batch, **texts})
    assert all(map(torch.equal, found, expected))
    with pytest.raises(AssertionError, match="asked the text encoder"):
        module.generate({**batch, "text": texts["text"]})

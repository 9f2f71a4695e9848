from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_action.generation.sampling import Sampling
from lightning_action.generator import causality
from lightning_action.generator.cost import training_flops
from lightning_action.world_model import WorldModel
from tests.unit.test_module import LATENTS, data, ready

SAMPLING = Sampling(num_inference_steps=2)


def model_and_batch(**changes: Any) -> tuple[WorldModel, dict[str, Any]]:
    module, batch = ready(**changes)
    return module.world_model, batch


def test_noise_and_dropout_of_a_sample_do_not_depend_on_its_batch() -> None:
    model, both = model_and_batch()
    together = model.training_loss(both, 3, 5, 0.5)
    for index, sample in enumerate([0, 4]):
        alone = model.training_loss(data().dataset("test").batch([sample]), 3, 5, 0.5)
        assert torch.equal(alone.timestep[0], together.timestep[index])
        torch.testing.assert_close(alone.per_frame[0], together.per_frame[index])
    for epoch, batch_idx in ((4, 5), (3, 6)):
        assert not torch.equal(together.timestep, model.training_loss(both, epoch, batch_idx, 0.5).timestep)


@pytest.mark.parametrize("weighting", ["bell", "uniform"])
def test_a_loss_tells_where_it_comes_from(weighting: str) -> None:
    model, batch = model_and_batch(loss_weighting=weighting)
    loss = model.training_loss(batch, 0, 0, 0.0)
    assert loss.per_frame.shape == loss.timestep.shape == (2, LATENTS) and loss.per_sample.shape == (2,)
    assert loss.per_sample.requires_grad and not loss.per_frame.requires_grad
    weight = model.schedule.weight_at(loss.timestep) if weighting == "bell" else torch.ones(2, LATENTS)
    torch.testing.assert_close(loss.per_sample.detach(), (weight * loss.per_frame).mean(1))


def test_velocity_of_a_probe_follows_from_batch_timestep_and_seed() -> None:
    model, batch = model_and_batch()
    predicted, true = model.predict_velocity(batch, 600.0, 3)
    assert predicted.shape == true.shape == (2, LATENTS, 7, 4, 4) and not predicted.requires_grad
    torch.manual_seed(99)
    assert torch.equal(predicted, model.predict_velocity(batch, 600.0, 3)[0])
    changes: list[tuple[dict[str, Any], float, int]] = [
        ({**batch, "action": -batch["action"]}, 600.0, 3),
        ({**batch, "action": None}, 600.0, 3),
        (batch, 500.0, 3),
        (batch, 600.0, 4),
    ]
    assert all(not torch.equal(predicted, model.predict_velocity(*change)[0]) for change in changes)
    assert torch.equal(true, model.predict_velocity(*changes[0])[1])


@torch.no_grad()
def test_video_is_the_same_at_once_overlapped_or_streamed() -> None:
    model, batch = model_and_batch()
    generated = model.generate(batch, SAMPLING)
    assert torch.equal(generated.video, model.generate(batch, SAMPLING, overlap_decoding=True).video)
    blocks = list(model.stream_video(batch, SAMPLING))
    assert [block.shape[1] for block in blocks] == [1, 4, 4, 4, 4]
    assert torch.equal(generated.video, torch.cat(blocks, dim=1))
    assert len(generated.seconds["block_seconds"]) == LATENTS and generated.seconds["decode_seconds"] > 0
    other = model.generate(batch, replace(SAMPLING, seed=1))
    assert not torch.equal(generated.video, other.video)


@torch.no_grad()
def test_values_that_are_not_finite_are_refused() -> None:
    model, batch = model_and_batch()
    model.generator.head.head.bias.fill_(torch.nan)
    for generate in (lambda: model.generate(batch, SAMPLING), lambda: list(model.stream_video(batch, SAMPLING))):
        with pytest.raises(RuntimeError, match="NaN or infinity: check the checkpoint"):
            generate()


@pytest.mark.parametrize("objective", ["teacher_forcing", "diffusion_forcing"])
def test_operations_of_a_training_step(objective: str) -> None:
    """Of two videos of five latent frames of four tokens; what one of them costs is shown in test_cost.py."""
    model, batch = model_and_batch(objective=objective)
    sees = causality.teacher_forcing if objective == "teacher_forcing" else causality.block_causal
    one = training_flops(model.generator, sees(LATENTS, model.causality), 4)
    assert model.training_flops(batch["video"].shape) == 2 * one.total
    module, _ = ready(objective=objective)
    assert module.flops_per_batch == 0, "before the first step"

"""What a pipeline takes. What it refuses, and that nothing is computed before: `test_pipeline.py`."""

from __future__ import annotations

import pytest
import torch

from lightning_action.action.conditioning import ActionConditioning
from lightning_action.action.projection import ActionModulationProjection
from lightning_action.generator.causality import BlockCausality
from lightning_action.pipeline.inputs import check_latents, check_prompts, given_modulation
from tests.support.small_generator import fill, small_generator

GENERATOR = small_generator()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_latents_of_any_length_size_and_precision_fit(dtype: torch.dtype) -> None:
    check_latents(torch.randn(2, 7, 5, 6, 5, dtype=dtype), None, GENERATOR)
    check_latents(torch.randn(2, 7, 5, 6, 5, dtype=dtype), torch.randn(2, 3, 5, 6, 5), GENERATOR)


def test_integers_and_an_empty_start_do_not_fit() -> None:
    with pytest.raises(ValueError, match="noise must be floats .* got torch.int64"):
        check_latents(torch.zeros(2, 7, 5, 6, 5, dtype=torch.int64), None, GENERATOR)
    with pytest.raises(ValueError, match="initial_latent must have at least one frame"):
        check_latents(torch.zeros(2, 7, 5, 6, 5), torch.zeros(2, 0, 5, 6, 5), GENERATOR)


def test_prompts_or_embeds_of_the_batch_fit() -> None:
    check_prompts(["a", "b"], None, range(2), 2, GENERATOR)
    check_prompts(("a", "b"), None, [7, 3], 2, GENERATOR)
    for length in (1, 7):
        check_prompts(None, torch.randn(2, length, 9), range(2), 2, GENERATOR)


def test_embeds_of_another_batch_or_width_do_not_fit() -> None:
    for shape in ((1, 7, 9), (2, 7, 8), (2, 9)):
        with pytest.raises(ValueError, match="prompt_embeds must be .2, at most 7, 9., got"):
            check_prompts(None, torch.randn(shape), range(2), 2, GENERATOR)


def test_a_whole_video_may_leave_its_first_frames_out() -> None:
    projection = ActionModulationProjection(3, 36, hidden_dim=7)
    fill(projection, scale=1.0)
    start, features = torch.zeros(2, 7, 5, 6, 5), torch.randn(2, 5, 3)

    def given(values: torch.Tensor) -> torch.Tensor:
        conditioning = ActionConditioning(None, projection, None)
        return given_modulation({"action_features": values}, conditioning, GENERATOR, start, 2, BlockCausality(7))

    modulation = given(features)
    assert torch.equal(modulation[:, :2], torch.zeros(2, 2, 6, 36)) and torch.equal(
        modulation[:, 2:], projection(features)
    )
    alike = given(features[:, 0])
    torch.testing.assert_close(alike, alike[:, :1].expand(-1, 7, -1, -1), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="are for 4 latent frames: expected 7, one for each of the video, or 5"):
        given(features[:, :4])

"""What a pipeline takes. What it refuses, and that nothing is computed before: `test_pipeline.py`."""

from __future__ import annotations

import pytest
import torch

from lightning_action.pipeline.arguments import check_batch, check_latents
from tests.helpers import small_generator

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
    check_batch(["a", "b"], None, range(2), 2, GENERATOR)
    check_batch(("a", "b"), None, [7, 3], 2, GENERATOR)
    for length in (1, 7):
        check_batch(None, torch.randn(2, length, 9), range(2), 2, GENERATOR)


def test_embeds_of_another_batch_or_width_do_not_fit() -> None:
    for shape in ((1, 7, 9), (2, 7, 8), (2, 9)):
        with pytest.raises(ValueError, match="prompt_embeds must be .2, at most 7, 9., got"):
            check_batch(None, torch.randn(shape), range(2), 2, GENERATOR)

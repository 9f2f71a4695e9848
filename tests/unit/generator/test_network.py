from __future__ import annotations

import pytest
import torch

from lightning_action.generator.model import CausalWanModel
from lightning_action.generator.network import velocity_from_residual
from lightning_action.weights.size import TRAITS
from tests.support.small_generator import small_generator, small_inputs

TIMESTEPS = torch.tensor([[0.0, 250.0, 500.0], [700.0, 990.0, 1000.0]])


def test_wan_parameter_names_and_counts() -> None:
    """825 tensors and 1,418,996,800 parameters are the published 1.3B model's."""
    with torch.device("meta"):
        generator = CausalWanModel(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
    state = generator.state_dict()
    assert len(state) == 825
    assert sum(tensor.numel() for tensor in state.values()) == 1_418_996_800
    assert state["patch_embedding.weight"].shape == (1536, 16, 1, 2, 2)
    assert state["blocks.29.self_attn.norm_q.weight"].shape == (1536,)


def test_traits_are_those_that_files_name() -> None:
    assert tuple(small_generator().traits) == TRAITS


def test_text_is_padded_to_its_length_and_attended() -> None:
    generator, x = small_generator(), small_inputs(3)
    short = x["text"][:, :4]
    filled = torch.cat([short, torch.zeros(2, 3, 9)], dim=1)
    with torch.no_grad():
        a, b = (generator(x["noisy"], x["timestep"], text) for text in (short, filled))
    assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"at most 7, 9\], got \[2, 8, 9\]"):
        generator(x["noisy"], x["timestep"], torch.zeros(2, 8, 9))


@pytest.mark.parametrize("changes", [{"dim": 35}, {"dim": 33}, {"patch_size": (2, 2, 2)}])
def test_impossible_sizes_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        small_generator(**changes)


def test_half_a_patch_is_refused() -> None:
    generator, x = small_generator(), small_inputs(2, height=5)
    with pytest.raises(ValueError, match="5 x 3 are not a whole number of patches of 2 x 1"):
        generator(x["noisy"], x["timestep"], x["text"])


def test_the_residual_gives_the_velocity_of_the_straight_line() -> None:
    random = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 3, 5, 4, 7, generator=random, dtype=torch.float64) for _ in range(2))
    sigma = (TIMESTEPS.double() / 1000)[..., None, None, None]
    noisy = (1 - sigma) * clean + sigma * noise
    residual = ((1 - sigma) * noise - sigma * clean) / (sigma**2 + (1 - sigma) ** 2).sqrt()
    velocity = velocity_from_residual(residual, noisy, TIMESTEPS)
    # Noise levels are in float32.
    torch.testing.assert_close(velocity, noise - clean, rtol=1e-6, atol=1e-6)
    assert torch.equal(velocity_from_residual(-clean, noise, TIMESTEPS)[1, 2], (noise - clean)[1, 2])


def test_nothing_is_left_that_a_line_through_the_noisy_input_could_tell() -> None:
    """Of data and noise of variance 1, the residual has variance 1 and no correlation with what is seen."""
    sigma = torch.linspace(0, 1, 11, dtype=torch.float64)
    norm = sigma**2 + (1 - sigma) ** 2
    of_clean, of_noise = velocity_parts(sigma)
    torch.testing.assert_close(of_clean**2 + of_noise**2, torch.ones_like(sigma), rtol=1e-6, atol=0)
    seen = (1 - sigma) * of_clean + sigma * of_noise
    torch.testing.assert_close(seen / norm.sqrt(), torch.zeros_like(sigma), rtol=0, atol=1e-6)


def velocity_parts(sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a residual must hold of clean latents and of noise, by asking for the velocities of either alone."""
    timestep, zero = 1000 * sigma[None], torch.zeros(1, len(sigma), 1, 1, 1, dtype=torch.float64)
    scale = velocity_from_residual(zero + 1, zero, timestep)

    def residual(clean: float, noise: float) -> torch.Tensor:
        noisy = ((1 - sigma) * clean + sigma * noise)[None, :, None, None, None]
        return ((noise - clean - velocity_from_residual(zero, noisy, timestep)) / scale).flatten()

    return residual(1.0, 0.0), residual(0.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_velocity_has_the_type_of_the_residual(dtype: torch.dtype) -> None:
    residual = torch.ones(2, 3, 1, 2, 4, dtype=dtype)
    assert velocity_from_residual(residual, torch.ones(2, 3, 1, 2, 4), TIMESTEPS).dtype == dtype

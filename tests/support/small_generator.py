"""Small models with weights that make every part act."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_action.generator.model import CausalWanModel


def fill(module: nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Random values for every parameter: Wan's zero-initialised head would make any two outputs equal."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.add_(scale * noise / fan_in**0.5)


def small_generator(seed: int = 0, **changes: object) -> CausalWanModel:
    """Width 36, 3 heads, 2 layers, 5 latent channels, patches of 1 x 2 x 1."""
    sizes: dict[str, object] = {
        "dim": 36,
        "ffn_dim": 44,
        "num_heads": 3,
        "num_layers": 2,
        "in_dim": 5,
        "out_dim": 5,
        "patch_size": (1, 2, 1),
        "freq_dim": 14,
        "text_dim": 9,
        "text_len": 7,
    }
    torch.manual_seed(seed)
    generator = CausalWanModel(**{**sizes, **changes})  # type: ignore[arg-type]
    fill(generator, seed)
    return generator.eval()


def small_inputs(
    num_frames: int, batch_size: int = 2, seed: int = 1, height: int = 4, width: int = 3
) -> dict[str, Tensor]:
    """`clean`, `noisy`, `timestep`, `text`, `modulation` for `small_generator`."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    return {
        "clean": draw(batch_size, num_frames, 5, height, width),
        "noisy": draw(batch_size, num_frames, 5, height, width),
        "timestep": 1000 * torch.rand(batch_size, num_frames, generator=random),
        "text": draw(batch_size, 6, 9),
        "modulation": 0.3 * draw(batch_size, num_frames, 6, 36),
    }

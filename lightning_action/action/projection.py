"""Networks from an action vector to the modulation of every layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_action.ranges import require_numbers


class FourierFeatures(nn.Module):
    """The raw values, then for each of them the sines and cosines of `num_bands` rising frequencies.

    Fourier features (Tancik et al. 2020, arXiv:2006.10739) make a network sensitive to small differences of its input;
    the powers of two are those of NeRF (Mildenhall et al. 2020, arXiv:2003.08934). Band k is `2^k pi lowest_band`. With
    `lowest_band` 1 the values +1 and -1 get the same sines and cosines in every band; 0.5 keeps them apart.
    """

    bands: Tensor

    def __init__(self, num_bands: int, lowest_band: float, include_raw: bool) -> None:
        super().__init__()
        if num_bands == 0 and not include_raw:
            raise ValueError("action features would be empty: use num_fourier_bands > 0 or include_raw_actions")
        self.num_bands = num_bands
        self.include_raw = include_raw
        bands = math.pi * lowest_band * 2.0 ** torch.arange(num_bands)
        self.register_buffer("bands", bands, persistent=False)

    def width(self, action_dim: int) -> int:
        """Features of an action vector of `action_dim` values."""
        return action_dim * (2 * self.num_bands + self.include_raw)

    def forward(self, action: Tensor) -> Tensor:
        """Map values `[..., A]` to features `[..., width(A)]`."""
        angles = action[..., None] * self.bands
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return torch.cat([action, waves], dim=-1) if self.include_raw else waves


class ActionModulationProjection(nn.Module):
    """adaLN-Zero for actions: the last layer starts at exactly zero, so the adapted model starts as the base model.

    DiT (Peebles & Xie 2023, arXiv:2212.09748, section 3.2) starts each block as the identity; here, where the base
    model is trained already, it is the change of its modulation that starts at zero.

    Slots are shift, scale, gate of self-attention, then of the feed-forward. With `num_layers` every transformer layer
    gets a modulation of its own, through `layer_rank` channels that keep it small: at 1.3B (30 layers of width 1536,
    rank 32) 9.1 M parameters instead of 142 M.

    Args:
        action_dim: Width A of the action vectors.
        dim: Width D of the generator.
        hidden_dim: Width of the two hidden layers.
        num_frames: Number of latent frames that a 2-D input `[B, A]` is repeated over.
        num_fourier_bands: Number of sine and cosine bands for each action value; 0 for none.
        lowest_band: Lowest frequency, in units of pi; at 1 and above +1 and -1 are told apart by the raw value alone.
        include_raw_actions: Feed in the action values themselves too.
        zero_init: Start the weights of the last layer at exactly zero; False draws them from N(0, 0.001).
        action_modulation_scale: Factor of the whole modulation.
        slot_scales: Factors of the six slots.
        num_layers: Number of layers of the generator, for one modulation per layer; None shares one among all.
        layer_rank: Number of channels between the hidden layers and the per-layer modulation.

    Raises:
        ValueError: `slot_scales` are not six, or there is nothing to feed.
    """

    scales: Tensor

    def __init__(
        self,
        action_dim: int,
        dim: int,
        hidden_dim: int = 512,
        num_frames: int = 1,
        num_fourier_bands: int = 0,
        lowest_band: float = 0.5,
        include_raw_actions: bool = True,
        zero_init: bool = True,
        action_modulation_scale: float = 1.0,
        slot_scales: Sequence[float] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
        num_layers: int | None = None,
        layer_rank: int = 32,
    ) -> None:
        super().__init__()
        sizes = {"action_dim": action_dim, "dim": dim, "hidden_dim": hidden_dim, "num_frames": num_frames}
        layers = {} if num_layers is None else {"num_layers": num_layers, "layer_rank": layer_rank}
        require_numbers(sizes | layers, 1, whole=True)
        require_numbers({"num_fourier_bands": num_fourier_bands}, 0, whole=True)
        require_numbers({"lowest_band": lowest_band}, 0, without_low=True)
        require_numbers({"action_modulation_scale": action_modulation_scale})
        require_numbers({f"slot_scales[{place}]": scale for place, scale in enumerate(slot_scales)})
        if len(slot_scales) != 6:
            raise ValueError(f"slot_scales are six (shift, scale, gate, twice), got {list(slot_scales)}")
        self.action_dim, self.dim, self.num_frames, self.num_layers = action_dim, dim, num_frames, num_layers
        self.features = FourierFeatures(num_fourier_bands, lowest_band, include_raw_actions)
        self.action_embedding = nn.Sequential(
            nn.Linear(self.features.width(action_dim), hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.SiLU(),
        )
        if num_layers is None:
            self.layer_bottleneck: nn.Module = nn.Identity()
            self.action_projection = nn.Linear(hidden_dim, 6 * dim)
        else:
            self.layer_bottleneck = nn.Linear(hidden_dim, layer_rank)
            self.action_projection = nn.Linear(layer_rank, num_layers * 6 * dim)
        scales = action_modulation_scale * torch.tensor(slot_scales, dtype=torch.float32)
        self.register_buffer("scales", scales[:, None], persistent=False)
        if zero_init:
            nn.init.zeros_(self.action_projection.weight)
        else:
            nn.init.normal_(self.action_projection.weight, std=1e-3)
        nn.init.zeros_(self.action_projection.bias)

    def forward(self, action: Tensor, present: Tensor | None = None) -> Tensor:
        """Compute the modulation of every latent frame.

        Args:
            action: Action vectors `[B, F, A]`, or `[B, A]`, which are repeated over `num_frames`.
            present: Mask of the frames that have an action, `[B, F]` bool; the others get exactly no modulation.

        Returns:
            `[B, F, 6, D]`, or `[B, F, num_layers, 6, D]`.

        Raises:
            ValueError: The action is not as wide as the projection takes.
        """
        self.require_actions(action)
        if action.ndim == 2:
            action = action[:, None].expand(-1, self.num_frames, -1)
        # Sharded parameters may be gathered in another type than buffers have.
        features = self.features(action).to(self.action_projection.bias.dtype)
        hidden = self.layer_bottleneck(self.action_embedding(features))
        shape = (6, self.dim) if self.num_layers is None else (self.num_layers, 6, self.dim)
        modulation = self.action_projection(hidden).unflatten(-1, shape)
        modulation = modulation * self.scales.to(modulation.dtype)
        return modulation if present is None else null_where_absent(modulation, present)

    def require_actions(self, action: Tensor) -> None:
        """Refuse what are no action vectors of this projection.

        Raises:
            ValueError: The vectors are not as wide as the projection takes.
        """
        if action.shape[-1] != self.action_dim or action.ndim not in (2, 3):
            raise ValueError(
                f"expected actions [B, {self.action_dim}] or [B, F, {self.action_dim}], got {list(action.shape)}"
            )


def null_where_absent(modulation: Tensor, present: Tensor) -> Tensor:
    """Set modulation to exactly zero in the frames without an action; `present` is `[B, F]` bool."""
    mask = present.reshape(*present.shape, *(1,) * (modulation.ndim - 2))
    return torch.where(mask, modulation, torch.zeros_like(modulation))

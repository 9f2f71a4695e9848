"""The parts of a Wan transformer layer (Wan 2025, arXiv:2503.20314).

Attribute names are the original ones, so that checkpoints load unchanged.

Shapes: `x` is `[B, F, S, D]`, F latent frames of S tokens each; modulation is per latent frame.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_action.generator.attention import attend_dense
from lightning_action.generator.prompt import EmbeddedPrompt, KeysValues
from lightning_action.generator.rope import rotate


class Context(Protocol):
    """Frames and prompt that a layer's tokens attend to: `context.MaskedContext`, or `context.CachedContext`."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Compute self-attention, all `[B, N, heads, head_dim]`."""
        ...

    def prompt(self, cross_attention: CrossAttention) -> tuple[KeysValues, ...]:
        """Return the keys and values that this layer's cross-attention sees: a prompt's, and an image's."""
        ...


class KeepsKeysValues(Protocol):
    """A context that keeps the keys and values of what passes."""

    def write(self, key: Tensor, value: Tensor) -> None:
        """Keep keys and values, `[B, N, heads, head_dim]`."""
        ...


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang & Sennrich 2019, arXiv:1910.07467), in float32.

    It goes over the whole width, before the split into heads, as in Wan.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        # The weight is of another type under autocast, and the product would be, too.
        return F.rms_norm(x.float(), self.weight.shape, eps=self.eps).type_as(x) * self.weight.type_as(x)


class Attention(nn.Module):
    """Projections shared by self- and cross-attention."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps) if qk_norm else nn.Identity()
        self.norm_k = RMSNorm(dim, eps) if qk_norm else nn.Identity()

    def split_heads(self, x: Tensor) -> Tensor:
        """Split `[B, N, D]` into `[B, N, heads, head_dim]`."""
        return x.unflatten(-1, (self.num_heads, -1))


class SelfAttention(Attention):
    """Attention among the video's tokens; who sees whom is the context's."""

    def forward(self, x: Tensor, rotation: Tensor, context: Context) -> Tensor:
        query, key, value = self.project(x)
        turned = rotate(self.split_heads(self.norm_q(query)), rotation)
        return self.o(context.attend(turned, *self._heads(key, value, rotation)).flatten(-2))

    def keys_values(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keys and values of tokens `[B, N, D]`, and no queries."""
        return self._heads(*self.project_keys_values(x), rotation)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map tokens to queries, keys and values, all `[B, N, D]`."""
        return self.q(x), *self.project_keys_values(x)

    def project_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens to keys and values alone."""
        return self.k(x), self.v(x)

    def _heads(self, key: Tensor, value: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        return rotate(self.split_heads(self.norm_k(key)), rotation), self.split_heads(value)


class CrossAttention(Attention):
    """Attention from the video's tokens to the prompt's, and with `sees_image` to an image's, added up.

    The sum over two sets of keys is the decoupled cross-attention of IP-Adapter (Ye et al. 2023, arXiv:2308.06721).
    """

    def __init__(self, dim: int, num_heads: int, qk_norm: bool, eps: float, sees_image: bool = False) -> None:
        super().__init__(dim, num_heads, qk_norm, eps)
        if sees_image:
            self.k_img = nn.Linear(dim, dim)
            self.v_img = nn.Linear(dim, dim)
            self.norm_k_img = RMSNorm(dim, eps) if qk_norm else nn.Identity()

    def keys_values(self, prompt: EmbeddedPrompt) -> tuple[KeysValues, ...]:
        """Keys and values of an embedded prompt, and of its image where there is one.

        They are the same for every block and timestep.
        """
        text, bias, image = prompt
        of_text = KeysValues(self.split_heads(self.norm_k(self.k(text))), self.split_heads(self.v(text)), bias)
        if image is None:
            return (of_text,)
        keys, values = self.split_heads(self.norm_k_img(self.k_img(image))), self.split_heads(self.v_img(image))
        return of_text, KeysValues(keys, values)

    def forward(self, x: Tensor, prompt: tuple[KeysValues, ...]) -> Tensor:
        query = self.split_heads(self.norm_q(self.q(x)))
        attended = attend_dense(query, *prompt[0])
        for keys_values in prompt[1:]:
            attended = attended + attend_dense(query, *keys_values)
        return self.o(attended.flatten(-2))


class WanLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward with per-frame adaLN modulation (shift, scale, gate, twice).

    The modulation is that of adaLN-Zero (Peebles & Xie 2023, arXiv:2212.09748, section 3.2). One projection of time
    serves all layers, each of which adds a learned table, as in adaLN-single (Chen et al. 2023, arXiv:2310.00426). DiT
    has one modulation for a sample. Here each latent frame has its own, because the frames of a pass may differ in
    noise level (clean past, noisy block) and in action.
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        num_heads: int,
        qk_norm: bool,
        cross_attn_norm: bool,
        eps: float,
        sees_image: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.self_attn = SelfAttention(dim, num_heads, qk_norm, eps)
        self.norm3 = nn.LayerNorm(dim, eps) if cross_attn_norm else nn.Identity()
        self.cross_attn = CrossAttention(dim, num_heads, qk_norm, eps, sees_image)
        self.norm2 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(self, x: Tensor, modulation: Tensor, rotation: Tensor, context: Context) -> Tensor:
        """Apply the layer.

        Args:
            x: Tokens of the video, `[B, F, S, D]`.
            modulation: Modulation of time and action, `[B, F, 6, D]`; the layer's own table is added here.
            rotation: Cosines and sines from `rope.rotation`.
            context: Frames and prompt that the tokens attend to.

        Returns:
            Tokens, `[B, F, S, D]`.
        """
        # In float32, as autocast leaves it, it would make the tokens float32 in all layers that follow.
        added_up = (self.modulation + modulation).type_as(x)
        shift_sa, scale_sa, gate_sa, shift_ffn, scale_ffn, gate_ffn = per_token(added_up)
        attended = self.self_attn((self.norm1(x) * (1 + scale_sa) + shift_sa).flatten(1, 2), rotation, context)
        x = x + gate_sa * attended.view_as(x)
        # As in Wan, cross-attention has neither shift, scale nor gate.
        x = x + self.cross_attn(self.norm3(x).flatten(1, 2), context.prompt(self.cross_attn)).view_as(x)
        return x + gate_ffn * self.ffn(self.norm2(x) * (1 + scale_ffn) + shift_ffn)

    def write(self, x: Tensor, modulation: Tensor, rotation: Tensor, context: KeepsKeysValues) -> None:
        """Have the context keep what it would in `forward`, and compute nothing else."""
        shift, scale, *_ = per_token((self.modulation + modulation).type_as(x))
        context.write(*self.self_attn.keys_values((self.norm1(x) * (1 + scale) + shift).flatten(1, 2), rotation))

    def prompt(self, prompt: EmbeddedPrompt) -> tuple[KeysValues, ...]:
        """Compute the keys and values that cross-attention sees of embedded prompts, and images."""
        return self.cross_attn.keys_values(prompt)


class Head(nn.Module):
    """Modulated norm and the linear map from tokens to patches. Time alone modulates it; actions act in the layers."""

    def __init__(self, dim: int, patch_channels: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.head = nn.Linear(dim, patch_channels)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map tokens `[B, F, S, D]` and the time embedding `[B, F, D]` to patches `[B, F, S, patch_channels]`."""
        shift, scale = per_token(self.modulation + time[:, :, None])
        return self.head(self.norm(x) * (1 + scale) + shift)


def per_token(modulation: Tensor) -> tuple[Tensor, ...]:
    """Split `[B, F, n, D]` into n tensors `[B, F, 1, D]` that broadcast over the tokens of a frame."""
    return modulation.unsqueeze(3).unbind(2)


def sinusoid(timestep: Tensor, num_channels: int) -> Tensor:
    """Embed timesteps as sinusoids, `[..., num_channels]`, float64.

    They are those of Vaswani et al. (2017, arXiv:1706.03762), with cosines first, as in Wan.
    """
    half = num_channels // 2
    exponents = torch.arange(half, dtype=torch.float64, device=timestep.device) / half
    angles = timestep.double()[..., None] * 10000.0**-exponents
    return torch.cat([angles.cos(), angles.sin()], dim=-1)

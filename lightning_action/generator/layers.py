"""The parts of a Wan transformer layer (Wan 2025, arXiv:2503.20314).

Attribute names are the original ones, so that checkpoints load unchanged.

Shapes: `x` is `[B, F, S, D]`, F latent frames of S tokens each; modulation is per latent frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_action.generator.attention import Attend, attend_dense
from lightning_action.generator.rope import rotate

KeysValues = tuple[Tensor, Tensor]
ContextKeysValues = Callable[["CrossAttention"], tuple[KeysValues, ...]]


class AtLayer:
    """A function of (layer, ...) at one layer. Compiled code calls it and knows neither layer nor position in time."""

    def __init__(self, function: Callable[..., Any], layer: int) -> None:
        self.function = function
        self.layer = layer

    @torch.compiler.disable
    def __call__(self, *args: Any) -> Any:
        return self.function(self.layer, *args)


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang & Sennrich 2019, arXiv:1910.07467), in float32.

    It goes over the whole width, before the split into heads, as in Wan.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, eps=self.eps).type_as(x) * self.weight


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
    """Attention among the video's tokens; who sees whom is the caller's `attend`."""

    def forward(self, x: Tensor, rotation: Tensor, attend: Attend) -> Tensor:
        query = rotate(self.split_heads(self.norm_q(self.q(x))), rotation)
        key = rotate(self.split_heads(self.norm_k(self.k(x))), rotation)
        value = self.split_heads(self.v(x))
        return self.o(attend(query, key, value).flatten(-2))


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

    def keys_values(self, text: Tensor, image: Tensor | None = None) -> tuple[KeysValues, ...]:
        """Keys and values of an embedded prompt `[B, L, D]`, and of an embedded image where there is one.

        They are the same for every block and timestep.
        """
        of_text = self.split_heads(self.norm_k(self.k(text))), self.split_heads(self.v(text))
        if image is None:
            return (of_text,)
        of_image = self.split_heads(self.norm_k_img(self.k_img(image))), self.split_heads(self.v_img(image))
        return of_text, of_image

    def forward(self, x: Tensor, context: tuple[KeysValues, ...]) -> Tensor:
        query = self.split_heads(self.norm_q(self.q(x)))
        attended = attend_dense(query, *context[0])
        for keys_values in context[1:]:
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

    def forward(
        self, x: Tensor, modulation: Tensor, rotation: Tensor, attend: Attend, context: ContextKeysValues
    ) -> Tensor:
        """Apply the layer.

        Args:
            x: Tokens of the video, `[B, F, S, D]`.
            modulation: Modulation of time and action, `[B, F, 6, D]`; the layer's own table is added here.
            rotation: Cosines and sines from `rope.rotation`.
            attend: Function that computes self-attention over `[B, F * S, heads, head_dim]`.
            context: Function that gives the keys and values that this layer's cross-attention sees: the prompt's, and
                an image's.

        Returns:
            Tokens, `[B, F, S, D]`.
        """
        shift_sa, scale_sa, gate_sa, shift_ffn, scale_ffn, gate_ffn = per_token(self.modulation + modulation)
        attended = self.self_attn((self.norm1(x) * (1 + scale_sa) + shift_sa).flatten(1, 2), rotation, attend)
        x = x + gate_sa * attended.view_as(x)
        # As in Wan, cross-attention has neither shift, scale nor gate.
        x = x + self.cross_attn(self.norm3(x).flatten(1, 2), context(self.cross_attn)).view_as(x)
        return x + gate_ffn * self.ffn(self.norm2(x) * (1 + scale_ffn) + shift_ffn)


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

"""The causal Wan transformer: latents, timesteps, text and actions in, velocity out.

Shapes: B batch, F latent frames, C channels, H x W latent size, S = (H / p)(W / p) tokens a frame, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_action.generator.attention import Attend, attend_dense, choose_attention
from lightning_action.generator.blocks import BlockCausality, Visibility, bidirectional, block_causal, teacher_forcing
from lightning_action.generator.kv_cache import KVCache
from lightning_action.generator.layers import CrossAttention, Head, KeysValues, TextKeysValues, WanLayer
from lightning_action.generator.rope import rotation

LayerAttend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
LayerText = Callable[[int, CrossAttention], KeysValues]


class CausalWanModel(nn.Module):
    """A Wan video transformer with per-frame timesteps, in four modes that share every weight.

    `bidirectional` (teacher, critic), `block_causal` (diffusion forcing), `teacher_forcing` (clean and noisy frames in
    one pass), and `denoise` / `write` under a `KVCache`. `forward` is `bidirectional`. The defaults are those shared
    by all released models; width and depth differ from model to model and have none.

    Args:
        dim: width D.
        ffn_dim: width of the feed-forward layers.
        num_heads: attention heads; `dim / num_heads` must be even.
        num_layers: transformer layers.
        in_dim: latent channels in.
        out_dim: latent channels out.
        patch_size: latent frames, rows and columns of one token; the first must be 1.
        freq_dim: channels of the sinusoidal timestep embedding.
        text_dim: channels of the text encoder's output.
        text_len: tokens of a prompt; shorter ones are filled up with zeros, which are attended to, as Wan does.
        qk_norm: RMS norm of queries and keys.
        cross_attn_norm: affine norm before cross-attention.
        eps: of all norms.
        activation_checkpointing: recompute each layer in the backward pass instead of storing its activations.
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        num_heads: int,
        num_layers: int,
        in_dim: int = 16,
        out_dim: int = 16,
        patch_size: Sequence[int] = (1, 2, 2),
        freq_dim: int = 256,
        text_dim: int = 4096,
        text_len: int = 512,
        qk_norm: bool = True,
        cross_attn_norm: bool = True,
        eps: float = 1e-6,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if dim % num_heads or (dim // num_heads) % 2:
            raise ValueError(f"dim / num_heads must be an even whole number, got {dim} / {num_heads}")
        if len(patch_size) != 3 or patch_size[0] != 1:
            raise ValueError(f"patch_size must be (1, rows, columns), got {tuple(patch_size)}")
        self.dim, self.num_heads, self.num_layers = dim, num_heads, num_layers
        self.in_dim, self.out_dim, self.patch_size = in_dim, out_dim, (1, patch_size[1], patch_size[2])
        self.freq_dim, self.text_dim, self.text_len = freq_dim, text_dim, text_len
        self.activation_checkpointing = activation_checkpointing

        self.patch_embedding = nn.Conv3d(in_dim, dim, kernel_size=self.patch_size, stride=self.patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(
            WanLayer(dim, ffn_dim, num_heads, qk_norm, cross_attn_norm, eps) for _ in range(num_layers)
        )
        self.head = Head(dim, out_dim * patch_size[1] * patch_size[2], eps)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Wan's initial weights: Xavier for the layers, N(0, 0.02) for the embeddings, zero for the head."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for embedding in (self.text_embedding, self.time_embedding):
            for module in embedding.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)

    def tokens_per_frame(self, height: int, width: int) -> int:
        """Tokens of one latent frame.

        Raises:
            ValueError: the frame is not a whole number of patches.
        """
        _, rows, columns = self.patch_size
        if height % rows or width % columns:
            raise ValueError(
                f"latent frames of {height} x {width} are not a whole number of patches of {rows} x {columns}"
            )
        return (height // rows) * (width // columns)

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, action_modulation: Tensor | None = None
    ) -> Tensor:
        """Every frame sees every frame: the teacher and critic of a distillation, and the original Wan.

        Args:
            latents: noisy latents, `[B, F, C, H, W]`.
            timestep: noise level in [0, 1000], per frame `[B, F]`.
            text: encoded prompts, `[B, L, text_dim]`, L at most `text_len`.
            action_modulation: added to the time modulation, `[B, F, 6, D]` for all layers alike or
                `[B, F, num_layers, 6, D]`; order shift, scale, gate (self-attention), shift, scale, gate
                (feed-forward).

        Returns:
            Velocity, `[B, F, out_dim, H, W]`.
        """
        return self._masked_pass(latents, timestep, text, bidirectional(latents.shape[1]), action_modulation)

    def block_causal(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        causality: BlockCausality,
        action_modulation: Tensor | None = None,
    ) -> Tensor:
        """A block sees itself and its past, at whatever noise level the past is. Arguments as in `forward`."""
        visibility = block_causal(latents.shape[1], causality)
        return self._masked_pass(latents, timestep, text, visibility, action_modulation)

    def teacher_forcing(
        self,
        clean: Tensor,
        noisy: Tensor,
        timestep: Tensor,
        text: Tensor,
        causality: BlockCausality,
        action_modulation: Tensor | None = None,
    ) -> Tensor:
        """Noisy blocks see the clean past (at timestep 0 and with its own actions), as they do through a cache.

        Args:
            clean: clean latents, `[B, F, C, H, W]`.
            noisy: the same latents with noise, `[B, F, C, H, W]`.
            timestep: noise level of the noisy half, `[B, F]`.
            text: as in `forward`.
            causality: block size, window and sink.
            action_modulation: as in `forward`; it serves both halves.

        Returns:
            Velocity of the noisy half, `[B, F, out_dim, H, W]`.
        """
        num_frames = noisy.shape[1]
        visibility = teacher_forcing(num_frames, causality)
        both = torch.cat([clean, noisy], dim=1)
        timesteps = torch.cat([torch.zeros_like(timestep), timestep], dim=1)
        if action_modulation is not None:
            action_modulation = torch.cat([action_modulation, action_modulation], dim=1)
        positions = (*range(num_frames), *range(num_frames))
        return self._masked_pass(both, timesteps, text, visibility, action_modulation, positions)[:, num_frames:]

    def text_cache(self, text: Tensor) -> LayerText:
        """Embed prompts once; each layer's keys and values are computed at its first use and kept."""
        embedded = self._embed_text(text)
        stored: dict[int, KeysValues] = {}

        def keys_values(layer: int, cross_attention: CrossAttention) -> KeysValues:
            if layer not in stored:
                stored[layer] = cross_attention.keys_values(embedded)
            return stored[layer]

        return keys_values

    def denoise(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: LayerText,
        cache: KVCache,
        action_modulation: Tensor | None = None,
    ) -> Tensor:
        """Velocity of the cache's next block, `[B, block, C, H, W]`; the past is only read. `text`: `text_cache`."""

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend_dense(query, *cache.attend_to(layer, key, value))

        return self._cached_pass(latents, timestep, text, cache, attend, action_modulation)

    def write(self, latents: Tensor, text: LayerText, cache: KVCache, action_modulation: Tensor | None = None) -> None:
        """Pass the cache's next block, now clean, at timestep 0, keep its keys and values, and advance the cache."""

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            attended = attend_dense(query, *cache.attend_to(layer, key, value))
            cache.write(layer, key, value)
            return attended

        timestep = latents.new_zeros(latents.shape[:2])
        self._cached_pass(latents, timestep, text, cache, attend, action_modulation)
        cache.advance()

    def _masked_pass(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        visibility: tuple[Visibility, ...],
        action_modulation: Tensor | None,
        positions: tuple[int, ...] | None = None,
    ) -> Tensor:
        tokens = self.tokens_per_frame(*latents.shape[-2:])
        chosen = choose_attention(visibility, tokens, latents.device)
        embedded = self._embed_text(text)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return chosen(query, key, value)

        def keys_values(layer: int, cross_attention: CrossAttention) -> KeysValues:
            return cross_attention.keys_values(embedded)

        positions = positions or tuple(range(latents.shape[1]))
        return self._run(latents, timestep, positions, attend, keys_values, action_modulation)

    def _cached_pass(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: LayerText,
        cache: KVCache,
        attend: LayerAttend,
        action_modulation: Tensor | None,
    ) -> Tensor:
        cache.require_block(latents.shape[1])
        return self._run(latents, timestep, tuple(cache.block), attend, text, action_modulation)

    def _run(
        self,
        latents: Tensor,
        timestep: Tensor,
        positions: tuple[int, ...],
        attend: LayerAttend,
        text: LayerText,
        action_modulation: Tensor | None,
    ) -> Tensor:
        height, width = latents.shape[-2:]
        self.tokens_per_frame(height, width)
        rows, columns = height // self.patch_size[1], width // self.patch_size[2]
        angles = rotation(positions, rows, columns, self.dim // self.num_heads, latents.device)
        time = self._embed_time(timestep)
        modulation = self.time_projection(time).unflatten(-1, (6, self.dim))
        x = rearrange(self.patch_embedding(latents.transpose(1, 2)), "b d f h w -> b f (h w) d")
        for index, layer in enumerate(self.blocks):
            x = self._apply_layer(
                layer,
                x,
                self._add_action(modulation, action_modulation, index),
                angles,
                partial(attend, index),
                partial(text, index),
            )
        patches = self.head(x, time)
        return rearrange(
            patches, "b f (h w) (p q c) -> b f c (h p) (w q)", h=rows, p=self.patch_size[1], q=self.patch_size[2]
        )

    def _apply_layer(
        self, layer: nn.Module, x: Tensor, modulation: Tensor, angles: Tensor, attend: Attend, text: TextKeysValues
    ) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, x, modulation, angles, attend, text, use_reentrant=False)
        return layer(x, modulation, angles, attend, text)

    def _add_action(self, modulation: Tensor, action_modulation: Tensor | None, layer: int) -> Tensor:
        if action_modulation is None:
            return modulation
        if action_modulation.ndim == 5:
            action_modulation = action_modulation[:, :, layer]
        if action_modulation.shape != modulation.shape:
            raise ValueError(
                f"action_modulation must be [B, F, 6, D] = {list(modulation.shape)}, or with num_layers = "
                f"{self.num_layers} before the 6; got {list(action_modulation.shape)} at layer {layer}"
            )
        return modulation + action_modulation

    def _embed_time(self, timestep: Tensor) -> Tensor:
        half = self.freq_dim // 2
        exponents = torch.arange(half, dtype=torch.float64, device=timestep.device) / half
        angles = timestep.double()[..., None] * 10000.0**-exponents
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.time_embedding(sinusoid.to(self.patch_embedding.weight.dtype))

    def _embed_text(self, text: Tensor) -> Tensor:
        length, channels = text.shape[1:]
        if length > self.text_len or channels != self.text_dim:
            raise ValueError(
                f"text must be [B, at most {self.text_len}, {self.text_dim}], got {list(text.shape)}: the text encoder "
                "and the generator do not belong together"
            )
        padding = text.new_zeros(text.shape[0], self.text_len - length, channels)
        return self.text_embedding(torch.cat([text, padding], dim=1))

"""The causal Wan transformer: latents, timesteps, text and actions in, velocity out.

The network is that of Wan (2025, arXiv:2503.20314); under block causality it is the student of CausVid (Yin et al.
2024, arXiv:2412.07772) and Self Forcing (Huang et al. 2025, arXiv:2506.08009).

Shapes: B batch, F latent frames, C channels, H x W latent size, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_action.generator.causality import (
    BlockCausality,
    Visibility,
    bidirectional,
    block_causal,
    teacher_forcing,
)
from lightning_action.generator.context import KeptContext, MaskedContext, OpaqueContext, TextCache
from lightning_action.generator.image import NO_IMAGE, ImageCondition
from lightning_action.generator.kv_cache import KVCache
from lightning_action.generator.layers import Context
from lightning_action.generator.network import WanNetwork


class CausalWanModel(WanNetwork):
    """A Wan video transformer with per-frame timesteps, in four modes that share every weight.

    The modes are `bidirectional` (teacher and critic of distribution matching distillation, Yin et al. 2023,
    arXiv:2311.18828), `block_causal` (diffusion forcing), `teacher_forcing` (clean and noisy frames in one pass), and
    `denoise` / `write` under a `KVCache`. `forward` is `bidirectional`. The defaults are those shared by all released
    models; width and depth differ from model to model and have none. Arguments are those of `WanNetwork`.
    """

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        action_modulation: Tensor | None = None,
        image: ImageCondition = NO_IMAGE,
    ) -> Tensor:
        """Predict with every frame seeing every frame: the original Wan, and teacher and critic of a distillation.

        Args:
            latents: Latents with noise, `[B, F, C, H, W]`.
            timestep: Noise level of each frame in [0, 1000], `[B, F]`.
            text: Prompts as encoded, `[B, L, text_dim]`, L at most `text_len`.
            action_modulation: Modulation that is added to that of time, `[B, F, 6, D]` for all layers alike or
                `[B, F, num_layers, 6, D]`; the order is shift, scale, gate (self-attention), shift, scale, gate
                (feed-forward).
            image: Condition that an image-to-video model sees besides.

        Returns:
            Velocity, `[B, F, out_dim, H, W]`.
        """
        return self._masked_pass(latents, timestep, text, bidirectional(latents.shape[1]), action_modulation, image)

    def block_causal(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        causality: BlockCausality,
        action_modulation: Tensor | None = None,
        image: ImageCondition = NO_IMAGE,
    ) -> Tensor:
        """Predict with each block seeing itself and its past, whatever its noise level; otherwise as `forward`."""
        visibility = block_causal(latents.shape[1], causality)
        return self._masked_pass(latents, timestep, text, visibility, action_modulation, image)

    def teacher_forcing(
        self,
        clean: Tensor,
        noisy: Tensor,
        timestep: Tensor,
        text: Tensor,
        causality: BlockCausality,
        action_modulation: Tensor | None = None,
        image: ImageCondition = NO_IMAGE,
        clean_timestep: Tensor | None = None,
    ) -> Tensor:
        """Predict noisy blocks that see the clean past (timestep 0, its own actions), as they do through a cache.

        One pass over `[clean | noisy]` trains all blocks at once, where generation takes them one by one.

        Args:
            clean: Latents without noise, `[B, F, C, H, W]`.
            noisy: Latents of the same video with noise, `[B, F, C, H, W]`.
            timestep: Noise level of the noisy half, `[B, F]`.
            text: Prompts as in `forward`.
            causality: Block size, window and sink.
            action_modulation: Modulation as in `forward`; it serves both halves.
            image: Condition as in `forward`; it serves both halves.
            clean_timestep: Noise level of each frame of the clean half, `[B, F]`, where a cache holds other keys and
                values than those that `write` computes, at 0.

        Returns:
            Velocity of the noisy half, `[B, F, out_dim, H, W]`.
        """
        num_frames = noisy.shape[1]
        visibility = teacher_forcing(num_frames, causality)
        both = torch.cat([clean, noisy], dim=1)
        levels = torch.zeros_like(timestep) if clean_timestep is None else clean_timestep
        timesteps = torch.cat([levels, timestep], dim=1)
        if action_modulation is not None:
            action_modulation = torch.cat([action_modulation, action_modulation], dim=1)
        # A noisy frame stands where its clean copy stands: its distance to the past is that of generation.
        positions = (*range(num_frames), *range(num_frames))
        twice = image.twice_in_time()
        return self._masked_pass(both, timesteps, text, visibility, action_modulation, twice, positions, num_frames)

    def text_cache(self, text: Tensor, image_embeds: Tensor | None = None) -> TextCache:
        """Embed prompts (and images), and compute the keys and values of them that each layer sees."""
        embedded = self._embed_prompt(text, image_embeds)
        return TextCache(tuple(layer.prompt(embedded) for layer in self._layers))

    def denoise(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: TextCache,
        cache: KVCache,
        action_modulation: Tensor | None = None,
        image_channels: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity of the cache's next block, `[B, block, C, H, W]`; the past is only read.

        Args:
            latents: Block with noise, `[B, block, C, H, W]`.
            timestep: Noise level of each frame, `[B, block]`.
            text: Prompts from `text_cache`.
            cache: Keys and values of the past frames.
            action_modulation: Modulation of the block, as in `forward`.
            image_channels: Channels of the block, as in `ImageCondition`.
        """
        cache.require_block(latents.shape[1])
        turned, contexts = self.rotation(cache.block, latents), OpaqueContext.of_layers(cache, text)
        return self.denoise_in(contexts, latents, timestep, turned, action_modulation, image_channels)

    def denoise_in(
        self,
        contexts: Sequence[Context],
        latents: Tensor,
        timestep: Tensor,
        rotation: Tensor,
        action_modulation: Tensor | None = None,
        image_channels: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity of a block as `denoise` does, from tensors alone: what a whole pass is compiled from.

        Args:
            contexts: Frames and prompt that the tokens of each layer attend to.
            latents: Block with noise, `[B, block, C, H, W]`.
            timestep: Noise level of each frame, `[B, block]`.
            rotation: Rotation of the block's positions, from `rotation`.
            action_modulation: Modulation of the block, as in `forward`.
            image_channels: Channels of the block, as in `ImageCondition`.
        """
        embedded = self._embed(latents, timestep, rotation, action_modulation, image_channels)
        return self._velocity(self._through_layers(embedded, contexts), embedded)

    def denoise_after(
        self,
        past: Sequence[tuple[Tensor, Tensor]],
        frames: range,
        latents: Tensor,
        timestep: Tensor,
        text: TextCache,
        action_modulation: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity of a block as `denoise` does, with gradient, but for what the past was computed from.

        Args:
            past: Keys and values of each past frame that the block sees, from `KVCache.of_frame`.
            frames: Latent frames of the block in the video.
            latents: Block with noise, `[B, block, C, H, W]`.
            timestep: Noise level of each frame, `[B, block]`.
            text: Prompts from `text_cache`.
            action_modulation: Modulation of the block, as in `forward`.
        """
        contexts = [
            KeptContext(tuple((keys[layer], values[layer]) for keys, values in past), prompt)
            for layer, prompt in enumerate(text.layers)
        ]
        turned = self.rotation(frames, latents)
        return self.denoise_in(contexts, latents, timestep, turned, action_modulation)

    def write(
        self,
        latents: Tensor,
        text: TextCache,
        cache: KVCache,
        action_modulation: Tensor | None = None,
        image_channels: Tensor | None = None,
        timestep: Tensor | None = None,
    ) -> None:
        """Pass the cache's next block, now clean, at timestep 0, keep its keys and values, and advance the cache.

        It is one pass more for each block: what the last step of denoising computed came from a block with noise, and
        at another timestep than the past has in `teacher_forcing`. A `timestep` `[B, block]` is for a block with noise.
        """
        if timestep is None:
            timestep = torch.zeros(latents.shape[:2], device=latents.device)
        cache.require_block(latents.shape[1])
        # Positions are those in the video, not in this call: a block goes on where its past stopped.
        turned = self.rotation(cache.block, latents)
        embedded = self._embed(latents, timestep, turned, action_modulation, image_channels)
        *contexts, last = OpaqueContext.of_layers(cache, text)
        tokens = self._through_layers(embedded, contexts)
        self._layers[-1].write(tokens, embedded.modulation_of(len(contexts)), embedded.rotation, last)
        cache.advance()

    def _masked_pass(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        visibility: tuple[Visibility, ...],
        action_modulation: Tensor | None,
        image: ImageCondition,
        positions: Sequence[int] | None = None,
        first_out: int = 0,
    ) -> Tensor:
        positions = positions or range(latents.shape[1])
        turned = self.rotation(positions, latents)
        embedded = self._embed(latents, timestep, turned, action_modulation, image.channels)
        prompt = self._embed_prompt(text, image.embeds)
        context = MaskedContext(visibility, embedded.tokens.shape[2], prompt, self.flex_on_cuda)
        return self._velocity(self._through_layers(embedded, [context] * self.num_layers), embedded, first_out)

"""The network of Wan: sizes, weights, and the way from latents, timesteps and text through the layers to a velocity.

It is that of Wan (2025, arXiv:2503.20314) with a timestep for each frame; `CausalWanModel` says which frames see which.

Shapes: B batch, F latent frames, C channels, H x W latent size, S = (H / p)(W / p) tokens a frame, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from lightning_action.generator.acceleration import allow_many_codes
from lightning_action.generator.checkpointing import Checkpointing, checkpointed
from lightning_action.generator.image import ImageEmbedding, join_channels
from lightning_action.generator.layers import Context, Head, WanLayer, sinusoid
from lightning_action.generator.prompt import EmbeddedPrompt, pad, padding_bias
from lightning_action.generator.rope import rotation
from lightning_action.ranges import require_numbers


@dataclass(frozen=True)
class Embedded:
    """Inputs of the layers: tokens `[B, F, S, D]`, modulation `[B, F, 6, D]` of all or each, rotation, and time.

    And what they were made of: latents, and timesteps `[B, F]`.
    """

    tokens: Tensor
    modulations: tuple[Tensor, ...]
    rotation: Tensor
    time: Tensor
    latents: Tensor
    timestep: Tensor

    def modulation_of(self, layer: int) -> Tensor:
        """Return the modulation of a layer, `[B, F, 6, D]`."""
        return self.modulations[layer if len(self.modulations) > 1 else 0]


class WanNetwork(nn.Module):
    """Weights of a Wan video transformer, and what they compute of given contexts.

    Args:
        dim: Width D of the tokens.
        ffn_dim: Width of the feed-forward layers inside.
        num_heads: Number of attention heads; `dim / num_heads` must be even.
        num_layers: Number of transformer layers.
        in_dim: Number of channels in: those of the latents, and behind them those of an image condition.
        out_dim: Number of latent channels out.
        patch_size: Numbers of latent frames, rows and columns of one token; the first must be 1.
        freq_dim: Number of channels of the sinusoidal timestep embedding.
        text_dim: Number of channels of the text encoder's output.
        text_len: Number of tokens of a prompt; shorter ones are filled up with zeros, which are attended to, as Wan
            does.
        qk_norm: Apply an RMS norm to queries and keys.
        cross_attn_norm: Apply an affine norm before cross-attention.
        eps: Epsilon of all norms.
        activation_checkpointing: Recompute each layer in the backward pass instead of storing its activations;
            `keep_attention` stores what both attentions give, `[B, N, D]` each, and recomputes the rest.
        image_dim: Number of channels of CLIP's hidden states of an image that the layers see beside the prompt (1280 in
            Wan 2.1's image-to-video models); None for models without.
        num_image_positions: Number of image tokens with a learned position (514 where first and last frame are given).
        flex_on_cuda: Use FlexAttention on CUDA where frames see different frames; False makes one call of scaled
            dot-product attention for each block there, as on other devices.
        preconditioned: Let the network give what of the velocity its noisy input does not tell by itself, as
            `velocity_from_residual` says; for small models that learn from nothing. Released models are not.

    Raises:
        ValueError: Sizes do not go together, or what FlexAttention gives should be kept, which is compiled.
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
        activation_checkpointing: Checkpointing = False,
        image_dim: int | None = None,
        num_image_positions: int | None = None,
        flex_on_cuda: bool = True,
        preconditioned: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "ffn_dim": ffn_dim, "num_heads": num_heads, "num_layers": num_layers}
        channels = {"in_dim": in_dim, "out_dim": out_dim, "text_dim": text_dim, "text_len": text_len}
        require_numbers(sizes | channels, 1, whole=True)
        require_numbers({"freq_dim": freq_dim}, 2, whole=True)
        require_numbers({"eps": eps}, 0, without_low=True)
        require_numbers({f"patch_size[{place}]": size for place, size in enumerate(patch_size)}, 1, whole=True)
        if freq_dim % 2:
            raise ValueError(f"freq_dim must be even, sines and cosines, got {freq_dim}")
        if dim % num_heads or (dim // num_heads) % 2:
            raise ValueError(f"dim / num_heads must be an even whole number, got {dim} / {num_heads}")
        if len(patch_size) != 3 or patch_size[0] != 1:
            raise ValueError(f"patch_size must be (1, rows, columns), got {tuple(patch_size)}")
        if activation_checkpointing == "keep_attention" and flex_on_cuda:
            raise ValueError(
                "activation_checkpointing: keep_attention cannot keep what FlexAttention gives, which is "
                "compiled: set flex_on_cuda: false beside it"
            )
        self.dim, self.ffn_dim, self.num_heads, self.num_layers = dim, ffn_dim, num_heads, num_layers
        self.in_dim, self.out_dim, self.patch_size = in_dim, out_dim, (1, patch_size[1], patch_size[2])
        self.freq_dim, self.text_dim, self.text_len = freq_dim, text_dim, text_len
        self.image_dim, self.preconditioned = image_dim, preconditioned
        self.activation_checkpointing, self.flex_on_cuda = activation_checkpointing, flex_on_cuda

        self.patch_embedding = nn.Conv3d(in_dim, dim, kernel_size=self.patch_size, stride=self.patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(
            WanLayer(dim, ffn_dim, num_heads, qk_norm, cross_attn_norm, eps, image_dim is not None)
            for _ in range(num_layers)
        )
        self.head = Head(dim, out_dim * patch_size[1] * patch_size[2], eps)
        self.img_emb = None if image_dim is None else ImageEmbedding(image_dim, dim, num_image_positions)
        self.init_weights()

    @property
    def head_dim(self) -> int:
        """Number of channels of an attention head."""
        return self.dim // self.num_heads

    @property
    def traits(self) -> dict[str, str]:
        """Traits that the shapes of the weights do not tell, and files that hold them say beside."""
        return {"num_heads": str(self.num_heads), "preconditioned": str(self.preconditioned)}

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

    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Modules that hold the weights, by name: the embeddings, each layer, and the head, all called as modules."""
        for name, child in self.named_children():
            if child is self.blocks:
                yield from ((f"{name}.{index}", layer) for index, layer in enumerate(self.blocks))
            else:
                yield name, child

    def compile_layers(self, **options: Any) -> None:
        """Compile the layers in place, one code for all of them, wherever a block stands; names of weights stay.

        Each size of latents has a code of its own: one for all would be slower for every block.

        Args:
            **options: Options of `torch.compile`, for example `mode="max-autotune-no-cudagraphs"`.
        """
        allow_many_codes()
        for layer in self.blocks:
            layer.compile(**{"dynamic": False, **options})

    def tokens_per_frame(self, height: int, width: int) -> int:
        """Tokens of one latent frame.

        Raises:
            ValueError: The frame is not a whole number of patches.
        """
        _, rows, columns = self.patch_size
        if height % rows or width % columns:
            raise ValueError(
                f"latent frames of {height} x {width} are not a whole number of patches of {rows} x {columns}"
            )
        return (height // rows) * (width // columns)

    def require_action_modulation(self, action_modulation: Tensor, batch_size: int, num_frames: int) -> None:
        """Refuse modulation that is not for so many videos and latent frames of this generator.

        Raises:
            ValueError: The modulation has another shape.
        """
        shared = [batch_size, num_frames, 6, self.dim]
        per_layer = [batch_size, num_frames, self.num_layers, 6, self.dim]
        if list(action_modulation.shape) not in (shared, per_layer):
            raise ValueError(
                f"action_modulation must be [B, F, 6, D], here modulation {shared} or {per_layer}, the latter with "
                f"num_layers = {self.num_layers} before the 6; got {list(action_modulation.shape)}"
            )

    def rotation(self, positions: Sequence[int], latents: Tensor) -> Tensor:
        """Return the rotation of all tokens of latents `[B, F, C, H, W]` at F positions in the video."""
        rows, columns = (size // patch for size, patch in zip(latents.shape[-2:], self.patch_size[1:], strict=True))
        return rotation(positions, rows, columns, self.head_dim, latents.device)

    def _embed(
        self,
        latents: Tensor,
        timestep: Tensor,
        rotation: Tensor,
        action_modulation: Tensor | None,
        image_channels: Tensor | None,
    ) -> Embedded:
        self.tokens_per_frame(*latents.shape[-2:])
        time = self.time_embedding(sinusoid(timestep, self.freq_dim).to(self.patch_embedding.weight.dtype))
        modulation = self.time_projection(time).unflatten(-1, (1, 6, self.dim))
        if action_modulation is not None:
            self.require_action_modulation(action_modulation, *modulation.shape[:2])
            # A sum, so that no action (exactly zero) leaves the base model's modulation as it is, to the bit.
            modulation = modulation + (
                action_modulation if action_modulation.ndim == 5 else action_modulation[:, :, None]
            )
        patches = self.patch_embedding(join_channels(latents, image_channels, self.in_dim).transpose(1, 2))
        return Embedded(
            # Layers keep the order in memory that they find, and every norm would copy tokens in another.
            tokens=rearrange(patches, "b d f h w -> b f (h w) d").contiguous(),
            # Apart at once: the gradient of each one's slice would be as large as all of them.
            modulations=modulation.unbind(2),
            rotation=rotation,
            time=time,
            latents=latents,
            timestep=timestep,
        )

    @property
    def _layers(self) -> list[WanLayer]:
        return cast("list[WanLayer]", list(self.blocks))

    def _through_layers(self, embedded: Embedded, contexts: Sequence[Context]) -> Tensor:
        """Pass the first layers, one for each context."""
        tokens = embedded.tokens
        for index, context in enumerate(contexts):
            arguments = tokens, embedded.modulation_of(index), embedded.rotation, context
            if self.activation_checkpointing and torch.is_grad_enabled():
                keeps_attention = self.activation_checkpointing == "keep_attention"
                tokens = checkpointed(self.blocks[index], *arguments, keeps_attention)
            else:
                tokens = self.blocks[index](*arguments)
        return tokens

    def _velocity(self, tokens: Tensor, embedded: Embedded, first_out: int = 0) -> Tensor:
        """Velocity of the frames from `first_out` on."""
        # The clean half of teacher forcing is context alone; nothing is predicted for it.
        patches = self.head(tokens[:, first_out:], embedded.time[:, first_out:])
        rows, columns = self.patch_size[1:]
        noisy, num_rows = embedded.latents[:, first_out:], embedded.latents.shape[-2] // rows
        output = rearrange(patches, "b f (h w) (p q c) -> b f c (h p) (w q)", h=num_rows, p=rows, q=columns)
        if self.preconditioned:
            return velocity_from_residual(output, noisy, embedded.timestep[:, first_out:])
        # Of a single token a frame it is a view still, and FSDP2 wants no view out of a module.
        return output.contiguous()

    def _embed_prompt(self, text: Tensor, image_embeds: Tensor | None) -> EmbeddedPrompt:
        if text.shape[1] > self.text_len or text.shape[2] != self.text_dim:
            raise ValueError(
                f"text must be [B, at most {self.text_len}, {self.text_dim}], got {list(text.shape)}: the text encoder "
                "and the generator do not belong together"
            )
        if (image_embeds is None) != (self.img_emb is None):
            raise ValueError(
                f"this generator needs the CLIP embeds of an image: pass image embeds [B, 257, {self.image_dim}]"
                if image_embeds is None
                else "image embeds came, but this generator has no image_dim: pass none, or use an image-to-video model"
            )
        embedded = self.text_embedding(pad(text, self.text_len))
        bias = padding_bias(text.shape[1], embedded.shape[1], self.text_len, embedded.device, embedded.dtype)
        return EmbeddedPrompt(embedded, bias, None if self.img_emb is None else self.img_emb(image_embeds))


def velocity_from_residual(residual: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
    """Add to what a network gives the best linear guess of the velocity from its noisy input.

    It is the preconditioning of EDM (Karras et al. 2022, arXiv:2206.00364, section 5 and appendix B.6) for the straight
    line of flow matching. With `noisy = (1 - s) clean + s noise`, all of variance 1, and `n = s^2 + (1 - s)^2`:

    `velocity = noise - clean = (2 s - 1) / n * noisy + residual / sqrt(n)`.

    The residual, `((1 - s) noise - s clean) / sqrt(n)`, has variance 1 at every noise level and nothing in common with
    `noisy`: at pure noise it is the clean latents, negated, and no noise has to pass through the network.

    Args:
        residual: Output of the network, `[B, F, C, H, W]`.
        noisy: Latents that it saw, of the same shape.
        timestep: Noise level of each frame in [0, 1000], `[B, F]`.

    Returns:
        Velocity, in the dtype of the residual.
    """
    sigma = (timestep.float() / 1000)[..., None, None, None]
    norm = sigma.square() + (1 - sigma).square()
    return ((2 * sigma - 1) / norm * noisy + residual / norm.sqrt()).to(residual.dtype)

"""Ready action modules: networks that infer the next action vector from the latents so far.

Each is called as `module(historical_frames)` with latents `[B, F', C, H, W]`, F' >= 1, and gives `[B, action_dim]`;
any callable with that signature serves in their place. They train inside `ActionVideoModule` (its `action_module`).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_action.action.conditioning import InferActions


class ConvActionModule(nn.Module):
    """Reads motion off the last latent frames: two 3-D convolutions, a mean over space and time, a linear layer.

    The module is this project's own.

    Args:
        latent_dim: Number of latent channels C.
        action_dim: Width of the action vector.
        hidden_dim: Number of channels of the convolutions.
        num_frames: Number of latent frames it looks back; a shorter history is filled up by repeating its first frame,
            as if nothing had moved before.
    """

    def __init__(self, latent_dim: int, action_dim: int, hidden_dim: int = 64, num_frames: int = 6) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.convolutions = nn.Sequential(
            nn.Conv3d(latent_dim, hidden_dim, kernel_size=3, padding=1),
            nn.SiLU(),
            nn.Conv3d(hidden_dim, hidden_dim, kernel_size=3, padding=1, stride=(1, 2, 2)),
            nn.SiLU(),
        )
        self.to_action = nn.Linear(hidden_dim, action_dim)

    def forward(self, historical_frames: Tensor) -> Tensor:
        """Latents so far `[B, F', C, H, W]` to `[B, action_dim]`."""
        recent = historical_frames[:, -self.num_frames :]
        missing = self.num_frames - recent.shape[1]
        recent = torch.cat([recent[:, :1].expand(-1, missing, -1, -1, -1), recent], dim=1)
        return self.to_action(self.convolutions(recent.transpose(1, 2)).mean(dim=(2, 3, 4)))


class DiscreteActionModule(nn.Module):
    """Reads the history as a sentence of learned discrete actions and says which action vector comes next.

    What changed from each latent frame to the next is quantized to one of `num_codes` actions, and a GRU reads their
    sequence (Cho et al. 2014, arXiv:1406.1078). The codes are chosen hard; gradient passes straight through to the
    softmax behind the choice (Bengio et al. 2013, arXiv:1308.3432). Where past actions are known as ids (keys,
    buttons), `encode_codes` takes them directly.

    Args:
        latent_dim: Number of latent channels C.
        action_dim: Width of the action vector.
        num_codes: Number of discrete actions that it tells apart.
        hidden_dim: Number of channels of the convolution, of a code's embedding and of the GRU.
    """

    def __init__(self, latent_dim: int, action_dim: int, num_codes: int = 16, hidden_dim: int = 64) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.change = nn.Conv2d(2 * latent_dim, hidden_dim, kernel_size=3, padding=1)
        self.norm = nn.LayerNorm(hidden_dim)
        self.to_logits = nn.Linear(hidden_dim, num_codes)
        self.embedding = nn.Linear(num_codes, hidden_dim, bias=False)
        self.gru = nn.GRU(hidden_dim, hidden_dim, batch_first=True)
        self.to_action = nn.Linear(hidden_dim, action_dim)

    def forward(self, historical_frames: Tensor) -> Tensor:
        """Latents so far `[B, F', C, H, W]` to `[B, action_dim]`."""
        probabilities = self._logits(historical_frames).softmax(dim=-1)
        chosen = F.one_hot(probabilities.argmax(dim=-1), self.num_codes).to(probabilities)
        return self._encode(chosen + probabilities - probabilities.detach())

    def codes(self, historical_frames: Tensor) -> Tensor:
        """Name the actions that it sees, `[B, F']` in 0 ... num_codes - 1; before the first frame nothing changed."""
        return self._logits(historical_frames).argmax(dim=-1)

    def encode_codes(self, codes: Tensor) -> Tensor:
        """Read ids of past actions `[B, n]`, n >= 1, and give the next action vector `[B, action_dim]`."""
        return self._encode(F.one_hot(codes, self.num_codes).to(self.embedding.weight))

    def _logits(self, frames: Tensor) -> Tensor:
        now = frames.flatten(0, 1)
        before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1).flatten(0, 1)
        # Less the response to a standstill, so that what tells the codes apart is the change and not the picture.
        change = self._response(now, before) - self._response(before, before)
        return self.to_logits(self.norm(change)).unflatten(0, frames.shape[:2])

    def _response(self, now: Tensor, before: Tensor) -> Tensor:
        return F.silu(self.change(torch.cat([now, before], dim=1))).mean(dim=(2, 3))

    def _encode(self, one_hot: Tensor) -> Tensor:
        return self.to_action(self.gru(self.embedding(one_hot))[0][:, -1])


class VisualTextActionModule(nn.Module):
    """Module that acts on what it sees and what the prompt asks for: the last frames query the prompt's tokens.

    Queries, keys and values are those of attention (Vaswani et al. 2017, arXiv:1706.03762); the module is this
    project's own.

    Args:
        latent_dim: Number of latent channels C.
        text_dim: Number of channels of the text encoder's output.
        action_dim: Width of the action vector.
        hidden_dim: Number of channels inside.
        num_heads: Number of heads of the attention from frames to prompt.
        num_frames: Number of latent frames it looks back, as in `ConvActionModule`.
    """

    def __init__(
        self,
        latent_dim: int,
        text_dim: int,
        action_dim: int,
        hidden_dim: int = 64,
        num_heads: int = 4,
        num_frames: int = 6,
    ) -> None:
        super().__init__()
        self.visual = ConvActionModule(latent_dim, hidden_dim, hidden_dim, num_frames)
        self.text = nn.Linear(text_dim, hidden_dim)
        self.no_text = nn.Parameter(torch.zeros(1, 1, hidden_dim))
        self.attention = nn.MultiheadAttention(hidden_dim, num_heads, batch_first=True)
        self.to_action = nn.Sequential(
            nn.Linear(2 * hidden_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, action_dim)
        )

    def forward(self, historical_frames: Tensor, text: Tensor | None = None) -> Tensor:
        """Latents so far `[B, F', C, H, W]` and encoded prompts `[B, L, text_dim]` to `[B, action_dim]`."""
        seen = self.visual(historical_frames)
        read = self._read(
            seen, historical_frames.new_zeros(len(seen), 0, self.text.in_features) if text is None else text
        )
        return self.to_action(torch.cat([seen, read], dim=-1))

    def with_text(self, text: Tensor) -> InferActions:
        """Return the module as a function of the frames alone, for the videos of these prompts."""
        return partial(self, text=text)

    def _read(self, seen: Tensor, text: Tensor) -> Tensor:
        """Look up in the prompt what the frames ask for. A learned token is always there, as prompts may be empty."""
        tokens = torch.cat([self.no_text.expand(len(seen), -1, -1), self.text(text)], dim=1)
        padding = F.pad((text == 0).all(dim=-1), (1, 0))  # rows past a prompt's end are zero
        return self.attention(seen[:, None], tokens, tokens, key_padding_mask=padding, need_weights=False)[0][:, 0]

"""Protocol of a world of `SpriteDataModule`: drawn from seeds, moved by actions, rendered, and its state read back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_action.action.schema import ActionSchema


class World(ABC):
    """A simulator whose state is one position; worlds at pixel frame 0, `start`, are whatever it likes.

    An action row k leads from pixel frame k to k + 1 (the `transition` alignment).
    """

    @abstractmethod
    def action_schema(self, temporal_compression_ratio: int = 4) -> ActionSchema:
        """Describe this world's actions."""

    @abstractmethod
    def start(self, seeds: Sequence[int]) -> Any:
        """Draw worlds at pixel frame 0, each from its seed alone; their `prompts` say what is to be seen."""

    @abstractmethod
    def sample_actions(self, seeds: Sequence[int], num_steps: int) -> Tensor:
        """Draw action rows, `[B, num_steps, columns]`."""

    def simulate(self, start: Any, actions: Tensor) -> Tensor:
        """Compute positions in pixels under action rows `[B, T - 1, columns]`: `[B, T, 2]`, frame 0 the start."""
        path: Tensor = start.position[:, None]
        return torch.cat([path, self.go_on(path, actions)], dim=1)

    @abstractmethod
    def go_on(self, path: Tensor, actions: Tensor) -> Tensor:
        """Compute where action rows `[B, t, columns]` lead behind positions so far, `[B, T, 2]`: `[B, t, 2]`.

        The last two positions say all that matters.
        """

    @abstractmethod
    def render(self, start: Any, positions: Tensor, first_frame: int = 0) -> Tensor:
        """Render video `[B, T, 3, H, W]` in [-1, 1] at `positions` `[B, T, 2]`, the first of them at `first_frame`."""

    @abstractmethod
    def locate(self, start: Any, video: Tensor) -> tuple[Tensor, Tensor]:
        """Read positions `[B, T, 2]` off any video of these worlds, and whether they can be told, `[B, T]` bool."""

"""A DiT that can be probed for the influence of its actions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.support.someones_dit import SomeonesDiT


class Probed(SomeonesDiT):
    """The DiT with the method that the callback asks for; dropout and batch norm would show a probe in train mode."""

    def __init__(self, ignores_actions: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignores_actions = ignores_actions
        self.norm = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))

    def predict_velocity(self, batch: dict[str, Any], timestep: float, seed: int) -> tuple[Tensor, Tensor]:
        assert not self.training and not torch.is_grad_enabled()
        random = torch.Generator().manual_seed(seed)
        self.norm(torch.randn(4, 3))  # moves the global random state, and would move the statistics
        action = batch["action"]
        if action is None or self.ignores_actions:
            action = torch.zeros(batch["latents"].shape[:2] + (2,))
        noised = {
            "latents": batch["latents"],
            "timestep": torch.full(batch["latents"].shape[:2], timestep),
            "noise": torch.randn(batch["latents"].shape, generator=random),
        }
        predicted, velocity = self(noised, action)
        return predicted, velocity

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        outputs = super().training_step(batch, batch_idx)
        loss = outputs["loss"] + 0 * self.norm(torch.randn(4, 3)).sum() + 1e-3 * torch.rand(()) * outputs["loss"]
        return outputs | {"loss": loss}

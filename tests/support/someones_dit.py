"""A diffusion transformer that is not ours, as other people write them, with the data it trains on.

Like Wan's, its layers are modulated by six slots that a time projection, a table of each layer and an action projection
add up to; the names of its parts are its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Dataset

NUM_FRAMES, TOKENS, CHANNELS, ACTION_DIM = 3, 5, 4, 2
DIM, NUM_LAYERS = 8, 2


class Layer(nn.Module):
    """Feed-forward twice, each with a shift, a scale and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 6, DIM) / DIM**0.5)
        self.mix = nn.Sequential(nn.Linear(DIM, DIM), nn.GELU())
        self.feed_forward = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        slots = (self.table + modulation)[:, :, None].unbind(dim=-2)
        x = x + slots[2] * self.mix(F.layer_norm(x, (DIM,)) * (1 + slots[1]) + slots[0])
        return x + slots[5] * self.feed_forward(F.layer_norm(x, (DIM,)) * (1 + slots[4]) + slots[3])


class SomeonesTransformer(nn.Module):
    """Latents `[B, F, TOKENS, CHANNELS]`, timestep `[B, F]` and action modulation `[B, F, 6, DIM]` to velocity."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(CHANNELS, DIM)
        self.time_mlp = nn.Sequential(nn.Linear(1, DIM), nn.SiLU(), nn.Linear(DIM, 6 * DIM))
        self.layers = nn.ModuleList(Layer() for _ in range(NUM_LAYERS))
        self.out = nn.Linear(DIM, CHANNELS)

    def forward(self, latents: Tensor, timestep: Tensor, action_modulation: Tensor) -> Tensor:
        time = self.time_mlp(timestep[..., None] / 1000).unflatten(-1, (6, DIM))
        x = self.embed(latents)
        for index, layer in enumerate(self.layers):
            of_layer = action_modulation[:, :, index] if action_modulation.ndim == 5 else action_modulation
            x = layer(x, time + of_layer)
        velocity: Tensor = self.out(x)
        return velocity


class ActionEncoder(nn.Module):
    """Actions `[B, F, ACTION_DIM]` to modulation `[B, F, 6, DIM]`, or `[B, F, NUM_LAYERS, 6, DIM]`."""

    def __init__(self, per_layer: bool = False, zero_init: bool = True) -> None:
        super().__init__()
        self.shape = (NUM_LAYERS, 6, DIM) if per_layer else (6, DIM)
        self.hidden = nn.Sequential(nn.Linear(ACTION_DIM, DIM), nn.SiLU())
        self.last = nn.Linear(DIM, 6 * DIM * (NUM_LAYERS if per_layer else 1))
        if zero_init:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, action: Tensor) -> Tensor:
        modulation: Tensor = self.last(self.hidden(action)).unflatten(-1, self.shape)
        return modulation


class SomeonesDiT(LightningModule):
    """Flow matching with actions; the loss of every frame is handed out with its timestep."""

    def __init__(
        self,
        per_layer: bool = False,
        zero_init: bool = True,
        learning_rate: float = 1e-2,
        weights: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.per_layer, self.zero_init, self.learning_rate, self.weights = per_layer, zero_init, learning_rate, weights
        self.transformer: SomeonesTransformer | None = None
        self.action_encoder: ActionEncoder | None = None

    def configure_model(self) -> None:
        if self.transformer is not None:
            return
        torch.manual_seed(7)
        self.transformer = SomeonesTransformer().to(self.weights)
        self.action_encoder = ActionEncoder(self.per_layer, self.zero_init).to(self.weights)
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            for part in (*self.transformer.layers, self.transformer, self.action_encoder):
                fully_shard(part, mesh=mesh)

    def forward(self, batch: dict[str, Tensor], action: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and true velocity."""
        assert self.transformer is not None and self.action_encoder is not None
        batch = {name: values.to(self.weights) for name, values in batch.items()}
        sigma = batch["timestep"][..., None, None] / 1000
        noisy = (1 - sigma) * batch["latents"] + sigma * batch["noise"]
        predicted = self.transformer(noisy, batch["timestep"], self.action_encoder(action.to(self.weights)))
        return predicted, batch["noise"] - batch["latents"]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        predicted, velocity = self(batch, batch["action"])
        per_frame = (predicted - velocity).square().mean(dim=(2, 3))
        return {"loss": per_frame.mean(), "loss_per_frame": per_frame.detach(), "timestep": batch["timestep"]}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        assert self.transformer is not None and self.action_encoder is not None
        groups = [
            {"name": "action", "params": self.action_encoder.parameters()},
            {"name": "backbone", "params": self.transformer.parameters()},
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate)


class MovingSpots(Dataset[dict[str, Tensor]]):
    """Latents that are the sum of the actions so far, with noise and timesteps: everything follows from the index."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index >= self.num_samples:
            raise IndexError(index)
        random = torch.Generator().manual_seed(index)
        action = torch.randn(NUM_FRAMES, ACTION_DIM, generator=random)
        moved = action.cumsum(dim=0).repeat(1, CHANNELS // ACTION_DIM)
        return {
            "latents": moved[:, None].expand(-1, TOKENS, -1).clone(),
            "action": action,
            "noise": torch.randn(NUM_FRAMES, TOKENS, CHANNELS, generator=random),
            "timestep": 1000 * torch.rand(NUM_FRAMES, generator=random),
        }


def moving_spots(num_samples: int = 12, batch_size: int = 2) -> DataLoader[dict[str, Tensor]]:
    """Batches in a fixed order."""
    return DataLoader(MovingSpots(num_samples), batch_size=batch_size)

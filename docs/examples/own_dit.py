"""Someone's own diffusion transformer with callbacks: `python docs/examples/own_dit.py --max_steps 300`.

Nothing here is ours but the callbacks. Its parts have names of their own, which the callbacks are told; and it has the
methods that they ask for, `predict_velocity` and `generate`. `tensorboard --logdir <output>` shows what they see.
"""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_action.callbacks import (
    EMA,
    ActionModulationMonitor,
    ActionSensitivity,
    DriftMonitor,
    FreezeBackboneFirst,
    GradientStatistics,
    NoiseLevelLoss,
    RolloutLogger,
    TensorBoardLayout,
    ThroughputMonitor,
)

NUM_FRAMES, SIDE, PATCH, DIM, NUM_LAYERS = 4, 8, 4, 32, 2
Batch = dict[str, Tensor]


class MovingDot(Dataset[dict[str, Tensor]]):
    """`video` `[4, 3, 8, 8]` in [-1, 1] of a dot that moves as `action` `[4, 2]` says, by (x, y), on a torus.

    The first row of `action` is zero: the first frame is where the dot is.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples = num_samples
        self.seed = seed

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(self.seed * self.num_samples + index)
        action = torch.randint(-2, 3, (NUM_FRAMES, 2), generator=random)
        action[0] = 0
        start = torch.randint(SIDE, (2,), generator=random)
        video = -torch.ones(NUM_FRAMES, 3, SIDE, SIDE)
        for frame, (x, y) in zip(video, ((start + action.cumsum(dim=0)) % SIDE).tolist(), strict=True):
            frame[:, [y, y, y - 1, y - 1], [x, x - 1, x, x - 1]] = 1
        return {"video": video, "action": action.float()}


class Layer(nn.Module):
    """Attention and feed-forward, each with a shift, a scale and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, DIM) / DIM**0.5)
        self.attention = nn.MultiheadAttention(DIM, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * DIM, DIM))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Tokens `[B, F * N, DIM]` and the modulation of each frame, `[B, F, 6, DIM]`."""
        num_tokens = x.shape[1] // modulation.shape[1]
        slots = (self.table + modulation).repeat_interleave(num_tokens, dim=1).unbind(dim=2)
        hidden = F.layer_norm(x, (DIM,)) * (1 + slots[1]) + slots[0]
        x = x + slots[2] * self.attention(hidden, hidden, hidden, need_weights=False)[0]
        hidden = F.layer_norm(x, (DIM,)) * (1 + slots[4]) + slots[3]
        out: Tensor = x + slots[5] * self.mlp(hidden)
        return out


class Transformer(nn.Module):
    """Noisy video `[B, F, 3, 8, 8]`, timestep `[B, F]` and modulation by actions `[B, F, 6, DIM]` to velocity."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * PATCH**2, DIM)
        self.place = nn.Parameter(0.1 * torch.randn((SIDE // PATCH) ** 2, DIM))
        self.time_projection = nn.Sequential(nn.Linear(1, DIM), nn.SiLU(), nn.Linear(DIM, 6 * DIM))
        self.layers = nn.ModuleList(Layer() for _ in range(NUM_LAYERS))
        self.out = nn.Linear(DIM, 3 * PATCH**2)

    def forward(self, video: Tensor, timestep: Tensor, action_modulation: Tensor) -> Tensor:
        batch_size, num_frames = timestep.shape
        patches = F.pixel_unshuffle(video, PATCH).flatten(3).transpose(2, 3)
        tokens = self.embed(patches) + self.place + _frame_embedding(num_frames).to(video)[:, None]
        x = tokens.flatten(1, 2)
        modulation = self.time_projection(timestep[..., None] / 1000).unflatten(-1, (6, DIM)) + action_modulation
        for layer in self.layers:
            x = layer(x, modulation)
        patches = self.out(F.layer_norm(x, (DIM,))).reshape(batch_size, num_frames, -1, 3 * PATCH**2)
        side = SIDE // PATCH
        return F.pixel_shuffle(patches.transpose(2, 3).unflatten(-1, (side, side)), PATCH)


def _frame_embedding(num_frames: int) -> Tensor:
    angles = torch.arange(num_frames)[:, None] / 100 ** torch.linspace(0, 1, DIM // 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ActionEncoder(nn.Module):
    """Actions `[B, F, 2]` to modulation `[B, F, 6, DIM]`, zero at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(2, DIM), nn.SiLU())
        self.last = nn.Linear(DIM, 6 * DIM)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, action: Tensor) -> Tensor:
        modulation: Tensor = self.last(self.hidden(action)).unflatten(-1, (6, DIM))
        return modulation


class OwnDiT(LightningModule):
    """Flow matching on pixels: the first frame is given, the others follow from it and from the actions."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = Transformer()
        self.action_encoder = ActionEncoder()

    def forward(self, noisy: Tensor, first: Tensor, timestep: Tensor, action: Tensor | None) -> Tensor:
        """Velocity of frames `[B, F - 1, 3, 8, 8]` at noise levels `[B, F - 1]` after the clean first one."""
        video = torch.cat([first, noisy], dim=1)
        timestep = F.pad(timestep, (1, 0))
        modulation = video.new_zeros(1, 1, 6, DIM) if action is None else self.action_encoder(action)
        velocity: Tensor = self.transformer(video, timestep, modulation)[:, 1:]
        return velocity

    def velocities(self, batch: dict[str, Any], timestep: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and true, of all frames but the first."""
        first, later = batch["video"][:, :1], batch["video"][:, 1:]
        sigma = timestep[..., None, None, None] / 1000
        predicted = self((1 - sigma) * later + sigma * noise, first, timestep, batch["action"])
        return predicted, noise - later

    def training_step(self, batch: Batch, batch_idx: int) -> Batch:
        later = batch["video"][:, 1:]
        timestep = 1000 * torch.rand(later.shape[:1], device=self.device)[:, None].expand(later.shape[:2])
        predicted, velocity = self.velocities(batch, timestep, torch.randn_like(later))
        per_frame = (predicted - velocity).square().mean(dim=(2, 3, 4))
        self.log("train/loss", per_frame.mean())
        return {"loss": per_frame.mean(), "loss_per_frame": per_frame.detach(), "timestep": timestep}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        predicted, velocity = self.predict_velocity(batch, 500.0, seed=batch_idx)
        self.log("validation/loss", F.mse_loss(predicted, velocity), sync_dist=True)

    @torch.no_grad()
    def predict_velocity(self, batch: dict[str, Any], timestep: float, seed: int) -> tuple[Tensor, Tensor]:
        """Predicted and true velocity at one noise level; the noise follows from the seed alone."""
        later = batch["video"][:, 1:]
        noise = torch.randn(later.shape, generator=torch.Generator().manual_seed(seed)).to(later)
        return self.velocities(batch, torch.full(later.shape[:2], timestep, device=self.device), noise)

    @torch.no_grad()
    def generate(self, batch: dict[str, Any], num_steps: int = 8) -> Tensor:
        """Videos `[B, F, 3, 8, 8]` in [0, 1] from the first frames of `video`, as long as there are actions."""
        first, action = batch["video"][:, :1], batch["action"]
        num_frames = batch["video"].shape[1] if action is None else action.shape[1]
        # The same for every sample: what differs between two of them is the doing of the action.
        noise = torch.randn(1, num_frames - 1, *first.shape[2:], generator=torch.Generator().manual_seed(0))
        later = noise.to(first).repeat(len(first), 1, 1, 1, 1)
        for step in range(num_steps, 0, -1):
            timestep = torch.full(later.shape[:2], 1000 * step / num_steps, device=self.device)
            later = later - self(later, first, timestep, action) / num_steps
        return (torch.cat([first, later], dim=1) * 0.5 + 0.5).clamp(0, 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [
            {"name": "action", "params": self.action_encoder.parameters()},
            {"name": "backbone", "params": self.transformer.parameters()},
        ]
        return torch.optim.AdamW(groups, lr=3e-3)


def main() -> None:
    """Fit it, with every callback that has something to say of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=300)
    parser.add_argument("--output", default="runs/own_dit")
    options = parser.parse_args()
    seed_everything(0)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=options.max_steps,
        log_every_n_steps=10,
        val_check_interval=max(1, options.max_steps // 2),
        check_val_every_n_epoch=None,
        default_root_dir=options.output,
        logger=TensorBoardLogger(options.output),
        callbacks=[
            # This backbone is not pretrained, so it may train soon.
            FreezeBackboneFirst(["transformer"], unfreeze_at_step=options.max_steps // 10, warmup_steps=10),
            EMA(decay=0.95),
            GradientStatistics(modules=["action_encoder", "transformer.layers.*"]),
            ActionModulationMonitor(
                projection="action_encoder",
                time_projection="transformer.time_projection",
                layers="transformer.layers",
                table="table",
            ),
            NoiseLevelLoss(num_bins=5),
            ActionSensitivity(every_n_steps=max(1, options.max_steps // 4), layers="transformer.layers"),
            TensorBoardLayout(),
            RolloutLogger(num_samples=1, actions={"right": [1.0, 0.0], "down": [0.0, 1.0]}),
            DriftMonitor(temporal_compression_ratio=1, rollout_rows=3 * NUM_FRAMES),
            ThroughputMonitor(temporal_compression_ratio=1),
        ],
    )
    training = DataLoader(MovingDot(1600, seed=0), batch_size=16, shuffle=True)
    trainer.fit(OwnDiT(), training, DataLoader(MovingDot(32, seed=1), batch_size=16))


if __name__ == "__main__":
    main()

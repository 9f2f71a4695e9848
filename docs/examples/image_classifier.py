"""A plain Lightning image classifier with callbacks: `python docs/examples/image_classifier.py --max_steps 200`.

A pretrained backbone would stand where a random one does here. It stays frozen for the first half of the fit, and what
is validated is the average of the weights. `tensorboard --logdir <output>` shows the rest.
"""

import argparse

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_action.callbacks import EMA, FreezeBackboneFirst, GradientStatistics, ThroughputMonitor

NUM_CLASSES, SIDE = 3, 16


class Stripes(Dataset[tuple[Tensor, Tensor]]):
    """Pictures `[3, 16, 16]` of noisy stripes; the class is their direction."""

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples = num_samples
        self.seed = seed

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(self.seed * self.num_samples + index)
        y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        label = index % NUM_CLASSES
        phase = 6 * torch.rand(1, generator=random)
        picture = torch.sin((x, y, x + y)[label] + phase).expand(3, -1, -1)
        return picture + torch.randn(3, SIDE, SIDE, generator=random), torch.tensor(label)


class ImageClassifier(LightningModule):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.head = nn.Linear(32, NUM_CLASSES)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits `[B, NUM_CLASSES]` of pictures `[B, 3, 16, 16]`."""
        logits: Tensor = self.head(self.backbone(pictures))
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        pictures, labels = batch
        loss = F.cross_entropy(self(pictures), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        pictures, labels = batch
        self.log("validation/accuracy", (self(pictures).argmax(dim=1) == labels).float().mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [{"name": name, "params": part.parameters()} for name, part in self.named_children()]
        return torch.optim.AdamW(groups, lr=1e-2)


def main() -> None:
    """Fit it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=200)
    parser.add_argument("--output", default="runs/image_classifier")
    options = parser.parse_args()
    seed_everything(0)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=options.max_steps,
        log_every_n_steps=5,
        default_root_dir=options.output,
        logger=TensorBoardLogger(options.output),
        callbacks=[
            FreezeBackboneFirst(["backbone"], unfreeze_at_step=options.max_steps // 2, warmup_steps=10),
            EMA(decay=0.95),
            GradientStatistics(modules=["head", "backbone.*"]),
            ThroughputMonitor(),
        ],
    )
    training = DataLoader(Stripes(480, seed=0), batch_size=16, shuffle=True)
    validation = DataLoader(Stripes(60, seed=1), batch_size=20)
    trainer.fit(ImageClassifier(), training, validation)


if __name__ == "__main__":
    main()

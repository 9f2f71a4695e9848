"""Videos of several lengths, an odd number of them, in a DataLoader that leaves sharing out to Lightning."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from lightning_action.batch import Batch
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld

NUM_LATENTS = (3, 6, 4, 2, 5)


class UnevenVideos(L.LightningDataModule):
    """Starts and actions of the demo's world; the last video has neither. One switches prompts on the way."""

    def predict_dataloader(self) -> DataLoader[Batch]:
        whole = SpriteDataModule(MovingSpriteWorld(), num_latents=max(NUM_LATENTS)).dataset("predict")
        batches: Any = []
        for sample, num_latents in enumerate(NUM_LATENTS):
            batch = whole.batch([sample])
            rows = 4 * (num_latents - 1)
            batches.append({**batch, "video": batch["video"][:, :1], "action": batch["action"][:, :rows]})
        batches[1]["prompt_switches"] = [[(2, "a blue square"), (4, "a red disc")]]
        del batches[-1]["video"]
        batches[-1] |= {"action": None, "num_latents": NUM_LATENTS[-1], "frame_size": torch.tensor([[32, 32]])}
        return DataLoader(batches, collate_fn=itemgetter(0))

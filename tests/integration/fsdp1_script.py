"""Our model inside FSDP1, wrapped as `configs/fsdp1.yaml` has Lightning wrap it on GPUs, on two processes.

Lightning refuses its FSDPStrategy without a GPU, so the wrapping is done here. Writes the largest differences from one
process, and how far the projection moved, to `facts.json` in the folder that is named on the command line.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from lightning_action.generator.layers import WanLayer
from lightning_action.module import ActionVideoModule
from tests.unit.test_module import data, ready


class Wrapped(nn.Module):
    """Reaches everything through `forward`, as Lightning's strategy does."""

    def __init__(self, module: ActionVideoModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: dict[str, Any], generates: bool) -> Tensor:
        model = self.module.world_model
        if generates:
            return model.generate(batch, self.module.sampling).video
        return model.training_loss(batch, 0, 0, 0.0).per_sample.mean()


def main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    (alone, both), (shared, _) = ready(), ready()
    mine = data().dataset("test").batch([[0, 4][dist.get_rank()]])
    policy = ModuleWrapPolicy({WanLayer})
    sharded = FullyShardedDataParallel(
        Wrapped(shared), auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=True
    )
    runs = ((sharded, mine), (Wrapped(alone), both))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model, _ in runs]
    for _ in range(5):
        for (model, batch), optimizer in zip(runs, optimizers, strict=True):
            model(batch, False).backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        videos = [model(mine, True) for model, _ in runs]
    with FullyShardedDataParallel.summon_full_params(sharded):
        names = dict(alone.named_parameters())
        weights = {
            name.replace("_fsdp_wrapped_module.", "").removeprefix("module."): value.detach().clone()
            for name, value in sharded.named_parameters()
        }
    start = ready()[0].action_projection.state_dict()  # type: ignore[union-attr]
    moved = (start["action_projection.weight"] - names["action_projection.action_projection.weight"]).abs().max().item()
    differences = {
        "video": (videos[0] - videos[1]).abs().max().item(),
        **{name: (value - names[name]).abs().max().item() for name, value in weights.items()},
    }
    if dist.get_rank() == 0:
        (Path(folder) / "facts.json").write_text(json.dumps({"differences": differences, "moved": moved}))
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])

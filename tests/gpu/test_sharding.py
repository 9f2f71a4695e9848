"""Fits and predictions of a sharded model on one GPU, which is a mesh of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.callbacks import EMA, GradientStatistics
from lightning_action.distributed.fsdp2 import FSDP2Strategy
from lightning_action.distributed.sharding import Sharding
from tests.support.sprite_module import build, data, trainer


def fit_and_predict(folder: Path, strategy: Any, accelerator: str) -> list[Tensor]:
    """Latents from the checkpoint that a short fit leaves."""
    run: dict[str, Any] = {"strategy": strategy, "accelerator": accelerator, "devices": 1, "inference_mode": False}
    module = build(sharding=Sharding(param_dtype="float32"))
    fitting = trainer(folder, callbacks=[EMA(), GradientStatistics()], max_steps=3, gradient_clip_val=0.1, **run)
    fitting.fit(module, data())
    assert module.device.type == {"gpu": "cuda"}.get(accelerator, accelerator)
    fitting.save_checkpoint(folder / "last.ckpt")
    again = {} if strategy == "auto" else {"strategy": type(strategy)()}
    other = build(sharding=Sharding(param_dtype="float32"))
    predictions = trainer(folder, **run | again).predict(other, data(), ckpt_path=folder / "last.ckpt")
    assert predictions is not None
    return [prediction["latents"] for prediction in predictions]


@pytest.mark.parametrize("distributed", [True, False])
def test_a_sharded_model_does_on_the_gpu_what_one_does_on_the_cpu(tmp_path: Path, distributed: bool) -> None:
    on_gpu = fit_and_predict(tmp_path / "gpu", FSDP2Strategy(distributed), "gpu")
    on_cpu = fit_and_predict(tmp_path / "cpu", "auto", "cpu")
    torch.testing.assert_close(on_gpu, on_cpu, atol=2e-3, rtol=0)

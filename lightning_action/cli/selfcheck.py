"""`selfcheck`: the first minute, without data or weights. Does the installation work, and do actions act?"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from torch import Tensor, nn

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.batch import Batch, other_actions, without_actions
from lightning_action.callbacks import ActionScan, PredictionWriter
from lightning_action.cli.mistakes import UsageError
from lightning_action.cli.usage_messages import explain
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.linear_codec import LinearVideoCodec
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.model import CausalWanModel
from lightning_action.module import ActionVideoModule
from lightning_action.optimization import Optimization

_PACKAGES = ("torch", "lightning", "torchmetrics", "einops", "tensorboard")
_EXTRAS = {"wan": ("diffusers", "transformers", "ftfy"), "lora": ("peft",), "quantization": ("torchao",)}
# What a selfcheck leaves, by which the folder of an earlier one is known.
_LEFT = ("action_scan.png", "predictions")


@dataclass(frozen=True)
class Obedience:
    """How much actions change, before or after training.

    Args:
        modulation: Root mean square of the modulation under the actions of a batch.
        video: Largest difference of a pixel in [0, 1] between videos under those actions and under others.
        null: Largest difference of a pixel between videos under those actions and under none.
    """

    modulation: float
    video: float
    null: float


def run_selfcheck(args: Sequence[str], steps: int = 400) -> list[str]:
    """Check the installation with a toy model, and leave its videos and an action scan in a folder.

    Args:
        args: Arguments that follow the verb.
        steps: Training steps.

    Returns:
        What failed; nothing if all is well.

    Raises:
        FileExistsError: The folder holds something that no selfcheck left.
    """
    folder = Path(_parser().parse_args(args).output)
    _require_own_folder(folder)
    print(described())
    L.seed_everything(0, verbose=False)
    data = toy_data()
    module = toy_module(data)
    fit = _trainer(folder, max_steps=steps, enable_progress_bar=True)
    batch = next(iter(data.predict_dataloader()))
    before = measured(module, batch)
    print(f"\ntraining a toy model of {sum(p.numel() for p in module.parameters()):,} parameters for {steps} steps")
    fit.fit(module, data)
    after = measured(module.eval(), batch)
    shutil.rmtree(folder, ignore_errors=True)
    actions = {"right": [1.0, 0.0], "left": [-1.0, 0.0], "up": [0.0, -1.0], "down": [0.0, 1.0]}
    callbacks = [PredictionWriter(), ActionScan(actions, scales=[0.0, 0.5, 1.0])]
    _trainer(folder, callbacks=callbacks).predict(module, data, return_predictions=False)
    problems = failures(before, after)
    print(f"\n{_table(before, after)}\n\n{', '.join(str(folder / name) for name in _LEFT)}: look at them")
    print("\n".join(f"FAILED: {problem}" for problem in problems) or "All is well: actions act.")
    return problems


def described() -> str:
    """The versions, devices and ways to compute attention that there are."""
    lines = [f"python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)]
    lines += [
        f"extra {extra}: {', '.join(f'{name} {_version(name)}' for name in names)}" for extra, names in _EXTRAS.items()
    ]
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    mps = ["Apple GPU (MPS)"] if torch.backends.mps.is_available() else []
    lines.append(f"devices: {os.cpu_count()} CPU cores, {', '.join([*gpus, *mps]) or 'no GPU'}")
    attention = ["scaled_dot_product_attention (everywhere)"]
    attention += ["flex_attention (training on CUDA)"] if gpus else []
    return "\n".join([*lines, f"attention: {', '.join(attention)}"])


def toy_module(data: SpriteDataModule) -> ActionVideoModule:
    """Build a model of some 100,000 parameters, with a codec that is fitted to the data."""
    module = ActionVideoModule(
        generator=lambda: CausalWanModel(48, 96, 4, 2, in_dim=12, out_dim=12, freq_dim=32, text_dim=8, text_len=4),
        text_encoder=lambda: HashingTextEncoder(8, 4),
        vae=lambda: LinearVideoCodec(12, patch_size=8),
        action_projection=lambda action_dim, dim: ActionModulationProjection(action_dim, dim, hidden_dim=64),
        schema=data.action_schema,
        causality=BlockCausality(1),
        loss_weighting="uniform",
        sampling=Sampling(num_inference_steps=4),
        optimization=Optimization(action_learning_rate=3e-3, backbone_learning_rate=3e-3, warmup_steps=10),
    )
    assert isinstance(module.frozen.vae, LinearVideoCodec)
    module.frozen.vae.fit(data.codec_videos(64))
    module.configure_model()
    # A fresh head gives zeros, which nothing could change.
    nn.init.normal_(module.generator.head.head.weight, std=0.02)
    return module


def toy_data() -> SpriteDataModule:
    """Short videos of a disc that moves as it is told."""
    sizes = {"train_size": 512, "validation_size": 8, "test_size": 8, "predict_size": 2}
    return SpriteDataModule(MovingSpriteWorld(), num_latents=5, batch_size=8, eval_batch_size=2, **sizes)


@torch.no_grad()
def measured(module: ActionVideoModule, batch: Batch) -> Obedience:
    """Measure how much the actions of a batch change."""
    projection = module.action_projection
    assert projection is not None
    vectors, present = module.schema.encode(batch["action"], module.schema.num_latents(batch["action"].shape[1]))
    video, others, null = (module.generate(each) for each in (batch, other_actions(batch), without_actions(batch)))

    def largest(difference: Tensor) -> float:
        return difference.abs().max().item()

    modulation = projection(vectors, present).square().mean().sqrt().item()
    return Obedience(modulation, largest(video - others), largest(video - null))


def failures(before: Obedience, after: Obedience) -> list[str]:
    """Say what is not as it must be: nothing at all before training, something after it."""
    found = []
    if before.modulation:
        found.append(f"a fresh projection modulates by {before.modulation:g}, expected exactly 0")
    if before.video or before.null:
        found.append(f"actions change the base model's video by {max(before.video, before.null):g}, expected exactly 0")
    if not after.modulation > 0:
        found.append(f"the modulation is {after.modulation:g} after training, expected more than 0")
    if not after.video > 0:
        found.append(f"videos under two actions differ by {after.video:g} after training, expected more than 0")
    return found


def _table(before: Obedience, after: Obedience) -> str:
    rows = {
        "modulation (root mean square)": (before.modulation, after.modulation),
        "video under other actions (largest difference)": (before.video, after.video),
        "video under no actions (largest difference)": (before.null, after.null),
    }
    lines = [f"{'':48}{'fresh':>12}{'trained':>12}"]
    return "\n".join([*lines, *(f"{name:48}{first:>12.6f}{then:>12.6f}" for name, (first, then) in rows.items())])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _trainer(folder: Path, **settings: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    quiet |= {"limit_val_batches": 0, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
    return L.Trainer(default_root_dir=folder, **{**quiet, **settings})


def _require_own_folder(folder: Path) -> None:
    """Refuse to replace what no selfcheck left."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.is_file() or there - set(_LEFT):
        raise FileExistsError(f"{str(folder)!r} holds what no selfcheck left: name another folder with --output")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(explain(message, list(self._option_string_actions)))


def _parser() -> argparse.ArgumentParser:
    from lightning_action.cli.trainer_verbs import program_name

    parser = _Parser(prog=f"{program_name()} selfcheck", description=__doc__)
    parser.add_argument(
        "--output", default="runs/selfcheck", metavar="FOLDER", help="where videos and the action scan go"
    )
    return parser

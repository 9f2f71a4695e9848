"""`selfcheck`: the first minute; what is installed, and whether actions act on a model that is trained here and now."""

from __future__ import annotations

import logging
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.atomic import creating_folder, write_json
from lightning_action.batch import Batch, num_latents, without_actions
from lightning_action.callbacks import ActionScan, PredictionWriter
from lightning_action.cli.support.usage import VerbParser
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld
from lightning_action.evaluation.report.provenance import installed_version
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.linear_codec import LinearVideoCodec
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.attention_kernels import hold_attention_kernels
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.model import CausalWanModel
from lightning_action.module.action_video_module import ActionVideoModule
from lightning_action.optimization import Optimization

EXTRAS = {
    "wan": ("diffusers", "transformers", "ftfy"),
    "lora": ("peft",),
    "quantization": ("torchao",),
    "data": ("pyarrow",),
    "env": ("gymnasium",),
    "play": ("starlette", "uvicorn", "websockets"),
    "pusht": ("gym-pusht",),
}
_REPORT = "selfcheck.json"
_TEXT_DIM, _TEXT_LEN, _LATENT_DIM = 16, 4, 24
_SPEED = 0.3


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model and of its training.

    Args:
        dim: Width of the generator.
        num_layers: Number of its layers.
        num_latents: Latent frames of a video.
        batch_size: Videos of a training step.
        base_steps: Training steps of the base model, without actions.
        action_steps: Training steps of the base model and the action projection.
    """

    dim: int = 96
    num_layers: int = 2
    num_latents: int = 5
    batch_size: int = 16
    base_steps: int = 60
    action_steps: int = 300


class Check(NamedTuple):
    """One claim, what was measured of it, and whether it holds."""

    claim: str
    measured: float
    passed: bool

    def __str__(self) -> str:
        return f"{'ok    ' if self.passed else 'FAILED'}  {self.claim}: {self.measured:.3g}"


def run_selfcheck(args: Sequence[str]) -> bool:
    """Run the command `selfcheck`, whose arguments are `args`; True says that every check has passed."""
    output = Path(_parser().parse_args(args).output)
    started = time.monotonic()
    print("\n".join(installed()))
    with creating_folder(output, overwrite=(output / _REPORT).is_file()) as folder, _quiet():
        checks = measure(folder)
        content = {"installed": installed(), "checks": [check._asdict() for check in checks]}
        write_json(folder / _REPORT, content)
    print("\n".join(map(str, checks)))
    print(f"see {output / 'predictions' / '000000.mp4'} and {output / 'action_scan.png'}")
    passed = all(check.passed for check in checks)
    verdict = "all checks passed" if passed else "selfcheck failed: the lines marked FAILED do not hold on this machine"
    print(f"{verdict} ({time.monotonic() - started:.0f} s)")
    return passed


def installed() -> list[str]:
    """Say in lines what is installed, and which devices and attention back ends there are."""
    core = ", ".join(f"{name} {_version(name)}" for name in ("torch", "lightning"))
    extras = "; ".join(
        f"{extra} ({', '.join(f'{name} {_version(name)}' for name in names)})" for extra, names in EXTRAS.items()
    )
    return [
        f"installed: python {platform.python_version()}, {core}",
        f"extras:    {extras}",
        f"devices:   {', '.join(_devices())}",
        f"attention: {', '.join(_attention())}",
    ]


def _version(package: str) -> str:
    return installed_version(package) or "missing"


def _devices() -> list[str]:
    found = [f"cpu ({torch.get_num_threads()} threads)"]
    found += [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    return found + (["mps"] if torch.backends.mps.is_available() else [])


def _attention() -> list[str]:
    """List kernels of scaled dot-product attention, in the order of choice, and what masked training uses."""
    if not torch.cuda.is_available():
        return ["scaled dot-product", "masked training block by block"]
    kernels = ", ".join(hold_attention_kernels(torch.device("cuda")))
    return [f"scaled dot-product ({kernels})", "masked training by FlexAttention"]


def measure(
    folder: Path,
    sizes: Sizes = Sizes(),
    projection: Callable[..., ActionModulationProjection] = ActionModulationProjection,
    action_learning_rate: float = 3e-3,
) -> list[Check]:
    """Train a toy base model, give it actions, and see that they act; an mp4 and an action scan are left in `folder`.

    Args:
        folder: Folder that pictures are written to.
        sizes: Sizes of the model and of its training.
        projection: Builds the action projection, with the arguments of `ActionModulationProjection`.
        action_learning_rate: Learning rate of the action projection; at 0 nothing is learnt.

    Returns:
        The checks, in the order in which they were made.
    """
    data = SpriteDataModule(
        MovingSpriteWorld(image_size=16, sprite_radius=3.0, max_speed=1.0),
        num_latents=sizes.num_latents,
        batch_size=sizes.batch_size,
        train_size=sizes.batch_size * max(sizes.base_steps, sizes.action_steps),
        predict_size=2,
    )
    print(f"1/3 training a toy base model without actions, {sizes.base_steps} steps")
    codec = LinearVideoCodec(latent_dim=_LATENT_DIM, patch_size=8)
    codec.fit(data.codec_videos())
    base = _build(sizes, data, codec, None, Optimization(warmup_steps=10, backbone_learning_rate=3e-3))
    _trainer(folder, sizes.base_steps).fit(base, data)

    print(f"2/3 training it with actions, {sizes.action_steps} steps")
    rates = Optimization(warmup_steps=10, action_learning_rate=action_learning_rate, backbone_learning_rate=3e-3)
    model = _build(sizes, data, codec, projection, rates, base)
    batch = data.dataset("predict").batch([0, 1])
    same = torch.equal(base.generate(without_actions(batch)), model.generate(batch))
    norm_before, change_before = _effect(model, batch)
    _trainer(folder, sizes.action_steps).fit(model, data)
    norm_after, change_after = _effect(model.eval(), batch)

    print("3/3 drawing")
    _trainer(folder, 1, *_pictures()).predict(model, data, return_predictions=False)
    return [
        Check("norm of a fresh projection's modulation, exactly 0", norm_before, norm_before == 0),
        Check("video equal to the base model's, bit for bit (1 is yes)", float(same), same),
        Check("difference of videos under two actions before training, exactly 0", change_before, change_before == 0),
        Check("norm of the modulation after training, above 0", norm_after, norm_after > 0),
        Check("difference of the videos after training, above 0", change_after, change_after > 0),
    ]


def _build(
    sizes: Sizes,
    data: SpriteDataModule,
    codec: LinearVideoCodec,
    projection: Callable[..., ActionModulationProjection] | None,
    optimization: Optimization,
    base: ActionVideoModule | None = None,
) -> ActionVideoModule:
    """Build a module that is ready to generate, with the weights of `base` if it is given."""
    build_generator = partial(
        CausalWanModel,
        sizes.dim,
        4 * sizes.dim,
        4,
        sizes.num_layers,
        in_dim=_LATENT_DIM,
        out_dim=_LATENT_DIM,
        freq_dim=64,
        text_dim=_TEXT_DIM,
        text_len=_TEXT_LEN,
    )
    module = ActionVideoModule(
        build_generator,
        lambda: HashingTextEncoder(_TEXT_DIM, _TEXT_LEN),
        lambda: codec,
        action_projection=projection and partial(projection, hidden_dim=128, num_layers=sizes.num_layers),
        schema=data.action_schema,
        causality=BlockCausality(1),
        loss_weighting="uniform",
        sampling=Sampling(num_inference_steps=4),
        optimization=optimization,
    )
    module.configure_model()
    if base is not None:
        module.generator.load_state_dict(base.generator.state_dict())
    return module.eval()


def _trainer(folder: Path, max_steps: int, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[TQDMProgressBar(refresh_rate=20), *callbacks],
    )


def _pictures() -> tuple[L.Callback, ...]:
    actions = {"+x": [_SPEED, 0.0], "-x": [-_SPEED, 0.0], "+y": [0.0, _SPEED], "-y": [0.0, -_SPEED]}
    return PredictionWriter(write_latents=False), ActionScan(actions, scales=[0.0, 1.0, 2.0])


@torch.no_grad()
def _effect(model: ActionVideoModule, batch: Batch) -> tuple[float, float]:
    """Measure the norm of the modulation of a batch, and how far its videos differ when its actions are reversed.

    That is the mean absolute difference, of videos in [0, 1].
    """
    assert model.action_projection is not None
    vectors, present = model.schema.encode(batch["action"], num_latents(batch, model.schema))
    modulation = model.action_projection(vectors, present)
    difference: Tensor = (model.generate(batch) - model.generate({**batch, "action": -batch["action"]})).abs().mean()
    return modulation.norm().item(), difference.item()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says of a Trainer; its paths are those of a folder that is about to be renamed."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _parser() -> VerbParser:
    parser = VerbParser("selfcheck", description=__doc__)
    parser.add_argument(
        "--output",
        default="runs/selfcheck",
        help="folder of the pictures and of selfcheck.json: a new one, or that of an earlier selfcheck, which is "
        "replaced; default: runs/selfcheck",
    )
    return parser

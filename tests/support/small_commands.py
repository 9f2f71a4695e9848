"""The commands of the demo, with sizes overridden from the command line."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL_MODEL = [
    "--model.generator.init_args.dim=24",
    "--model.generator.init_args.ffn_dim=32",
    "--model.generator.init_args.num_heads=2",
    "--model.generator.init_args.num_layers=2",
    "--model.generator.init_args.patch_size=[1, 2, 2]",
]
FEW_VIDEOS = [
    "--data.init_args.batch_size=4",
    "--data.init_args.train_size=16",
    "--data.init_args.validation_size=4",
    "--data.init_args.test_size=6",
    "--data.init_args.predict_size=3",
    "--data.init_args.num_latents=5",
]
SMALL_SPRITE = ["--data.init_args.world.init_args.image_size=16", "--data.init_args.world.init_args.sprite_radius=3"]
SMALL_DATA = [*FEW_VIDEOS, *SMALL_SPRITE]
ACTION = ["--model.action_projection.init_args.num_layers=2", "--model.sampling.num_inference_steps=2"]


def small(verb: str, folder: Path, *more: str) -> list[str]:
    config = str(ROOT / "configs" / "demo.yaml")
    pretrained = f"--model.pretrained={folder / 'backbone'}"
    root = f"--trainer.default_root_dir={folder}"
    return [verb, f"--config={config}", root, pretrained, *SMALL_MODEL, *SMALL_DATA, *ACTION, *more]


def last_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def checkpoint(folder: Path) -> str:
    """The argument that names the last checkpoint of the run in a folder."""
    return f"--ckpt_path={last_checkpoint(folder)}"

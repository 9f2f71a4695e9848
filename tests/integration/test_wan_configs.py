"""The configurations of the released sizes, shrunk, on a release folder with the same files: fit, then predict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_action.command_line import run
from lightning_action.generator.model import CausalWanModel
from lightning_action.weights import write_safetensors
from tests.helpers import fill
from tests.wan_parts import GEOMETRY, small_umt5, small_vae

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_val_batches=0",
    "--model.generator.init_args.dim=24",
    "--model.generator.init_args.ffn_dim=32",
    "--model.generator.init_args.num_heads=2",
    "--model.generator.init_args.num_layers=2",
    "--model.generator.init_args.text_dim=20",
    "--data.init_args.world.init_args.sprite_radius=5",
    "--data.init_args.predict_size=1",
]
PER_LAYER = ["--model.action_projection.init_args.num_layers=2"]


@pytest.mark.parametrize(
    ("config", "version", "image_size", "more"),
    [
        ("wan2.1_1.3b", "2.1", "[32, 48]", PER_LAYER),
        ("wan2.1_14b", "2.1", "[32, 48]", PER_LAYER),
        ("wan2.2_5b", "2.2", "[64, 96]", PER_LAYER),
        ("longlive_action", "2.1", "[32, 48]", []),
    ],
)
def test_fit_and_predict(
    config: str, version: str, image_size: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import ByT5Tokenizer

    release, runs = tmp_path / "release", tmp_path / "runs"
    small_vae(version).save_pretrained(release / "vae")
    small_umt5().save_pretrained(release / "text_encoder")
    ByT5Tokenizer().save_pretrained(release / "tokenizer")
    monkeypatch.setenv("LIGHTNING_ACTION_WEIGHTS", str(release))

    with torch.random.fork_rng():
        channels = GEOMETRY[version]["latent_dim"]
        sizes = {"in_dim": channels, "out_dim": channels, "text_dim": 20, "freq_dim": 256}
        released = CausalWanModel(24, 32, 2, 2, **sizes)
    fill(released)
    write_safetensors(release / "diffusion_pytorch_model.safetensors", released.state_dict(), {})

    size = f"--data.init_args.world.init_args.image_size={image_size}"
    common = [f"--config={ROOT / 'configs' / config}.yaml", f"--trainer.default_root_dir={runs}", *SMALL, *more, size]
    run(["fit", *common, "--trainer.max_steps=1"])
    checkpoint = runs / "checkpoints" / "last.ckpt"
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["global_step"] == 1
    name = "blocks.1.ffn.2.weight"
    assert torch.equal(saved["state_dict"][f"generator.{name}"], released.state_dict()[name]), (
        "frozen in the first phase"
    )

    steps = [] if config == "longlive_action" else ["--model.sampling.num_inference_steps=2"]
    run(["predict", *common, *steps, f"--ckpt_path={checkpoint}"])
    told = json.loads((runs / "predictions" / "000000.json").read_text())
    assert (runs / "predictions" / "000000.mp4").stat().st_size > 0 and told["prompt"]

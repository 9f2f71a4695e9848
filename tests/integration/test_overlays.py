"""The overlays that change how a model trains or computes, stacked on the small demo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_action.cli import main
from lightning_action.cli.support.mistakes import UsageError
from lightning_action.cli.trainer_verbs import run
from tests.support.shipped import shipped
from tests.support.small_commands import ROOT, SMALL_DATA, SMALL_MODEL, checkpoint, last_checkpoint, small

CONFIGS = ROOT / "configs"
WRITER = "--trainer.callbacks=lightning_action.callbacks.PredictionWriter"
SHORT = "--data.init_args.num_latents=3"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a pretrained backbone."""
    folder = tmp_path_factory.mktemp("overlays")
    fit_both(folder)
    yield folder


def fit_both(folder: Path, *more: str) -> None:
    """A backbone, and actions on top of it."""
    root = f"--trainer.default_root_dir={folder / 'backbone'}"
    run(["fit", *shipped("demo_backbone"), "--trainer.max_steps=2", root, *SMALL_MODEL, *SMALL_DATA, *more])
    run(stacked("fit", folder, [], "--trainer.max_steps=1", "--trainer.limit_val_batches=0", *more))


def stacked(verb: str, folder: Path, overlays: list[Path], *more: str) -> list[str]:
    arguments = small(verb, folder, *more)
    return [*arguments[:2], *(f"--config={path}" for path in overlays), *arguments[2:]]


@pytest.mark.parametrize(
    "name", ["demo_backbone", "wan2.1_14b", "wan2.2_5b", "longlive_action", "discrete", "panning", "lora"]
)
def test_an_overlay_alone_says_what_is_missing(name: str) -> None:
    with pytest.raises(UsageError, match="stacks on"):
        run(["fit", f"--config={CONFIGS / name}.yaml"])


def test_lora_trains_in_three_states(backbone: Path, tmp_path: Path) -> None:
    """With the shipped overlay's callbacks, at earlier steps."""
    short: dict[str, Any] = yaml.safe_load((CONFIGS / "lora.yaml").read_text())
    for callback, step in zip(short["trainer"]["callbacks"], (1, 2), strict=False):
        callback["init_args"] |= {"unfreeze_at_step": step, "warmup_steps": 1}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(short))
    every_step = ("--checkpoint.every_n_train_steps=1", "--checkpoint.save_top_k=-1", "--trainer.limit_val_batches=0")
    more = (*every_step, "--trainer.max_steps=4", f"--trainer.default_root_dir={tmp_path}")
    run(stacked("fit", tmp_path, [CONFIGS / "lora.yaml", tmp_path / "short.yaml"], *pretrained(backbone), *more))

    states = []
    for step in range(1, 5):
        (path,) = (tmp_path / "checkpoints").glob(f"*step={step}.ckpt")
        states.append(torch.load(path, weights_only=True)["state_dict"])
    moved = [{part_of(name) for name in old if not torch.equal(old[name], new[name])} for old, new in pairs(states)]
    assert moved == [{"action", "lora"}, {"action", "lora", "backbone"}, {"action", "lora", "backbone"}]
    released = torch.load(last_checkpoint(backbone), weights_only=True)["state_dict"]
    name = "generator.blocks.1.ffn.2.{}weight"
    assert torch.equal(states[1][name.format("base_layer.")], released[name.format("")])


@pytest.mark.parametrize("lora", [(), ("--model.lora.rank=3",)], ids=["without_lora", "with_lora"])
def test_a_frozen_backbone_has_no_optimizer_state_and_fits_into_an_adapter(
    backbone: Path, tmp_path: Path, lora: tuple[str, ...]
) -> None:
    frozen = [CONFIGS / "frozen_backbone.yaml"]
    more = (*lora, *pretrained(backbone), f"--trainer.default_root_dir={tmp_path}")
    run(stacked("fit", tmp_path, frozen, "--trainer.max_steps=3", "--trainer.limit_val_batches=0", *more))
    saved = torch.load(last_checkpoint(tmp_path), weights_only=True)
    (optimizer,) = saved["optimizer_states"]
    trained = ["action", "lora"] if lora else ["action"]
    assert [group["name"] for group in optimizer["param_groups"]] == trained
    moved = {part_of(name) for name, value in saved["state_dict"].items() if is_new(backbone, name, value)}
    assert moved == set(trained)
    (config,) = (tmp_path / "lightning_logs").glob("*/config_fit.yaml")
    adapter = ("--format=adapter", f"--output={tmp_path / 'adapter.safetensors'}")
    main(["export", f"--config={config}", checkpoint(tmp_path), *adapter])
    use = (f"--model.adapter={tmp_path / 'adapter.safetensors'}", *more, WRITER, SHORT)
    run(stacked("predict", tmp_path, [], *use))
    assert (tmp_path / "predictions" / "000002.mp4").is_file()


def is_new(backbone: Path, name: str, value: torch.Tensor) -> bool:
    if ".lora_" in name:
        return ".lora_B." in name and bool(value.any())
    released = torch.load(last_checkpoint(backbone), weights_only=True)["state_dict"]
    return not torch.equal(released[name.replace(".base_layer.", ".")], value)


def part_of(name: str) -> str:
    return "action" if name.startswith("action_projection") else "lora" if ".lora_" in name else "backbone"


def pairs(states: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return list(zip(states, states[1:], strict=False))


def pretrained(folder: Path) -> tuple[str]:
    return (f"--model.pretrained={folder / 'backbone'}",)


def test_float8_generates(backbone: Path, tmp_path: Path) -> None:
    """As shipped, of a width that float8 takes; of another it says so, and there the weights alone are float8."""
    overlays = [CONFIGS / "fp8.yaml", CONFIGS / "compile.yaml"]
    only_weights = "--model.acceleration.quantization=fp8_weight_only"
    wide = "--model.generator.init_args.dim=32"
    fit_both(tmp_path, wide)

    def latents(folder: Path, name: str, used: list[Path], *more: str) -> torch.Tensor:
        root = f"--trainer.default_root_dir={tmp_path / name}"
        more = (WRITER, SHORT, root, checkpoint(folder), "--model.acceleration.compile_mode=null", *more)
        run(stacked("predict", folder, used, *more))
        return torch.load(tmp_path / name / "predictions" / "000001.pt", weights_only=True)["latents"]

    with pytest.raises(ValueError, match=r"multiples of 16, but blocks\.0\.self_attn\.q maps 24 to 24"):
        latents(backbone, "refused", overlays)
    for name, folder, size, kind in (("wide", tmp_path, (wide,), ()), ("narrow", backbone, (), (only_weights,))):
        plain = latents(folder, f"plain_{name}", [], *size)
        float8 = latents(folder, f"float8_{name}", overlays, *size, *kind)
        assert 0 < (float8 - plain).norm() / plain.norm() < 0.1

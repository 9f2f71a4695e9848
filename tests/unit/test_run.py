"""A run is loaded from the model's section of its configurations, wherever one is and whatever else is gone."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_action import ActionCausalInferencePipeline, load_run
from lightning_action.cli.export import run_export
from lightning_action.run import build_module
from tests.support.malice import Touches
from tests.support.written_run import CONFIG, as_folder, write_run

GONE = {"class_path": "module_that_is_gone.Videos", "init_args": {"folder": "/gone"}}


def write(path: Path, *sections: dict[str, Any]) -> Path:
    path.write_text("---\n".join(map(yaml.safe_dump, sections)))
    return path


def test_the_model_alone_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither data nor Trainer nor pretrained weights are looked for, and a checkpoint may be a folder."""
    config, path = write_run(tmp_path)
    expected = load_run(config, path).state_dict()
    settings = deepcopy(CONFIG) | {"data": GONE, "ckpt_path": None, "seed_everything": 3, "unknown": {"a": GONE}}
    settings["trainer"] = {"accelerator": "tpu", "devices": 64, "callbacks": [GONE], "strategy": "none_such"}
    settings["model"]["pretrained"] = "runs/gone/backbone"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write(config, settings)
    for checkpoint in (path, as_folder(path)):
        module = load_run(config, checkpoint)
        torch.testing.assert_close(module.state_dict(), expected, rtol=0, atol=0)
        made = ActionCausalInferencePipeline.from_checkpoint(checkpoint, config=config)
        assert torch.equal(made.generator.head.head.bias, module.generator.head.head.bias)
        output = tmp_path / f"{checkpoint.suffix[1:]}.safetensors"
        run_export([f"--config={config}", f"--ckpt_path={checkpoint}", "--format=wan", f"--output={output}"])
        assert output.is_file()
    assert "module_that_is_gone" not in sys.modules and list(Path.cwd().iterdir()) == []


def test_an_adapter_says_from_where_its_base_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path = write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    overlay = write(tmp_path / "overlay.yaml", {"model": {"pretrained": "gone/backbone"}})
    arguments = [f"--config={config}", f"--config={overlay}", f"--ckpt_path={path}", "--format=adapter"]
    with pytest.raises(FileNotFoundError, match=rf"no weights at gone/backbone: .*looked for from '{tmp_path}'"):
        run_export([*arguments, f"--output={tmp_path / 'a.safetensors'}"])


def test_configurations_stack_and_include_as_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    base = deepcopy(CONFIG["model"])
    write(tmp_path / "parts" / "encoder.yaml", base["text_encoder"])
    write(tmp_path / "base.yaml", {"model": base | {"text_encoder": "parts/encoder.yaml"}, "data": GONE})
    projection = {"class_path": "lightning_action.ConvActionModule"}
    changed = {"seed": 11, "vae": {"init_args": {"patch_size": 8}}, "sampling": {"seed": 7}, "timestep_shift": "1e1"}
    write(tmp_path / "over.yaml", {"model": changed | {"action_projection": None}, "trainer": {"callbacks+": [GONE]}})
    module = build_module([tmp_path / "base.yaml", tmp_path / "over.yaml"])
    assert (module.seed, module.sampling.seed, module.sampling.num_steps, module.schedule.shift) == (11, 7, 2, 10.0)
    assert module.frozen.vae.latent_shape(16, 24) == (7, 2, 3)
    assert module._factories.action_projection is None and build_module(tmp_path / "base.yaml").seed == 6
    write(tmp_path / "other.yaml", {"model": {"action_projection": projection}})
    with pytest.raises(ValueError, match=r"base\.yaml, .*other\.yaml describes no model: .*action_projection"):
        build_module([tmp_path / "base.yaml", tmp_path / "other.yaml"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "is no configuration: while parsing"),
        ("- 3", "is no configuration: it has no sections"),
        ("", "is no configuration: it has no sections"),
        ("data: {}", "required: model.generator, model.text_encoder, model.vae"),
        ("model: 3", "describes no model"),
        ("model: &a {generator: *a}", "is no configuration"),
        ("model: !!python/object/apply:os.system [touch marker]", "is no configuration: could not determine"),
        ("model: {vae: !!python/name:os.system }", "is no configuration: could not determine"),
        ("model: {generatr: 3}", "describes no model: .*generatr"),
        ("model: {seed: [a]}", "describes no model: .*model.seed"),
        ("model: {generator: NoSuchClass}", "describes no model: .*NoSuchClass"),
        (
            "model: {generator: lightning_action.NoSuchClass}",
            "NoSuchClass., which is no part of lightning_action",
        ),
    ],
)
def test_what_is_no_configuration_is_told_in_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        build_module("c.yaml")
    assert "\n" not in str(refused.value) and capfd.readouterr() == ("", "")
    assert not Path("marker").exists()


def test_what_is_no_checkpoint_of_a_run_is_told(tmp_path: Path) -> None:
    config, path = write_run(tmp_path)
    marker = tmp_path / "marker"
    folder = as_folder(path)
    torch.save({"generator": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"is no checkpoint of a run .it holds generator, no state_dict"):
        load_run(config, path)
    torch.save({"state_dict": {}, "more": Touches(marker)}, path)
    with pytest.raises(ValueError, match=r"last\.ckpt cannot be read as tensors and plain values alone"):
        load_run(config, path)
    torch.save(Touches(marker), folder / "meta.pt")
    with pytest.raises(ValueError, match=r"meta\.pt cannot be read as tensors and plain values alone"):
        load_run(config, folder)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the control: without care it runs"


@pytest.mark.parametrize(("trait", "value"), [("num_heads", 1), ("preconditioned", True)])
def test_a_checkpoint_of_other_traits_is_refused(trait: str, value: int, tmp_path: Path) -> None:
    """Although all shapes fit; one that does not say them, as older ones, loads as what it was trained as."""
    config, path = write_run(tmp_path)
    settings = deepcopy(CONFIG)
    settings["model"]["generator"]["init_args"][trait] = value
    other = write(tmp_path / "other.yaml", settings)
    for checkpoint in (path, as_folder(path)):
        with pytest.raises(ValueError, match=f"checkpoint was trained with {trait} .*, the generator has .* {value}"):
            load_run(other, checkpoint)
        load_run(config, checkpoint)
    saved = torch.load(path, weights_only=True)
    del saved["num_heads"], saved["preconditioned"]
    torch.save(saved, path)
    if trait == "num_heads":
        load_run(other, path)
    else:
        load_run(config, path)
        with pytest.raises(ValueError, match="trained with preconditioned False"):
            load_run(other, path)


@pytest.mark.parametrize("folder", [False, True])
def test_a_checkpoint_with_values_that_are_not_finite_is_refused(tmp_path: Path, folder: bool) -> None:
    config, path = write_run(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    next(iter(checkpoint["state_dict"].values())).fill_(float("nan"))
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="holds NaN or infinity .in generator.*: take an earlier"):
        load_run(config, as_folder(path) if folder else path)


@pytest.mark.parametrize(("key", "told"), [("fit_seconds", "not written by"), ("vae", "no fitted VAE: use the config")])
def test_a_checkpoint_without_what_a_run_saves_is_refused(tmp_path: Path, key: str, told: str) -> None:
    config, path = write_run(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in checkpoint.items() if name != key}, path)
    with pytest.raises(ValueError, match=told):
        load_run(config, path)


def test_a_configuration_of_before_loads_without_the_settings_that_are_gone(tmp_path: Path) -> None:
    old = deepcopy(CONFIG["model"])
    old["sampling"] = {**old.get("sampling", {}), "seed": 13, "stream_video": True}
    module = build_module(write(tmp_path / "old.yaml", {"model": old}))
    assert module.sampling.seed == 13 and not hasattr(module.sampling, "stream_video")

"""A trained run is exported by one command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_action import ActionModulationProjection, ActionVideoModule, CausalWanModel, LinearVideoCodec
from lightning_action.checkpoints.adapter import load_adapter, read_adapter
from lightning_action.checkpoints.export import export_generator, export_pretrained
from lightning_action.checkpoints.pretrained import load_generator
from lightning_action.cli.export import export_adapter, run_export
from lightning_action.cli.support.mistakes import UsageError
from lightning_action.evaluation.report.report import write_report
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.weights.fingerprint import fingerprint
from lightning_action.weights.release import RELEASE_VARIABLE
from lightning_action.weights.tensor_files import read_tensors
from tests.support import made_up_report
from tests.support.small_generator import fill


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def factory(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"lightning_action.{path}", "init_args": arguments}


GENERATOR = {"dim": 24, "ffn_dim": 32, "num_heads": 2, "num_layers": 2, "in_dim": 7, "out_dim": 7}
GENERATOR |= {"freq_dim": 10, "text_dim": 6, "text_len": 4}


def config(pretrained: Path | str) -> dict[str, Any]:
    model = {
        "generator": factory("generator.model.CausalWanModel", **GENERATOR),
        "text_encoder": factory("frozen.text.HashingTextEncoder", text_dim=6, text_len=4),
        "vae": factory("frozen.codec.LinearVideoCodec", latent_dim=7, patch_size=4),
        "action_projection": factory("action.projection.ActionModulationProjection", hidden_dim=20),
        "pretrained": str(pretrained),
    }
    return {"model": model, "data": factory("data.SpriteDataModule", world=factory("data.MovingSpriteWorld"))}


def trained_module() -> ActionVideoModule:
    module = ActionVideoModule(
        lambda: CausalWanModel(**GENERATOR),
        lambda: HashingTextEncoder(6, 4),
        lambda: LinearVideoCodec(7, 4),
        lambda action_dim, dim: ActionModulationProjection(action_dim, dim, hidden_dim=20),
    )
    module.configure_model()
    module.frozen.vae.fit(torch.rand(6, 5, 3, 8, 12))  # type: ignore[attr-defined]
    fill(module)
    return module


def arguments(folder: Path, kind: str, output: str, *more: str) -> list[str]:
    return [
        f"--config={folder / 'config.yaml'}",
        f"--ckpt_path={folder / 'x.ckpt'}",
        f"--format={kind}",
        f"--output={folder / output}",
        *more,
    ]


@pytest.fixture
def run_folder(tmp_path: Path) -> tuple[Path, ActionVideoModule]:
    """Configuration and checkpoint of a run that started from `base`."""
    module = trained_module()
    export_pretrained(tmp_path / "base", module.generator.state_dict(), module.generator.traits, module.frozen.vae, 0.0)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(tmp_path / "base")))
    save_run(tmp_path, module)
    return tmp_path, module


def save_run(folder: Path, module: ActionVideoModule) -> None:
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint | {"fit_seconds": 12.5, "pytorch-lightning_version": "2.6.6"}, folder / "x.ckpt")


def test_a_run_is_exported_in_every_format(
    run_folder: tuple[Path, ActionVideoModule], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = run_folder
    for kind, output in (("wan", "w.safetensors"), ("wan", "wan"), ("diffusers", "diffusers")):
        run_export(arguments(folder, kind, output, "--max_shard_gb=0.00001"))
        assert f"written to {folder / output}" in capsys.readouterr().out
        other = CausalWanModel(**GENERATOR)
        load_generator(other, folder / output)
        assert same_weights(module.generator, other)
    assert load_generator(other, folder / "w.safetensors").fit_seconds == 12.5
    run_export(arguments(folder, "adapter", "a.safetensors"))
    action = ActionModulationProjection(module.schema.action_dim, 24, hidden_dim=20)
    load_adapter(folder / "a.safetensors", module.generator, action, module.schema)
    assert module.action_projection is not None
    assert same_weights(module.action_projection, action)


@pytest.mark.parametrize("kind", ["wan", "diffusers"])
def test_exports_say_how_many_heads_they_have(run_folder: tuple[Path, ActionVideoModule], kind: str) -> None:
    folder, _ = run_folder
    run_export(arguments(folder, kind, "x"))
    with pytest.raises(ValueError, match="was trained with num_heads 2, the generator has num_heads 4"):
        load_generator(CausalWanModel(**{**GENERATOR, "num_heads": 4}), folder / "x")


def test_averaged_weights_are_exported_where_asked_for(run_folder: tuple[Path, ActionVideoModule]) -> None:
    folder, module = run_folder
    with pytest.raises(ValueError, match="x.ckpt holds no averaged weights: leave --ema out"):
        run_export(arguments(folder, "wan", "w.safetensors", "--ema"))
    name = "head.head.bias"
    average = {f"generator.{name}": torch.full((28,), 0.25)}
    checkpoint = torch.load(folder / "x.ckpt")
    torch.save({**checkpoint, "ema_state_dict": average}, folder / "x.ckpt")
    for flags, expected in (((), module.generator.head.head.bias), (("--ema",), average[f"generator.{name}"])):
        run_export(arguments(folder, "wan", "w.safetensors", "--overwrite", *flags))
        written = read_tensors(folder / "w.safetensors")
        assert torch.equal(written[name], expected)
        assert torch.equal(written["head.modulation"], module.generator.head.modulation)
    torch.save({**checkpoint, "ema_state_dict": {"generator.x": torch.zeros(1)}}, folder / "x.ckpt")
    with pytest.raises(ValueError, match=r"the average in .*x.ckpt does not fit \(1 unexpected: generator.x\)"):
        run_export(arguments(folder, "wan", "w.safetensors", "--overwrite", "--ema"))


def test_an_adapter_of_a_backbone_that_was_trained_too_is_refused(
    run_folder: tuple[Path, ActionVideoModule],
) -> None:
    folder, module = run_folder
    with torch.no_grad():
        module.generator.head.modulation.add_(0.5)
    save_run(folder, module)
    with pytest.raises(ValueError, match=r"the generator is not the base .*, because it was trained too: .*--base"):
        run_export(arguments(folder, "adapter", "a.safetensors"))
    assert not (folder / "a.safetensors").exists()
    run_export(arguments(folder, "wan", "w.safetensors"))
    run_export(arguments(folder, "adapter", "a.safetensors", f"--base={folder / 'w.safetensors'}"))
    assert read_adapter(folder / "a.safetensors").base == fingerprint(module.generator.state_dict())


def test_an_adapter_of_a_run_that_started_from_the_release(
    run_folder: tuple[Path, ActionVideoModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, module = run_folder
    monkeypatch.setenv(RELEASE_VARIABLE, str(folder / "release"))
    export_generator(module.generator, folder / "release" / "diffusion_pytorch_model.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump(config("release")))
    run_export(arguments(folder, "adapter", "a.safetensors", "--overwrite"))
    assert read_adapter(folder / "a.safetensors").base == fingerprint(module.generator.state_dict())
    with torch.no_grad():
        module.generator.head.modulation.add_(0.5)
    save_run(folder, module)
    with pytest.raises(ValueError, match=r"the generator is not the base .*diffusion_pytorch_model.safetensors"):
        run_export(arguments(folder, "adapter", "b.safetensors"))


def test_an_adapter_of_a_run_that_started_with_merged_lora(run_folder: tuple[Path, ActionVideoModule]) -> None:
    folder, module = run_folder
    lora = {f"blocks.0.ffn.0.lora_{part}.weight": torch.randn(size) for part, size in (("A", (3, 24)), ("B", (32, 3)))}
    torch.save(lora, folder / "lora.pt")
    load_generator(module.generator, folder / "base", lora=folder / "lora.pt")
    save_run(folder, module)
    with pytest.raises(ValueError, match="the generator is not the base"):
        run_export(arguments(folder, "adapter", "a.safetensors"))
    settings = config(folder / "base")
    settings["model"]["pretrained_lora"] = str(folder / "lora.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    run_export(arguments(folder, "adapter", "a.safetensors", "--overwrite"))
    assert read_adapter(folder / "a.safetensors").base == fingerprint(module.generator.state_dict())


def test_a_module_without_projection_has_no_adapter(tmp_path: Path) -> None:
    module = trained_module()
    module.action_projection = None
    with pytest.raises(ValueError, match="nothing to put into an adapter"):
        export_adapter(module, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("kind", "output", "error", "message"),
    [
        ("adapter", "base", FileExistsError, "is there already"),
        ("wan", "base", FileExistsError, "is there already"),
    ],
)
def test_impossible_outputs_are_refused_before_anything_is_read(
    tmp_path: Path, kind: str, output: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "x").touch()
    with pytest.raises(error, match=message):
        run_export(arguments(tmp_path, kind, output))


def report_of(module: ActionVideoModule) -> dict[str, Any]:
    report = made_up_report.report()
    report["provenance"]["checkpoint"]["fingerprint"] = fingerprint(module.state_dict())
    return report


def test_an_adapter_comes_with_a_card_that_has_the_figures_of_the_run(
    run_folder: tuple[Path, ActionVideoModule], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = run_folder
    write_report(folder / "report.json", report_of(module))
    run_export(arguments(folder, "adapter", "a.safetensors"))
    card = (folder / "a.md").read_text()
    assert "**obeys**" in card and "| sign accuracy (chance 0.5) | 0.989 | 0.939 to 1.039 |" in card
    assert read_adapter(folder / "a.safetensors").base in card and "does not say which weights" not in card
    assert f"card, with the figures of the report, written to {folder / 'a.md'}" in capsys.readouterr().out


def test_a_folder_can_be_uploaded_as_it_is(run_folder: tuple[Path, ActionVideoModule]) -> None:
    folder, _ = run_folder
    for _ in range(2):
        run_export(arguments(folder, "adapter", "mine", "--overwrite"))
        assert sorted(os.listdir(folder / "mine")) == ["README.md", "adapter.safetensors"]
    read_adapter(folder / "mine" / "adapter.safetensors")
    assert "no report was given" in (folder / "mine" / "README.md").read_text()
    (folder / "mine" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"it holds notes.txt"):
        run_export(arguments(folder, "adapter", "mine", "--overwrite"))
    with pytest.raises(FileExistsError, match=r"it holds .*README.md"):
        run_export(arguments(folder, "wan", "mine", "--overwrite"))


def test_a_card_that_is_there_is_not_replaced(run_folder: tuple[Path, ActionVideoModule]) -> None:
    folder, _ = run_folder
    (folder / "a.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"a.md is there already"):
        run_export(arguments(folder, "adapter", "a.safetensors"))
    assert not (folder / "a.safetensors").exists() and (folder / "a.md").read_text() == "mine"


def test_a_report_of_other_weights_makes_no_card(
    run_folder: tuple[Path, ActionVideoModule], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = run_folder
    unsigned = {key: value for key, value in made_up_report.report().items() if key != "provenance"}
    for beside in (made_up_report.report(), unsigned, {"no": "report"}):
        write_report(folder / "report.json", beside)
        run_export(arguments(folder, "adapter", "a.safetensors", "--overwrite"))
        assert "left out of the card: " in capsys.readouterr().out
        assert "no report was given" in (folder / "a.md").read_text()
    write_report(folder / "other.json", made_up_report.report())
    with pytest.raises(ValueError, match=r"other.json was measured on other weights"):
        run_export(arguments(folder, "adapter", "b.safetensors", f"--report={folder / 'other.json'}"))
    assert not (folder / "b.safetensors").exists()
    write_report(folder / "old.json", unsigned)
    run_export(arguments(folder, "adapter", "b.safetensors", f"--report={folder / 'old.json'}"))
    assert "**obeys**" in (folder / "b.md").read_text()
    assert "does not say which weights" in (folder / "b.md").read_text()
    with pytest.raises(UsageError, match="--report is for the card of an adapter"):
        run_export(arguments(folder, "wan", "c.safetensors", f"--report={folder / 'old.json'}"))


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="invalid choice: 'onnx'"):
        run_export(arguments(tmp_path, "onnx", "x"))


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "big"])
def test_a_size_of_shards_that_is_none_is_refused(size: str) -> None:
    arguments = ["--config=c.yaml", "--ckpt_path=x.ckpt", "--format=wan", "--output=out", f"--max_shard_gb={size}"]
    message = "invalid float value: 'big'" if size == "big" else f"must be a finite number above 0, got {float(size)}"
    with pytest.raises(ValueError, match=f"max_shard_gb:? {message}"):
        run_export(arguments)

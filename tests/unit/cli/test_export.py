"""What is exported loads again bit for bit, and a trained run is exported by one command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_action import ActionModulationProjection, ActionVideoModule, CausalWanModel, LinearVideoCodec
from lightning_action.checkpoints.adapter import load_adapter, read_adapter
from lightning_action.checkpoints.lora import LoRASettings, inject_lora, merged_state_dict, split_parameters
from lightning_action.checkpoints.pretrained import export, load_generator
from lightning_action.cli.export import export_adapter, export_diffusers, export_wan, run_export
from lightning_action.cli.mistakes import UsageError
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.weights.checkpoint import read_generator
from lightning_action.weights.fingerprint import fingerprint
from lightning_action.weights.names import to_diffusers_name
from lightning_action.weights.release import RELEASE_VARIABLE
from lightning_action.weights.safetensors_files import read_metadata
from lightning_action.weights.size import generator_arguments
from lightning_action.weights.tensor_files import read_tensors
from tests.support.small_generator import fill, small_generator

Write = Callable[..., None]


def with_lora(seed: int = 0) -> CausalWanModel:
    generator = small_generator(seed)
    inject_lora(generator, LoRASettings(rank=3, target_modules=["q", "ffn.0"]))
    for parameter in split_parameters(generator)[0].values():
        torch.nn.init.normal_(parameter)
    return generator


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("write", [export_wan, export_diffusers])
@pytest.mark.parametrize("max_shard_bytes", [None, 30_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path: Path, write: Write, max_shard_bytes: int | None, dtype: torch.dtype) -> None:
    generator, other = small_generator(1).to(dtype), small_generator(2).to(dtype)
    write(generator, tmp_path / "out", max_shard_bytes)
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (max_shard_bytes is not None)
    load_generator(other, tmp_path / "out")
    assert same_weights(generator, other)
    assert fingerprint(read_generator(tmp_path / "out").tensors) == fingerprint(generator.state_dict())
    assert {tensor.dtype for tensor in read_tensors(tmp_path / "out").values()} == {dtype}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_takes_metadata_along(tmp_path: Path) -> None:
    generator, other = small_generator(1), small_generator(2)
    export_wan(generator, tmp_path / "x.safetensors", metadata={"fit_seconds": "2.5"})
    assert load_generator(other, tmp_path / "x.safetensors").fit_seconds == 2.5
    assert read_metadata(tmp_path / "x.safetensors")["fingerprint"] == fingerprint(generator.state_dict())
    assert same_weights(generator, other)


@pytest.mark.parametrize("write", [export_wan, export_diffusers])
def test_lora_is_merged(tmp_path: Path, write: Write) -> None:
    generator, plain = with_lora(), small_generator(2)
    write(generator, tmp_path / "out")
    load_generator(plain, tmp_path / "out")
    merged = merged_state_dict(generator)
    assert all(torch.equal(tensor, merged[name]) for name, tensor in plain.state_dict().items())
    assert not same_weights(plain, small_generator())


def test_names_and_configuration_are_those_of_the_releases(tmp_path: Path) -> None:
    generator = small_generator(eps=1e-5)
    export_wan(generator, tmp_path / "wan")
    export_diffusers(generator, tmp_path / "diffusers")
    ours = generator.state_dict()
    assert read_tensors(tmp_path / "wan").keys() == ours.keys()
    assert read_tensors(tmp_path / "diffusers").keys() == {to_diffusers_name(name) for name in ours}
    wan = json.loads((tmp_path / "wan" / "config.json").read_text())
    expected = {**generator_arguments(ours, num_heads=3), "patch_size": [1, 2, 1], "text_len": 7, "eps": 1e-5}
    assert wan == {**expected, "_class_name": "WanModel", "model_type": "t2v"}
    theirs = json.loads((tmp_path / "diffusers" / "config.json").read_text())
    assert (theirs["num_attention_heads"], theirs["attention_head_dim"], theirs["eps"]) == (3, 12, 1e-5)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="diffusers has no Wan transformer without qk_norm"):
        export_diffusers(small_generator(qk_norm=False), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="is there already"):
        export_wan(small_generator(), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


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
    export(tmp_path / "base", module.generator.state_dict(), module.frozen.vae, 0.0, 2)
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
    export_wan(module.generator, folder / "release" / "diffusion_pytorch_model.safetensors")
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
        ("adapter", "folder", ValueError, "an adapter is a file: give an --output that ends in .safetensors"),
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


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="invalid choice: 'onnx'"):
        run_export(arguments(tmp_path, "onnx", "x"))


@pytest.mark.parametrize("output", ["out.safetensors", "out"])
def test_nothing_is_replaced_unasked(tmp_path: Path, output: str) -> None:
    path, first, second = tmp_path / output, small_generator(1), small_generator(2)
    export_wan(first, path)
    with pytest.raises(FileExistsError, match=f"{path} is there already"):
        export_wan(second, path)
    assert fingerprint(read_generator(path).tensors) == fingerprint(first.state_dict())
    export_wan(second, path, overwrite=True)
    assert fingerprint(read_generator(path).tensors) == fingerprint(second.state_dict())
    assert [each.name for each in tmp_path.iterdir()] == [output]


def test_only_an_export_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    (tmp_path / "x.safetensors").mkdir()
    for write, output in ((export_wan, "mine"), (export_diffusers, "mine"), (export_wan, "x.safetensors")):
        with pytest.raises(FileExistsError, match="no export of this kind wrote"):
            write(small_generator(), tmp_path / output, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("write", [export_wan, export_diffusers])
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, write: Write) -> None:
    generator = small_generator()
    generator.head.head.bias.data[1] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinity \(in .*bias\): nothing was written"):
        write(generator, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("output", ["out.safetensors", "out"])
def test_a_flipped_bit_is_found(tmp_path: Path, output: str, dtype: torch.dtype) -> None:
    """The lowest one of a value, too."""
    path = tmp_path / output
    export_wan(small_generator(1).to(dtype), path, max_shard_bytes=30_000)
    other = small_generator(2)
    load_generator(other, path)
    file = max(tmp_path.rglob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-8] ^= 1
    file.write_bytes(content)
    before = fingerprint(other.state_dict())
    with pytest.raises(ValueError, match="does not hold the weights that were written into it"):
        load_generator(other, path)
    assert fingerprint(other.state_dict()) == before


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "big"])
def test_a_size_of_shards_that_is_none_is_refused(size: str) -> None:
    arguments = ["--config=c.yaml", "--ckpt_path=x.ckpt", "--format=wan", "--output=out", f"--max_shard_gb={size}"]
    with pytest.raises(UsageError, match=f"max_shard_gb: expected a finite number above 0, got '{size}'"):
        run_export(arguments)

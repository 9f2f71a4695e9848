"""What is exported loads again bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from lightning_action.checkpoints.export import export_generator, export_pretrained, write_shards
from lightning_action.checkpoints.lora import LoRASettings, inject_lora, merged_state_dict, split_parameters
from lightning_action.checkpoints.pretrained import load_generator, prepare_codec
from lightning_action.frozen.linear_codec import LinearVideoCodec
from lightning_action.generator.model import CausalWanModel
from lightning_action.weights.fingerprint import fingerprint
from lightning_action.weights.generator_file import read_generator
from lightning_action.weights.names import to_diffusers_name
from lightning_action.weights.safetensors_files import read_metadata
from lightning_action.weights.size import generator_arguments
from lightning_action.weights.tensor_files import as_lazy, read_tensors
from tests.support.small_generator import small_generator

Naming = Literal["wan", "diffusers"]
NAMINGS = ("wan", "diffusers")
TENSORS = {"a": torch.randn(10), "b": torch.randn(5).bfloat16(), "c": torch.randn(3, 4), "d": torch.randn(2)}


def with_lora(seed: int = 0) -> CausalWanModel:
    generator = small_generator(seed)
    inject_lora(generator, LoRASettings(rank=3, target_modules=["q", "ffn.0"]))
    for parameter in split_parameters(generator)[0].values():
        torch.nn.init.normal_(parameter)
    return generator


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("max_shard_bytes", [None, 30_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path: Path, naming: Naming, max_shard_bytes: int | None, dtype: torch.dtype) -> None:
    generator, other = small_generator(1).to(dtype), small_generator(2).to(dtype)
    export_generator(generator, tmp_path / "out", naming, max_shard_bytes)
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (max_shard_bytes is not None)
    load_generator(other, tmp_path / "out")
    assert same_weights(generator, other)
    assert fingerprint(read_generator(tmp_path / "out").tensors) == fingerprint(generator.state_dict())
    assert {tensor.dtype for tensor in read_tensors(tmp_path / "out").values()} == {dtype}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_preconditioned_generator_says_so_and_is_none_of_diffusers(tmp_path: Path) -> None:
    generator, other = small_generator(1, preconditioned=True), small_generator(2, preconditioned=True)
    export_generator(generator, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["preconditioned"] is True
    load_generator(other, tmp_path / "out")
    assert same_weights(generator, other)
    with pytest.raises(ValueError, match="was trained with preconditioned True, the generator has .* False"):
        load_generator(small_generator(2), tmp_path / "out")
    with pytest.raises(ValueError, match="no preconditioned Wan transformer: export with --format wan"):
        export_generator(generator, tmp_path / "transformer", "diffusers")
    assert not (tmp_path / "transformer").exists()


def test_a_file_takes_metadata_along(tmp_path: Path) -> None:
    generator, other = small_generator(1), small_generator(2)
    export_generator(generator, tmp_path / "x.safetensors", metadata={"fit_seconds": "2.5"})
    assert load_generator(other, tmp_path / "x.safetensors").fit_seconds == 2.5
    assert read_metadata(tmp_path / "x.safetensors")["fingerprint"] == fingerprint(generator.state_dict())
    assert same_weights(generator, other)


@pytest.mark.parametrize("naming", NAMINGS)
def test_lora_is_merged(tmp_path: Path, naming: Naming) -> None:
    generator, plain = with_lora(), small_generator(2)
    export_generator(generator, tmp_path / "out", naming)
    load_generator(plain, tmp_path / "out")
    merged = merged_state_dict(generator)
    assert all(torch.equal(tensor, merged[name]) for name, tensor in plain.state_dict().items())
    assert not same_weights(plain, small_generator())


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_file_alone_has_either_names(tmp_path: Path, naming: Naming) -> None:
    generator, other = small_generator(1), small_generator(2)
    export_generator(generator, tmp_path / "x.safetensors", naming)
    assert ("proj_out.weight" in read_tensors(tmp_path / "x.safetensors")) == (naming == "diffusers")
    load_generator(other, tmp_path / "x.safetensors")
    assert same_weights(generator, other)


def test_names_and_configuration_are_those_of_the_releases(tmp_path: Path) -> None:
    generator = small_generator(eps=1e-5)
    export_generator(generator, tmp_path / "wan")
    export_generator(generator, tmp_path / "diffusers", "diffusers")
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
        export_generator(small_generator(qk_norm=False), tmp_path / "out", "diffusers")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="is there already"):
        export_generator(small_generator(), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


@pytest.mark.parametrize("output", ["out.safetensors", "out"])
def test_nothing_is_replaced_unasked(tmp_path: Path, output: str) -> None:
    path, first, second = tmp_path / output, small_generator(1), small_generator(2)
    export_generator(first, path)
    with pytest.raises(FileExistsError, match=f"{path} is there already"):
        export_generator(second, path)
    assert fingerprint(read_generator(path).tensors) == fingerprint(first.state_dict())
    export_generator(second, path, overwrite=True)
    assert fingerprint(read_generator(path).tensors) == fingerprint(second.state_dict())
    assert [each.name for each in tmp_path.iterdir()] == [output]


def test_only_an_export_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    (tmp_path / "x.safetensors").mkdir()
    for output in ("mine", "x.safetensors"):
        with pytest.raises(FileExistsError, match="no export of this kind wrote"):
            export_generator(small_generator(), tmp_path / output, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("naming", NAMINGS)
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, naming: Naming) -> None:
    generator = small_generator()
    generator.head.head.bias.data[1] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinity \(in .*bias\): nothing was written"):
        export_generator(generator, tmp_path / "out", naming)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("output", ["out.safetensors", "out"])
def test_a_flipped_bit_is_found(tmp_path: Path, output: str, dtype: torch.dtype) -> None:
    """The lowest one of a value, too."""
    path = tmp_path / output
    export_generator(small_generator(1).to(dtype), path, max_shard_bytes=30_000)
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


@pytest.mark.parametrize(
    ("max_shard_bytes", "expected"),
    [(None, ["abcd"]), (106, ["abcd"]), (105, ["abc", "d"]), (50, ["ab", "c", "d"]), (1, list("abcd"))],
)
def test_shards_hold_every_tensor_once(tmp_path: Path, max_shard_bytes: int | None, expected: list[str]) -> None:
    write_shards(tmp_path, as_lazy(TENSORS), {"format": "pt", "of": "this"}, max_shard_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert ["".join(sorted(read_tensors(file))) for file in files] == expected
    assert all(read_metadata(file) == {"format": "pt", "of": "this"} for file in files)
    read = read_tensors(tmp_path)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    assert index.is_file() == (len(expected) > 1)
    if index.is_file():
        assert json.loads(index.read_text())["metadata"] == {"total_size": 40 + 10 + 48 + 8}
        assert files[0].name == f"diffusion_pytorch_model-00001-of-0000{len(expected)}.safetensors"


def test_a_fit_starts_from_what_one_exported(tmp_path: Path) -> None:
    generator, codec = small_generator(1), LinearVideoCodec(latent_dim=7, patch_size=4)
    codec.fit(torch.rand(6, 5, 3, 8, 12, generator=torch.Generator().manual_seed(0)))
    export_pretrained(tmp_path, generator.state_dict(), generator.traits, codec, 12.5)
    other, loaded = small_generator(2), LinearVideoCodec(latent_dim=7, patch_size=4)
    assert not same_weights(generator, other)
    report = load_generator(other, str(tmp_path))
    assert (report.fit_seconds, len(report.tensors)) == (12.5, len(generator.state_dict()))
    assert (report.part, report.dropped, report.ignored, report.num_merged) == ("", (), (), 0)
    prepare_codec(loaded, str(tmp_path), None)
    assert same_weights(generator, other)
    assert same_weights(codec, loaded)

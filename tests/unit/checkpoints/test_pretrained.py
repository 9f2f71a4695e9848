"""The folder that a fit leaves, and every kind of checkpoint that a fit may start from instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.checkpoints.export import export_pretrained
from lightning_action.checkpoints.lora import LoRASettings, inject_lora, merged_state_dict, split_parameters
from lightning_action.checkpoints.pretrained import (
    GENERATOR_FILE,
    load_action_projection,
    load_generator,
    prepare_codec,
)
from lightning_action.frozen.linear_codec import LinearVideoCodec
from lightning_action.generator.model import CausalWanModel
from lightning_action.weights.names import to_diffusers_name
from lightning_action.weights.safetensors_files import write_safetensors
from tests.support.small_generator import fill, small_generator


class Videos:
    def codec_videos(self) -> Tensor:
        return torch.rand(6, 5, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def fitted() -> LinearVideoCodec:
    codec = LinearVideoCodec(latent_dim=7, patch_size=4)
    prepare_codec(codec, None, Videos())
    return codec


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "told", "without_a_word"),
    [
        ({"num_heads": 2}, "num_heads 3, the generator has .* 2", True),
        ({"preconditioned": True}, "preconditioned False, the generator has preconditioned True", False),
    ],
)
def test_other_traits_are_refused_although_all_shapes_fit(
    changed: dict[str, int], told: str, without_a_word: bool, tmp_path: Path
) -> None:
    """A file that does not say its heads may have any, but none that does not say so is of a preconditioned model."""
    generator, other = small_generator(1), small_generator(2, **changed)
    export_pretrained(tmp_path, generator.state_dict(), generator.traits, fitted(), 0.0)
    with pytest.raises(ValueError, match=f"generator.safetensors was trained with {told}"):
        load_generator(other, tmp_path)
    assert same_weights(other, small_generator(2))
    write_safetensors(tmp_path / GENERATOR_FILE, generator.state_dict(), {})
    if without_a_word:
        load_generator(other, tmp_path)
        assert same_weights(other, generator)
    else:
        with pytest.raises(ValueError, match=told):
            load_generator(other, tmp_path)
    export_pretrained(tmp_path, generator.state_dict(), other.traits, fitted(), 0.0)
    load_generator(other, tmp_path)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_checkpoint_of_a_run_says_its_traits_too(preconditioned: bool, tmp_path: Path) -> None:
    generator = small_generator(1, preconditioned=preconditioned)
    tensors = {f"generator.{name}": tensor for name, tensor in generator.state_dict().items()}
    torch.save({"state_dict": tensors, **generator.traits, "fit_seconds": 4.5}, tmp_path / "last.ckpt")
    other = small_generator(2, preconditioned=preconditioned)
    assert load_generator(other, tmp_path / "last.ckpt").fit_seconds == 4.5
    assert same_weights(other, generator)
    with pytest.raises(ValueError, match=f"trained with preconditioned {preconditioned}, the generator"):
        load_generator(small_generator(2, preconditioned=not preconditioned), tmp_path / "last.ckpt")


def test_what_is_left_may_be_read_lazily_such_as_merged_lora(tmp_path: Path) -> None:
    generator, other = small_generator(1), small_generator(2)
    inject_lora(generator, LoRASettings(rank=3, alpha=1.5))
    for parameter in split_parameters(generator)[0].values():
        torch.nn.init.normal_(parameter)
    export_pretrained(tmp_path, merged_state_dict(generator), generator.traits, fitted(), 0.0)
    load_generator(other, tmp_path)
    merged = merged_state_dict(generator)
    assert all(torch.equal(tensor, merged[name]) for name, tensor in other.state_dict().items())
    assert not same_weights(other, small_generator(1))


def test_what_is_missing_or_does_not_fit_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=f"{path}.*`pretrained` is a checkpoint .*export_weights"):
            load_generator(small_generator(), str(path))
    with pytest.raises(FileNotFoundError, match="no vae.safetensors in"):
        prepare_codec(LinearVideoCodec(7, 4), str(tmp_path), Videos())
    export_pretrained(tmp_path, small_generator().state_dict(), small_generator().traits, fitted(), 0.0)
    with pytest.raises(ValueError, match="does not fit LinearVideoCodec"):
        prepare_codec(LinearVideoCodec(6, 4), str(tmp_path), None)
    with pytest.raises(ValueError, match="LinearVideoCodec is fitted to training videos"):
        prepare_codec(LinearVideoCodec(7, 4), None, object())


def test_another_size_is_told_in_the_words_of_the_configuration(tmp_path: Path) -> None:
    export_pretrained(tmp_path, small_generator().state_dict(), small_generator().traits, fitted(), 0.0)
    other = small_generator(1, ffn_dim=50, num_layers=3)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    message = (
        r"generator.safetensors does not fit CausalWanModel: it holds a model of ffn_dim 44 \(the configuration says "
        r"50\), num_layers 2 \(the configuration says 3\)$"
    )
    with pytest.raises(ValueError, match=message):
        load_generator(other, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_tensors_that_are_missing_or_too_many_are_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    tensors = small_generator().state_dict() | {"blocks.0.action_model.q.weight": torch.zeros(2)}
    del tensors["blocks.1.self_attn.q.bias"]
    write_safetensors(tmp_path / "x.safetensors", tensors, {})
    other = small_generator(1)
    with pytest.raises(ValueError, match=r"1 missing: blocks.1.self_attn.q.bias; 1 unexpected: blocks.0.action_model"):
        load_generator(other, tmp_path / "x.safetensors")
    assert same_weights(other, small_generator(1))


def original(generator: CausalWanModel, folder: Path) -> Path:
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", generator.state_dict(), {})
    return folder


def diffusers(generator: CausalWanModel, folder: Path) -> Path:
    tensors = {to_diffusers_name(name): tensor for name, tensor in generator.state_dict().items()}
    write_safetensors(folder / "transformer" / "diffusion_pytorch_model.safetensors", tensors, {})
    return folder


def trainer(generator: CausalWanModel, folder: Path) -> Path:
    ours = {f"model.{name}": tensor for name, tensor in generator.state_dict().items()}
    other = {name: tensor + 1 for name, tensor in ours.items()}
    torch.save({"generator": other, "critic": other, "generator_ema": ours, "step": 3}, folder / "model.pt")
    return folder / "model.pt"


@pytest.mark.parametrize("write", [original, diffusers, trainer])
@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_of_the_family_is_loaded(
    tmp_path: Path,
    write: Callable[[CausalWanModel, Path], Path],
    meta: bool,
    dtype: torch.dtype,
) -> None:
    generator = small_generator(1)
    path = write(generator, tmp_path)
    with torch.device("meta" if meta else "cpu"):
        other = small_generator(2) if not meta else CausalWanModel(36, 44, 3, 2, 5, 5, (1, 2, 1), 14, 9, 7)
    other = other.to(dtype)
    report = load_generator(other, path)
    assert {p.dtype for p in other.parameters()} == {dtype}
    assert same_weights(generator.to(dtype), other)
    assert all(parameter.requires_grad for parameter in other.parameters())
    assert report.part == ("generator_ema.model." if write is trainer else "")
    if write is trainer:
        assert report.ignored == ("critic", "generator")
        assert "(generator_ema.model), left aside critic, generator" in str(report)


def test_the_release_folder_is_where_no_path_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_ACTION_WEIGHTS", str(tmp_path))
    generator, other = small_generator(1), small_generator(2)
    with pytest.raises(FileNotFoundError, match=r"found no diffusion_pytorch_model.* \(the generator\)"):
        load_generator(other, None)
    diffusers(generator, tmp_path)
    assert load_generator(other, None).source.endswith("transformer/diffusion_pytorch_model.safetensors")
    assert same_weights(generator, other)
    original(other, tmp_path)
    assert load_generator(other, None).source == str(tmp_path / "diffusion_pytorch_model.safetensors")


def low_rank(rank: int = 3) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(5)
    return {
        f"base_model.model.blocks.1.{layer}.lora_{side}.weight": torch.randn(*shape, generator=random)
        for layer, rows, columns in (("self_attn.q", 36, 36), ("ffn.0", 44, 36))
        for side, shape in (("A", (rank, columns)), ("B", (rows, rank)))
    }


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (6.0, 2.0)])
def test_a_lora_file_is_merged_at_load(tmp_path: Path, alpha: float | None, scale: float) -> None:
    generator, other = small_generator(1), small_generator(2)
    lora = low_rank()
    torch.save({"generator_lora": lora, "critic_lora": low_rank(2)}, tmp_path / "lora.pt")
    report = load_generator(other, trainer(generator, tmp_path), lora=tmp_path / "lora.pt", lora_alpha=alpha)
    assert report.num_merged == 2
    origin = "the rank, as the file says nothing" if alpha is None else "as given"
    assert f"merged 2 LoRA layers at scale {scale:g} ({origin})" in str(report)
    expected = dict(generator.state_dict())
    for layer in ("blocks.1.self_attn.q", "blocks.1.ffn.0"):
        down, up = (lora[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")
        expected[f"{layer}.weight"] = expected[f"{layer}.weight"] + up @ down * scale
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "is of torch.float8_e4m3fn: expected float16"),
        (lambda tensor: tensor * float("nan"), "holds values that are not finite"),
        (lambda tensor: tensor[:-1], r"blocks.1.ffn.0.weight \[43, 36\] \(expected \[44, 36\]\)"),
    ],
)
def test_a_lora_file_that_does_not_serve_leaves_the_generator_as_it_was(
    tmp_path: Path, damage: Callable[[Tensor], Tensor], message: str
) -> None:
    generator, other, lora = small_generator(1), small_generator(2), low_rank()
    name = "base_model.model.blocks.1.ffn.0.lora_B.weight"
    torch.save(lora | {name: damage(lora[name])}, tmp_path / "lora.pt")
    with pytest.raises(ValueError, match=message):
        load_generator(other, trainer(generator, tmp_path), lora=tmp_path / "lora.pt")
    assert same_weights(other, small_generator(2))


@pytest.mark.parametrize("prefix", ["action_projection.", "model.action_projection.", ""])
def test_the_action_projection_of_a_fork_is_loaded(tmp_path: Path, prefix: str) -> None:
    theirs = ActionModulationProjection(2, 36, hidden_dim=17, num_fourier_bands=8, lowest_band=1.0)
    fill(theirs)
    tensors = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
    beside = {"generator": {"model.blocks.0.modulation": torch.zeros(2)}} if prefix else {}
    torch.save({**beside, **tensors}, tmp_path / "x.pt")
    ours = ActionModulationProjection(2, 36, hidden_dim=17, num_fourier_bands=8, lowest_band=1.0)
    load_action_projection(ours, tmp_path / "x.pt")
    action = torch.randn(2, 3, 2)
    assert torch.equal(ours(action), theirs(action))
    with pytest.raises(ValueError, match=r"x.pt does not fit ActionModulationProjection \(2 of another shape"):
        load_action_projection(ActionModulationProjection(2, 40, hidden_dim=17, num_fourier_bands=8), tmp_path / "x.pt")

"""An adapter file brings back what actions added, and knows which base it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.checkpoints.adapter import load_adapter, read_adapter, write_adapter
from lightning_action.checkpoints.lora import LoRASettings, inject_lora, split_parameters
from lightning_action.generator.model import CausalWanModel
from lightning_action.weights.fingerprint import fingerprint
from lightning_action.weights.safetensors_files import read_metadata, read_safetensors, write_safetensors
from tests.support.small_generator import fill, small_generator, small_inputs

SCHEMA = ActionSchema([ActionPart("move", size=2, low=[-2.0, 0.0], high=3.0), ActionPart("jump", "discrete", 3)])
SETTINGS = LoRASettings(rank=3, alpha=1.5, target_modules=["q", "ffn.0"])


def projection(seed: int = 0, **changes: Any) -> ActionModulationProjection:
    arguments: dict[str, Any] = {"hidden_dim": 17, "num_fourier_bands": 2, "slot_scales": (1, 1, 0.2, 1, 1, 0.2)}
    torch.manual_seed(seed)
    built = ActionModulationProjection(SCHEMA.action_dim, 36, **{**arguments, **changes})
    fill(built, seed)
    return built


def generator(seed: int = 0, lora: bool = False) -> CausalWanModel:
    built = small_generator(seed)
    if lora:
        inject_lora(built, SETTINGS)
        for parameter in split_parameters(built)[0].values():
            torch.nn.init.normal_(parameter)
    return built


@torch.no_grad()
def velocity(model: CausalWanModel, action: ActionModulationProjection) -> Tensor:
    inputs = small_inputs(3)
    vectors = torch.linspace(-1, 1, 2 * 3 * SCHEMA.action_dim).view(2, 3, -1)
    return model(inputs["noisy"], inputs["timestep"], inputs["text"], action(vectors))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("num_heads", 2, "num_heads 3, the generator has num_heads 2"),
        ("preconditioned", True, "preconditioned False, the generator has preconditioned True"),
    ],
)
def test_an_adapter_of_other_traits_is_refused_unless_told(name: str, value: int, told: str, tmp_path: Path) -> None:
    path, other = tmp_path / "adapter.safetensors", small_generator(**{name: value})
    write_adapter(path, generator(), projection(1), SCHEMA)
    with pytest.raises(ValueError, match=f"was trained with {told}"):
        load_adapter(path, other, projection(2), SCHEMA)
    load_adapter(path, other, projection(2), SCHEMA, any_base=True)
    metadata = read_metadata(path)
    metadata |= {name: str(value)}
    write_safetensors(path, read_safetensors(path), metadata)
    load_adapter(path, other, projection(2), SCHEMA)


def snapshot(*modules: torch.nn.Module) -> list[Tensor]:
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("lora", [False, True])
def test_round_trip(tmp_path: Path, lora: bool) -> None:
    trained, action, path = generator(lora=lora), projection(1), tmp_path / "adapter.safetensors"
    write_adapter(path, trained, action, SCHEMA)
    other, other_action = generator(), projection(2)
    if lora:
        inject_lora(other, SETTINGS)
    expected = velocity(trained, action)
    assert not torch.equal(velocity(other, other_action), expected)
    load_adapter(path, other, other_action, SCHEMA)
    assert torch.equal(velocity(other, other_action), expected)
    adapter = read_adapter(path)
    assert (adapter.schema, adapter.base) == (SCHEMA, fingerprint(small_generator().state_dict()))
    assert adapter.lora_alpha == (1.5 if lora else None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_fourier_bands": 0},
        {"include_raw_actions": False, "lowest_band": 0.3},
        {"num_layers": 2, "layer_rank": 5, "action_modulation_scale": 0.7},
    ],
)
def test_the_projection_can_be_built_from_the_file_alone(tmp_path: Path, changes: dict[str, Any]) -> None:
    action, path = projection(1, **changes), tmp_path / "adapter.safetensors"
    write_adapter(path, generator(), action, SCHEMA)
    built = read_adapter(path).build_projection(36)
    vectors = torch.randn(2, 3, SCHEMA.action_dim)
    assert torch.equal(built(vectors), action(vectors))
    assert built(vectors).abs().max() > 1e-2
    load_adapter(path, generator(), built, SCHEMA)
    with pytest.raises(ValueError, match="does not fit ActionModulationProjection"):
        read_adapter(path).build_projection(40)


def test_lora_is_merged_into_a_generator_without_lora_layers(tmp_path: Path) -> None:
    trained, action, path = generator(lora=True), projection(1), tmp_path / "adapter.safetensors"
    write_adapter(path, trained, action, SCHEMA)
    other, other_action = generator(), projection(2)
    load_adapter(path, other, other_action, SCHEMA)
    torch.testing.assert_close(velocity(other, other_action), velocity(trained, action), atol=1e-5, rtol=1e-5)
    assert (velocity(other, other_action) - velocity(generator(), action)).abs().max() > 1e-2


def test_another_base_is_refused_unless_told_to(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    write_adapter(path, generator(lora=True), projection(1), SCHEMA)
    other, action = generator(3), projection(2)
    before = snapshot(other, action)
    expected = fingerprint(generator().state_dict())[:12]
    with pytest.raises(
        ValueError, match=rf"adapter.safetensors was trained on another base model .*{expected}.*any_base"
    ):
        load_adapter(path, other, action, SCHEMA)
    assert same(snapshot(other, action), before)
    load_adapter(path, other, action, SCHEMA, any_base=True)
    assert not same(snapshot(other), snapshot(generator(3)))
    assert same(snapshot(action), snapshot(projection(1)))


def test_a_base_in_another_dtype_is_the_same_base(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    write_adapter(path, generator(), projection(1), SCHEMA)
    load_adapter(path, generator().bfloat16(), projection(2), SCHEMA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slot_scales": (1,) * 6}, "another action projection: scales differ"),
        ({"lowest_band": 1.0}, "another action projection: features.bands differ"),
        ({"hidden_dim": 18}, "does not fit ActionModulationProjection"),
    ],
)
def test_another_projection_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "adapter.safetensors"
    write_adapter(path, generator(lora=True), projection(1), SCHEMA)
    other, action = generator(), projection(2, **changes)
    before = snapshot(other, action)
    with pytest.raises(ValueError, match=message):
        load_adapter(path, other, action, SCHEMA)
    assert same(snapshot(other, action), before)


def test_other_actions_and_other_lora_layers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    write_adapter(path, generator(lora=True), projection(1), SCHEMA)
    other, action = generator(), projection(2)
    inject_lora(other, LoRASettings(rank=4, alpha=1.5, target_modules=["q", "ffn.0"]))
    before = snapshot(other, action)
    with pytest.raises(ValueError, match=r"was trained with the actions ActionSchema.*, the configuration says Action"):
        load_adapter(path, other, action, ActionSchema([ActionPart(size=2)]))
    with pytest.raises(ValueError, match="adapter.safetensors does not fit the LoRA layers"):
        load_adapter(path, other, action, SCHEMA)
    assert same(snapshot(other, action), before)
    other = generator()
    inject_lora(other, LoRASettings(rank=3, alpha=3.0, target_modules=["q", "ffn.0"]))
    with pytest.raises(ValueError, match=r"was trained with alpha 1.5, the generator has LoRA layers with alpha 3.0"):
        load_adapter(path, other, action, SCHEMA)


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError):
        read_adapter(path)
    write_safetensors(path, generator().state_dict(), {})
    with pytest.raises(ValueError, match="x.safetensors is no action adapter: expected a file of"):
        read_adapter(path)
    write_adapter(path, generator(), projection(), SCHEMA)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="x.safetensors is not a whole safetensors file"):
        read_adapter(path)


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({"schema": "{"}, {}),
        ({"schema": '{"parts": 3}'}, {}),
        ({"base": ...}, {}),
        ({"lora_alpha": "x"}, {}),
        ({}, {"other.weight": torch.zeros(1)}),
    ],
)
def test_a_damaged_adapter_is_refused(changes: dict[str, Any], added: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    write_adapter(path, generator(), projection(), SCHEMA)
    read_adapter(path)
    metadata = {key: value for key, value in {**read_metadata(path), **changes}.items() if value is not ...}
    write_safetensors(path, {**read_safetensors(path), **added}, metadata)
    with pytest.raises(ValueError, match=r"the adapter .*adapter\.safetensors is damaged \(.*\): export it again"):
        read_adapter(path)


def test_the_figures_of_the_actions_are_there_to_read(tmp_path: Path) -> None:
    figures = [{"name": "x", "mean": 0.5}]
    write_adapter(tmp_path / "a.safetensors", generator(), projection(1), SCHEMA, figures)
    assert json.loads(read_metadata(tmp_path / "a.safetensors")["action_statistics"]) == figures
    assert read_adapter(tmp_path / "a.safetensors").schema == SCHEMA

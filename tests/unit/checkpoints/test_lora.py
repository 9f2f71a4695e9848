"""LoRA layers start as nothing, train alone, come back from files, and merge as peft merges them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_action.checkpoints.lora import (
    LoRASettings,
    base_state_dict,
    has_lora,
    inject_lora,
    load_lora_state_dict,
    lora_alpha,
    lora_state_dict,
    merge_into,
    merge_lora,
    merged_state_dict,
    split_parameters,
)
from lightning_action.generator.model import CausalWanModel
from tests.support.small_generator import small_generator, small_inputs

SETTINGS = LoRASettings(rank=3, alpha=1.5, target_modules=["q", "ffn.0"])


def with_lora(seed: int = 0, settings: LoRASettings = SETTINGS) -> CausalWanModel:
    """A generator whose LoRA layers act."""
    generator = small_generator(seed)
    inject_lora(generator, settings)
    random = torch.Generator().manual_seed(seed + 10)
    with torch.no_grad():
        for parameter in split_parameters(generator)[0].values():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    return generator


def velocity(generator: nn.Module) -> Tensor:
    inputs = small_inputs(3)
    with torch.no_grad():
        return generator(inputs["noisy"], inputs["timestep"], inputs["text"])


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_injection_changes_nothing() -> None:
    generator = small_generator()
    before, weights = velocity(generator), dict(generator.state_dict())
    inject_lora(generator, SETTINGS)
    assert torch.equal(velocity(generator), before)
    assert same(base_state_dict(generator), weights)
    assert has_lora(generator) and not has_lora(small_generator())
    assert not torch.equal(velocity(with_lora()), before)


def test_targets_are_those_named() -> None:
    layers = {name.rpartition(".lora_")[0] for name in lora_state_dict(with_lora())}
    names = ("self_attn.q", "cross_attn.q", "ffn.0")
    assert layers == {f"blocks.{layer}.{name}" for layer in (0, 1) for name in names}
    everywhere = small_generator()
    inject_lora(everywhere, LoRASettings(rank=2))
    assert len(lora_state_dict(everywhere)) == 2 * 2 * (4 + 4 + 2)
    assert lora_alpha(everywhere) == 2.0
    assert lora_alpha(with_lora()) == 1.5
    assert lora_alpha(small_generator()) is None


@pytest.mark.parametrize("trained", [True, False])
def test_parameters_are_split_and_the_backbone_requires_grad_as_before(trained: bool) -> None:
    generator = small_generator().requires_grad_(trained)
    backbone_before = set(generator.parameters())
    inject_lora(generator, SETTINGS)
    lora, backbone = split_parameters(generator)
    assert set(backbone.values()) == backbone_before
    assert lora.keys() | backbone.keys() == {name for name, _ in generator.named_parameters()}
    assert len(lora) == len(lora_state_dict(generator)) == 12
    assert all(parameter.requires_grad for parameter in lora.values())
    assert {parameter.requires_grad for parameter in backbone.values()} == {trained}


def test_lora_layers_take_the_dtype_of_the_weights() -> None:
    generator = small_generator().bfloat16()
    inject_lora(generator, SETTINGS)
    assert {parameter.dtype for parameter in generator.parameters()} == {torch.bfloat16}


def test_the_layers_alone_come_back(tmp_path: Path) -> None:
    generator, other = with_lora(0), small_generator(0)
    inject_lora(other, SETTINGS)
    torch.save(lora_state_dict(generator), tmp_path / "lora.pt")
    assert not torch.equal(velocity(other), velocity(generator))
    load_lora_state_dict(other, torch.load(tmp_path / "lora.pt"), "lora.pt")
    assert torch.equal(velocity(other), velocity(generator))


def test_layers_that_do_not_fit_are_named_and_none_is_loaded() -> None:
    generator, other = with_lora(0), with_lora(1, LoRASettings(rank=3, target_modules=["q"]))
    before = copied(lora_state_dict(other))
    with pytest.raises(
        ValueError, match=r"x does not fit the LoRA layers .*4 unexpected: blocks.0.ffn.0.lora_A.weight"
    ):
        load_lora_state_dict(other, lora_state_dict(generator), "x")
    with pytest.raises(ValueError, match=r"12 of another shape: .*\[3, 36\] \(expected \[4, 36\]\)"):
        load_lora_state_dict(with_lora(1, LoRASettings(4, None, ["q", "ffn.0"])), lora_state_dict(generator), "x")
    assert same(lora_state_dict(other), before)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensor: tensor * float("nan"), "blocks.0.ffn.0.lora_B.weight.* is damaged"),
        (lambda tensor: tensor.to(torch.float8_e5m2), r"blocks.0.ffn.0.lora_B.weight .*float8_e5m2"),
        (lambda tensor: tensor.int(), r"blocks.0.ffn.0.lora_B.weight .*int32.*expected float"),
    ],
)
def test_layers_without_usable_numbers_are_refused(damage: Callable[[Tensor], Tensor], message: str) -> None:
    layers, other, plain = lora_state_dict(with_lora()), with_lora(1), small_generator(5)
    layers["blocks.0.ffn.0.lora_B.weight"] = damage(layers["blocks.0.ffn.0.lora_B.weight"])
    before = copied(other.state_dict()), copied(plain.state_dict())
    with pytest.raises(ValueError, match=message):
        load_lora_state_dict(other, layers, "x")
    with pytest.raises(ValueError, match=message):
        merge_into(plain, layers, 1.5, "x")
    assert same(other.state_dict(), before[0]) and same(plain.state_dict(), before[1])


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_scales_nothing_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha of LoRA is .*: expected a finite number above 0"):
        LoRASettings(rank=3, alpha=alpha)
    with pytest.raises(ValueError, match=r"`lora_alpha` is .*: expected the alpha of a LoRA"):
        merge_into(small_generator(5), lora_state_dict(with_lora()), alpha, "x")


def test_merging_leaves_the_generator_as_it_is_and_gives_its_outputs() -> None:
    generator, plain = with_lora(), small_generator(5)
    before, expected = copied(generator.state_dict()), velocity(generator)
    merged = merged_state_dict(generator)
    plain.load_state_dict(dict(merged))
    assert same(generator.state_dict(), before)
    torch.testing.assert_close(velocity(plain), expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(merged["blocks.0.ffn.0.weight"], base_state_dict(generator)["blocks.0.ffn.0.weight"])
    assert same(dict(merged_state_dict(plain)), plain.state_dict())
    assert not any(tensor.requires_grad for tensor in merged.values())


def test_layers_merge_in_place() -> None:
    generator, plain = with_lora(), small_generator()
    merged, expected = dict(merged_state_dict(generator)), velocity(generator)
    merge_lora(generator)
    assert same(generator.state_dict(), merged)
    torch.testing.assert_close(velocity(generator), expected)
    merge_lora(plain)
    assert same(plain.state_dict(), small_generator().state_dict())


def test_merging_the_layers_into_a_plain_base_is_the_same_bit_for_bit() -> None:
    generator, plain = with_lora(), small_generator()
    merge_into(plain, lora_state_dict(generator), lora_alpha(generator), "x")
    assert same(plain.state_dict(), dict(merged_state_dict(generator)))
    narrow = small_generator(dim=30)
    before = copied(narrow.state_dict())
    with pytest.raises(ValueError, match=r"x changes 6 weights .*q.weight \[36, 36\] \(expected \[30, 30\]\)"):
        merge_into(narrow, lora_state_dict(generator), 1.0, "x")
    assert same(narrow.state_dict(), before)


def train(generator: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = small_inputs(3, seed=step)
        optimizer.zero_grad()
        generator(inputs["noisy"], inputs["timestep"], inputs["text"]).square().mean().backward()
        optimizer.step()


def lora_optimizer(generator: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(split_parameters(generator)[0].values(), lr=0.01)


def test_training_can_be_stopped_and_resumed_and_leaves_the_backbone_alone(tmp_path: Path) -> None:
    straight = with_lora()
    base = copied(base_state_dict(straight))
    optimizer = lora_optimizer(straight)
    train(straight, optimizer, range(2))
    torch.save({"generator": straight.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    train(straight, optimizer, range(2, 4))

    resumed = small_generator(3)
    inject_lora(resumed, SETTINGS)
    again = lora_optimizer(resumed)
    saved = torch.load(tmp_path / "x.pt")
    resumed.load_state_dict(saved["generator"])
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, range(2, 4))
    assert same(resumed.state_dict(), straight.state_dict())
    assert same(base_state_dict(straight), base)
    assert not same(lora_state_dict(straight), lora_state_dict(with_lora()))


@pytest.mark.parametrize("settings", [{"rank": 0}, {"target_modules": []}, {"dropout": 1.0}])
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected rank >= 1, target_modules and dropout in"):
        LoRASettings(**settings)  # type: ignore[arg-type]


def test_targets_that_are_not_there_and_second_injections_are_refused() -> None:
    generator = small_generator()
    with pytest.raises(ValueError, match=r"no linear layer is called to_q, norm3: the generator has .*head.head"):
        inject_lora(generator, LoRASettings(target_modules=["q", "to_q", "norm3"]))
    assert not has_lora(generator)
    inject_lora(generator, SETTINGS)
    with pytest.raises(ValueError, match="has LoRA layers already"):
        inject_lora(generator, SETTINGS)


def test_without_peft_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning_action\[lora\]'"):
        inject_lora(small_generator(), SETTINGS)

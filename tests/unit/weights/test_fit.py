"""Tensors go into a module all together, or none does and what does not fit is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_action.weights.fit import check_fits, load_strictly


def small_module() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 5))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_fits_is_loaded() -> None:
    module, wanted = small_module(), snapshot(small_module())
    assert not same(snapshot(module), wanted)
    check_fits(module, wanted, "the file")
    assert not same(snapshot(module), wanted)
    load_strictly(module, wanted, "the file")
    assert same(snapshot(module), wanted)


def test_what_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    module, tensors = small_module(), snapshot(small_module())
    before = snapshot(module)
    del tensors["1.running_mean"], tensors["2.bias"]
    tensors["head.weight"] = torch.zeros(1)
    tensors["2.weight"] = torch.zeros(3, 5)
    message = (
        r"^run/generator.safetensors does not fit Sequential \(2 missing: 1.running_mean, 2.bias; "
        r"1 unexpected: head.weight; 1 of another shape: 2.weight \[3, 5\] \(expected \[5, 3\]\)\): "
        r"use the configuration it was trained with$"
    )
    for function in (check_fits, load_strictly):
        with pytest.raises(ValueError, match=message):
            function(module, tensors, "run/generator.safetensors")
    assert same(snapshot(module), before)


@pytest.mark.parametrize("kind", ["missing", "unexpected", "shape"])
def test_one_fault_is_enough(kind: str) -> None:
    module, tensors = small_module(), snapshot(small_module())
    before = snapshot(module)
    if kind == "missing":
        del tensors["2.bias"]
    elif kind == "unexpected":
        tensors["3.bias"] = torch.zeros(1)
    else:
        tensors["2.bias"] = torch.zeros(1)
    with pytest.raises(ValueError, match=rf"\(1 .*{kind}: [23].bias[^;]*\): use"):
        load_strictly(module, tensors, "the file")
    assert same(snapshot(module), before)


def test_long_lists_are_cut() -> None:
    with pytest.raises(ValueError, match=r"9 missing: 0.weight, 0.bias, 1.weight, 1.bias, \.\.\.\): use"):
        check_fits(small_module(), {}, "the file")

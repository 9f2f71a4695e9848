"""Only finite numbers of plain floating-point types are weights, and nothing else is loaded or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_action.checkpoints.pretrained import load_generator
from lightning_action.weights.fit import load_strictly
from lightning_action.weights.safetensors_files import write_safetensors
from lightning_action.weights.values import DTYPES, is_finite, require_finite
from tests.support.small_generator import small_generator

OURS: dict[str, Tensor] = dict(small_generator(1).state_dict())
NAME = "blocks.1.ffn.0.weight"


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    def changed(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return changed


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "float8_e4m3fn": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "float8_e5m2": lambda tensor: tensor.to(torch.float8_e5m2),
    "int8": lambda tensor: (tensor * 100).to(torch.int8),
    "uint8": lambda tensor: tensor.to(torch.uint8),
    "int64": lambda tensor: tensor.long(),
    "bool": lambda tensor: tensor > 0,
    "complex64": lambda tensor: tensor.to(torch.complex64),
    "nan": with_value(float("nan")),
    "inf": with_value(float("inf")),
    "-inf": with_value(float("-inf")),
}


def refused(generator: nn.Module, path: Path, told: str) -> None:
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    with pytest.raises(ValueError, match=told):
        load_generator(generator, path)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_nothing_of_such_a_file_is_loaded(tmp_path: Path, change: str, suffix: str) -> None:
    tensors = {**OURS, NAME: CHANGES[change](OURS[NAME])}
    path = tmp_path / f"x{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    told = f"{path} holds NaN or infinity .in {NAME}" if change in ("nan", "inf", "-inf") else f"{NAME}.* hold {change}"
    refused(small_generator(2), path, told)
    load_generator(small_generator(2), _written(tmp_path / f"whole{suffix}", OURS))


def _written(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


@pytest.mark.parametrize("written", ["torch", "safetensors"])
def test_what_torchao_quantized_is_refused_in_words(tmp_path: Path, written: str) -> None:
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantized = small_generator(1).bfloat16()
    quantize_(quantized, Int8WeightOnlyConfig())
    path = tmp_path / "x"
    if written == "torch":
        torch.save(quantized.state_dict(), path)
    else:
        flat: tuple[Any, Any] = flatten_tensor_state_dict(quantized.state_dict())
        save_file(flat[0], path, flat[1])
    refused(small_generator(2), path, "is quantized|Int8Tensor, which is quantized")


@pytest.mark.parametrize("change", CHANGES)
def test_no_module_takes_them(change: str) -> None:
    layer = nn.Linear(3, 5)
    before = layer.weight.detach().clone()
    tensors = {"weight": CHANGES[change](torch.ones(5, 3)), "bias": torch.ones(5)}
    with pytest.raises(ValueError, match="NaN or infinity|hold"):
        load_strictly(layer, tensors, "x")
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nothing_is_written_with_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match=r"x.safetensors holds NaN or infinity \(in b\): nothing was written"):
        write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(2), "b": torch.tensor([1.0, value])}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64, torch.float8_e5m2])
def test_largest_values_are_finite_and_one_that_is_not_is_found_anywhere(dtype: torch.dtype) -> None:
    largest = torch.full((7, 11), torch.finfo(dtype).max, dtype=torch.float64).to(dtype)
    assert is_finite(largest) and is_finite(torch.empty(0, dtype=dtype)) and is_finite(largest[:, ::2])
    for value in (float("nan"), float("inf")):
        for index in (0, 38, 76):
            changed = largest.to(torch.complex64 if dtype.is_complex else torch.float64).clone()
            changed.view(-1)[index] = value
            assert not is_finite(changed.to(dtype))


def test_integers_are_finite() -> None:
    require_finite({"step": torch.tensor(3), "mask": torch.tensor([True])}, "x", "y")

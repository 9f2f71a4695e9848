"""The fingerprint tells bases apart by every value, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_action.generator.quantization import quantize_layers
from lightning_action.weights.fingerprint import checksum, fingerprint
from lightning_action.weights.tensor_files import as_lazy
from tests.support.small_generator import small_generator

TENSORS = {"a": torch.randn(3, 5), "b": torch.randn(7), "c": torch.tensor(2.5)}


def changed(name: str, index: int) -> dict[str, Tensor]:
    tensor = TENSORS[name].clone()
    tensor.view(-1)[index] += 0.1
    return {**TENSORS, name: tensor}


@pytest.mark.parametrize(
    "other",
    [
        dict(reversed(TENSORS.items())),
        {name: tensor.bfloat16() for name, tensor in TENSORS.items()},
        {name: tensor.double().requires_grad_() for name, tensor in TENSORS.items()},
        {**TENSORS, "a": TENSORS["a"].T.contiguous().T},
        as_lazy(TENSORS),
    ],
)
def test_order_dtype_and_layout_do_not_matter(other: dict[str, Tensor]) -> None:
    assert fingerprint(other) == fingerprint(TENSORS)


@pytest.mark.parametrize(
    "other",
    [
        *(changed("a", index) for index in range(15)),
        changed("c", 0),
        {**TENSORS, "a": TENSORS["a"].view(5, 3)},
        {**TENSORS, "a": TENSORS["a"].flip(0)},
        {"d" if name == "b" else name: tensor for name, tensor in TENSORS.items()},
        {**TENSORS, "d": torch.zeros(0)},
        {"a": TENSORS["a"], "b": TENSORS["b"]},
    ],
)
def test_every_name_shape_and_value_matters(other: dict[str, Tensor]) -> None:
    assert fingerprint(other) != fingerprint(TENSORS)


def test_it_stays_the_same_from_version_to_version() -> None:
    tensors = {"x": torch.arange(6.0).view(2, 3), "y": torch.tensor([-1.5])}
    assert fingerprint(tensors) == "2d597730de07c5882f567bf2abdaf48cb85366f637f45782508211411258b32b"


def test_quantized_weights_have_a_checksum() -> None:
    generator = small_generator(dim=24, ffn_dim=40)
    quantize_layers(generator.blocks, "int8_weight_only")
    weights = generator.state_dict()
    before = checksum(weights)
    assert checksum(generator.state_dict()) == before
    quantized = next(tensor for tensor in weights.values() if hasattr(tensor, "__tensor_flatten__"))
    parts, _ = quantized.__tensor_flatten__()
    getattr(quantized, parts[0])[0, 0] += 1
    assert checksum(weights) != before

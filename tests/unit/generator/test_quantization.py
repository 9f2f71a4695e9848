"""Linear maps in 8 bits against plain ones; on CUDA none of it was run."""

from __future__ import annotations

import sys
from collections import Counter
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_action.checkpoints.lora import LoRASettings, inject_lora
from lightning_action.generator.causality import BlockCausality, bidirectional
from lightning_action.generator.estimates import context_flops, video_flops
from lightning_action.generator.kv_cache import KVCache
from lightning_action.generator.layers import CrossAttention, SelfAttention
from lightning_action.generator.model import CausalWanModel
from lightning_action.generator.quantization import (
    FLOAT8,
    Fp8Linear,
    Fp8SelfAttention,
    Quantization,
    quantize_layers,
    to_float8,
)
from lightning_action.generator.rope import rotation
from tests.support.small_generator import fill, small_generator, small_inputs

aten = torch.ops.aten


def of_16(**changes: object) -> CausalWanModel:
    """Widths that are multiples of 16, as float8 needs them; everything acts, the head too."""
    return small_generator(**{"dim": 48, "ffn_dim": 80, **changes})


def velocity(generator: CausalWanModel) -> Tensor:
    x = small_inputs(4)
    with torch.no_grad():
        return generator.block_causal(x["noisy"], x["timestep"], x["text"], BlockCausality(2))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def linear(seed: int, num_in: int = 48, num_out: int = 32) -> nn.Linear:
    made = nn.Linear(num_in, num_out)
    fill(made, seed)
    return made


class Operations(TorchDispatchMode):
    """Counts products by kind, and what is made float8."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.widths: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._to_copy.default and kwargs.get("dtype") == torch.float8_e4m3fn:
            self.seen["quantized"] += 1
        elif func in (aten._scaled_mm.default, aten.addmm.default):
            self.seen[func.overloadpacket.__name__] += 1
            self.widths.append(args[-1].shape[1] if func is aten.addmm.default else args[1].shape[1])
        return func(*args, **kwargs)


def test_the_largest_of_each_row_becomes_448() -> None:
    x = torch.tensor([[448.0, -224.0, 0.0], [0.5, -1.75, 0.25]])
    numbers, scale = to_float8(x, (-1,))
    assert numbers.dtype == FLOAT8 and scale.dtype == torch.float32
    assert numbers.tolist() == [[448, -224, 0], [128, -448, 64]] and scale.tolist() == [[1.0], [2**-8]]


def test_dims_that_are_spanned_have_one_scale() -> None:
    x = torch.arange(2 * 3 * 5.0).view(2, 3, 5)
    numbers, scale = to_float8(x, (0, 2))
    assert scale.shape == (1, 3, 1)
    torch.testing.assert_close(scale.flatten(), torch.tensor([19.0, 24.0, 29.0]) / 448)
    # Three bits behind the first: half a step of the last one is a sixteenth.
    assert ((numbers.float() * scale - x).abs() <= x / 16).all()


def test_zeros_stay_zeros_and_another_layout_becomes_contiguous() -> None:
    numbers, scale = to_float8(torch.zeros(3, 2, dtype=torch.bfloat16).t(), (-1,))
    assert not numbers.float().any() and scale.isfinite().all() and numbers.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_products_in_float8_are_those_of_the_rounded_numbers(dtype: torch.dtype) -> None:
    """To the rounding of a product to bfloat16, half of one in 2**7, and once more where that is not the type."""
    plain, x = linear(0), (torch.randn(2, 5, 48) * torch.logspace(-3, 3, 5)[:, None]).to(dtype)
    (rows, scale), (weight, weight_scale) = to_float8(x.flatten(0, 1), (-1,)), to_float8(plain.weight, (-1,))
    product = (rows.double() * scale) @ (weight.double() * weight_scale).t() + plain.bias.bfloat16()
    found = Fp8Linear.of(plain)(x)
    assert found.dtype == dtype and found.shape == (2, 5, 32)
    torch.testing.assert_close(found.double(), product.view(2, 5, 32), rtol=2**-8 + 2**-11, atol=1e-6)
    assert 0.001 < relative_error(found.double(), plain.double()(x.double())) < 0.04


def test_a_row_keeps_three_bits_behind_its_first_whatever_its_size() -> None:
    x = torch.randn(7, 96) * torch.logspace(-10, 30, 7)[:, None]
    rows, scale = to_float8(x, (-1,))
    assert torch.equal(rows.float().abs().amax(-1), torch.full((7,), 448.0))
    off = (rows.float() * scale - x).abs()
    assert (off <= x.abs() / 16 + scale * 2**-10).all() and off.any()
    alone, _ = to_float8(x[3:4], (-1,))
    assert torch.equal(alone.float(), rows[3:4].float()), "other tokens play no part"


@torch.no_grad()
def test_zeros_in_float8_stay_zeros() -> None:
    plain = linear(0)
    plain.weight[3] = 0
    x = torch.randn(4, 48)
    x[1] = 0
    found = Fp8Linear.of(plain)(x)
    assert found.isfinite().all()
    assert torch.equal(found[1], plain.bias.bfloat16().float())
    assert torch.equal(found[:, 3], plain.bias[3].bfloat16().float().expand(4))


@torch.no_grad()
def test_the_order_in_memory_makes_no_difference_in_float8() -> None:
    fp8, x = Fp8Linear.of(linear(0)), torch.randn(6, 48)
    assert torch.equal(fp8(x.t().contiguous().t()), fp8(x))


@torch.no_grad()
def test_maps_joined_in_float8_are_equal_to_the_bit() -> None:
    linears, x = [linear(seed, num_out=16 * (seed + 1)) for seed in range(3)], torch.randn(2, 5, 48)
    apart = torch.cat([Fp8Linear.of(each)(x) for each in linears], dim=-1)
    joined = Fp8Linear.of(*linears)
    assert torch.equal(joined(x), apart)
    assert torch.equal(joined(x, first_out=16), apart[..., 16:])


@torch.no_grad()
def test_self_attention_in_float8_keeps_the_keys_and_values_that_it_attends_to() -> None:
    plain = SelfAttention(48, 3, qk_norm=True, eps=1e-6)
    fill(plain)
    attention, x = Fp8SelfAttention(plain), torch.randn(2, 12, 48)
    angles, attended = rotation((0, 1, 2), 2, 2, 16, torch.device("cpu")), []

    class Watched:
        def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            attended.extend((key, value))
            return query

        def prompt(self, cross_attention: CrossAttention) -> Any: ...

    attention(x, angles, Watched())
    kept = attention.keys_values(x, angles)
    assert torch.equal(kept[0], attended[0]) and torch.equal(kept[1], attended[1])
    for found, expected in zip(kept, plain.keys_values(x, angles), strict=True):
        assert 0.001 < relative_error(found, expected) < 0.04


def test_a_pass_in_float8_computes_nearly_the_same() -> None:
    """Numbers of 3 bits behind the first are off by up to 1/16; over the sums of a product that comes to 2 to 3 %."""
    generator = of_16()
    before, plain = velocity(generator), generator.state_dict()
    of_layers = {name for name in plain if name.startswith("blocks.")}
    flops = video_flops(generator, bidirectional(4), 6), context_flops(generator)
    quantize_layers(generator.blocks, "fp8_dynamic")
    assert 0.003 < relative_error(velocity(generator), before) < 0.03
    linears = {
        name.removesuffix(".weight") for name, module in generator.named_modules() if isinstance(module, nn.Linear)
    }
    assert linears == {
        *(f"{part}_embedding.{n}" for part in ("text", "time") for n in (0, 2)),
        "time_projection.1",
        "head.head",
    }
    assert all(torch.equal(generator.state_dict()[name], plain[name]) for name in plain.keys() - of_layers)
    assert (video_flops(generator, bidirectional(4), 6), context_flops(generator)) == flops


@torch.no_grad()
def test_a_layer_quantizes_what_comes_in_once_for_each_product_in_float8() -> None:
    """Queries, keys and values share one; the clean pass's last layer computes keys and values alone."""
    x, kinds = small_inputs(2), {}
    for num_layers in (1, 2):
        generator = of_16(num_layers=num_layers)
        quantize_layers(generator.blocks, "fp8_dynamic")
        text = generator.text_cache(x["text"])
        cache = KVCache(num_layers, 2, 3, 16, 6, 2, BlockCausality(2))
        for call in (generator.denoise, generator.write):
            with Operations() as operations:
                call(x["noisy"], x["timestep"], text, cache) if call == generator.denoise else call(
                    x["noisy"], text, cache
                )
            kinds[num_layers, call.__name__] = operations.seen
    assert kinds[2, "denoise"] - kinds[1, "denoise"] == {"quantized": 6, "_scaled_mm": 6}
    assert kinds[2, "write"] - kinds[1, "write"] == {"quantized": 6, "_scaled_mm": 6}
    assert kinds[1, "write"]["_scaled_mm"] == kinds[1, "write"]["quantized"] == 1
    assert operations.widths[-1] == 2 * 48, "keys and values alone"
    assert kinds[1, "denoise"]["addmm"] == 4, "time, and the head"


def test_state_in_float8_survives_moves_files_and_a_second_time() -> None:
    generator = of_16()
    quantize_layers(generator.blocks, "fp8_dynamic")
    expected, kept = velocity(generator), {name: value.clone() for name, value in generator.state_dict().items()}
    other = of_16(seed=1)
    quantize_layers(other.blocks, "fp8_dynamic")
    other.load_state_dict(kept)
    quantize_layers(other.blocks, "fp8_dynamic")
    assert torch.equal(velocity(other), expected)
    moved = deepcopy(generator).to("meta").to_empty(device="cpu").bfloat16().float()
    moved.load_state_dict(kept)
    assert torch.equal(velocity(moved), expected)
    layers = generator.half().blocks.state_dict()
    for name, value in layers.items():
        if "norm" not in name and "modulation" not in name:
            assert value.dtype == kept[f"blocks.{name}"].dtype and torch.equal(
                value.float(), kept[f"blocks.{name}"].float()
            )


@pytest.mark.parametrize("compiles_first", [False, True])
@torch.no_grad()
def test_compiled_layers_then_multiply_in_float8(compiles_first: bool) -> None:
    """As a module does it: compiled when it is built, quantized when it predicts."""
    torch.compiler.reset()
    graphs = list[torch.fx.GraphModule]()

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    generator, expected = of_16(), of_16()
    quantize_layers(expected.blocks, "fp8_dynamic")
    generator.compile_layers(backend=backend)
    if compiles_first:
        velocity(generator)
        graphs.clear()
    quantize_layers(generator.blocks, "fp8_dynamic")
    assert torch.equal(velocity(generator), velocity(expected))
    products = sum(node.target is torch._scaled_mm for graph in graphs for node in graph.graph.nodes)
    assert products == 8, "one code for all layers, those of keys and values of the prompt included"


@pytest.mark.parametrize(("changes", "named"), [({"ffn_dim": 44}, "blocks.0.ffn.0 maps 48 to 44"), ({"dim": 36}, "36")])
def test_widths_that_do_not_fit_float8_are_refused_and_nothing_is_changed(changes: dict[str, int], named: str) -> None:
    generator = of_16(**changes)
    before, modules = velocity(generator), list(generator.modules())
    with pytest.raises(ValueError, match=f"multiples of 16, but .*{named}"):
        quantize_layers(generator.blocks, "fp8_dynamic")
    assert list(generator.modules()) == modules and torch.equal(velocity(generator), before)


def test_lora_that_is_not_merged_is_refused() -> None:
    generator = of_16()
    inject_lora(generator, LoRASettings(rank=16, target_modules=["ffn.0"]))
    with pytest.raises(ValueError, match="the layers have LoRA: merge it"):
        quantize_layers(generator.blocks, "fp8_dynamic")


def test_a_device_without_float8_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> Tensor:
        raise RuntimeError("only on newer devices\nmore lines")

    def without_scales(rows: Tensor, weight: Tensor, out_dtype: torch.dtype, **_: object) -> Tensor:
        return (rows.float() @ weight.float()).to(out_dtype)

    for product, reason in ((none, "only on newer devices"), (without_scales, "not close")):
        monkeypatch.setattr(torch, "_scaled_mm", product)
        generator = of_16()
        with pytest.raises(RuntimeError, match=f"fp8_dynamic does not work on this device: .*capability 8.9.*{reason}"):
            quantize_layers(generator.blocks, "fp8_dynamic")
        assert type(generator.blocks[0].self_attn) is SelfAttention


@pytest.mark.parametrize(("quantization", "error"), [("fp8_weight_only", 0.06), ("int8_weight_only", 0.02)])
def test_layers_compute_nearly_the_same_with_8_bit_weights(quantization: Quantization, error: float) -> None:
    """Float8 has 3 bits of mantissa, so a weight is off by up to 1/16; 8-bit integers by up to 1/254 of the largest."""
    generator = small_generator()
    before = velocity(generator)
    quantize_layers(generator.blocks, quantization)
    assert 0 < relative_error(velocity(generator), before) < error
    assert type(generator.blocks[0].ffn[0].weight) is not nn.Parameter
    assert type(generator.head.head.weight) is nn.Parameter


def test_without_torchao_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ImportError, match=r"int8_weight_only needs .*pip install 'lightning_action\[quantization\]'"):
        quantize_layers(small_generator().blocks, "int8_weight_only")


def test_layers_in_float8_need_no_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    quantize_layers(of_16().blocks, "fp8_dynamic")

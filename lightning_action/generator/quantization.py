"""Linear maps of the layers in 8 bits, for generation: products in float8 of our own, and weights through torchao."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_action.generator.attention import computed_dtype
from lightning_action.generator.layers import SelfAttention

Quantization = Literal["fp8_dynamic", "fp8_weight_only", "int8_weight_only"]

FLOAT8 = torch.float8_e4m3fn
_MULTIPLE = 16


# Lightning predicts in inference mode. What is made there cannot be moved when the next prediction begins.
@torch.inference_mode(False)
@torch.no_grad()
def quantize_layers(layers: nn.ModuleList, quantization: Quantization) -> None:
    """Quantize the linear maps of transformer layers in place; embeddings, norms and head stay as they are.

    Args:
        layers: Layers of the generator, with their final weights.
        quantization: Kind of weights: `fp8_dynamic` also quantizes what goes into each linear map, token by token, and
            multiplies in float8 (`Fp8Linear`). On CUDA that takes compute capability 8.9 or newer. The others only
            store weights in 8 bits, which saves memory rather than time.

    Raises:
        ImportError: The package torchao is not installed, which the others need.
        RuntimeError: This device does not multiply in float8.
        ValueError: `fp8_dynamic`, and a linear map has a width that is no multiple of 16, or LoRA that is not merged.
            Nothing was quantized then.
    """
    if quantization == "fp8_dynamic":
        _multiply_in_float8(layers)
    else:
        _store_in_8_bits(layers, quantization)


def to_float8(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Round to float8 (Micikevicius et al. 2022, arXiv:2209.05433); all that `dims` spans has a scale in common.

    The largest number becomes float8's largest, 448; zeros stay zeros.

    Returns:
        The numbers, contiguous, and what brings them back as a factor: float32, of the shape of `x` with `dims` of 1.
    """
    scale = x.abs().amax(dims, keepdim=True).float().clamp(min=1e-12) / torch.finfo(FLOAT8).max
    return (x / scale).to(FLOAT8, memory_format=torch.contiguous_format), scale


class Fp8Linear(nn.Module):
    """Linear map that multiplies in float8 (e4m3): for generation, because it has no gradients.

    Weights have a scale for each output channel, and what goes in gets one for each token. Products are bfloat16
    whatever goes in, which is all that CUDA makes of scales for each row. They come back in the type of what goes in,
    and in that of autocast where that is on.

    Scales for each output channel and each token are the vector-wise quantization of Dettmers et al. (2022,
    arXiv:2208.07339).

    Args:
        weight: Weights, `[out, in]`; on CUDA both must be multiples of 16.
        bias: Bias of the map, `[out]`, kept in bfloat16.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        rows, scale = to_float8(weight.detach(), (-1,))
        self.weight = nn.Parameter(rows, requires_grad=False)
        self.bias = nn.Parameter(bias.detach().bfloat16(), requires_grad=False)
        self.register_buffer("scale", scale.t())
        self.scale: Tensor

    @classmethod
    def of(cls, *linears: nn.Linear) -> Self:
        """Join linear maps of the same input, all with a bias, to one: its output has theirs one after the other."""
        return cls(torch.cat(tuple(m.weight for m in linears)), torch.cat(tuple(m.bias for m in linears)))

    def forward(self, x: Tensor, first_out: int = 0) -> Tensor:
        """Map `[..., in]` to `[..., out - first_out]`, the output channels from `first_out` on."""
        rows, scale = to_float8(x.flatten(0, -2), (-1,))
        # torch 2.8, the oldest that is promised, has no public name for it.
        product = torch._scaled_mm(
            rows,
            self.weight[first_out:].t(),
            scale_a=scale,
            scale_b=self.scale[:, first_out:],
            bias=self.bias[first_out:],
            out_dtype=torch.bfloat16,
        )
        # Norms leave float32 under autocast on CUDA, and the tokens behind this map would stay so.
        return product.unflatten(0, x.shape[:-1]).to(computed_dtype(x))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # As bytes they move with the module, and keep their types where it changes its own: scales have to be float32.
        return super()._apply(lambda tensor: fn(tensor.view(torch.uint8)).view(tensor.dtype), recurse)


class Fp8SelfAttention(SelfAttention):
    """Self-attention whose queries, keys and values are one product in float8 of tokens that are quantized once.

    Args:
        attention: Layer whose place it takes; norms and the map of the output are shared with it.
    """

    def __init__(self, attention: SelfAttention) -> None:
        # Not that of `SelfAttention`, which makes maps that are joined here.
        nn.Module.__init__(self)
        self.num_heads, self.o = attention.num_heads, attention.o
        self.norm_q, self.norm_k = attention.norm_q, attention.norm_k
        self.qkv = Fp8Linear.of(attention.q, attention.k, attention.v)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return query, key, value

    def project_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.qkv(x, first_out=len(self.qkv.weight) // 3).chunk(2, dim=-1)
        return key, value


def _multiply_in_float8(layers: nn.ModuleList) -> None:
    _require_convertible(layers)
    _require_float8(next(layers.parameters()).device)
    # Layer by layer, so that no more than one is there in both types.
    for layer in layers:
        for name, module in list(layer.named_modules()):
            if type(module) is SelfAttention:
                layer.set_submodule(name, Fp8SelfAttention(module))
        # Cross-attention's keys and values are not joined: they are computed once for a video.
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                layer.set_submodule(name, Fp8Linear.of(module))


def _require_convertible(layers: nn.ModuleList) -> None:
    if any(".lora_" in name for name, _ in layers.named_parameters()):
        raise ValueError(
            "fp8_dynamic joins and rounds whole weights, but the layers have LoRA: merge it into them first"
        )
    for name, module in layers.named_modules():
        if isinstance(module, nn.Linear) and (module.in_features % _MULTIPLE or module.out_features % _MULTIPLE):
            raise ValueError(
                f"fp8_dynamic needs widths that are multiples of {_MULTIPLE}, but blocks.{name} maps "
                f"{module.in_features} to {module.out_features} channels: use fp8_weight_only or no quantization"
            )


def _require_float8(device: torch.device) -> None:
    """Refuse a device that does not multiply in float8, or not rightly, with a product whose rows differ in scale."""
    x = torch.arange(1.0, 1 + _MULTIPLE**2, device=device).view(_MULTIPLE, _MULTIPLE)
    try:
        torch.testing.assert_close(Fp8Linear(x, x[0])(x), x @ x.t() + x[0], rtol=0.1, atol=0)
    except (RuntimeError, AssertionError) as error:
        raise RuntimeError(
            "fp8_dynamic does not work on this device: products in float8 with a scale for each row need compute "
            f"capability 8.9 or newer on CUDA, a newer torch on a CPU; got torch {torch.__version__} on {device}: use "
            f"fp8_weight_only or int8_weight_only, which save memory, or no quantization ({str(error).splitlines()[0]})"
        ) from error


def _store_in_8_bits(layers: nn.ModuleList, quantization: Quantization) -> None:
    try:
        from torchao import quantization as torchao
    except ImportError as error:
        raise ImportError(f"{quantization} needs torchao: pip install 'lightning_action[quantization]'") from error
    configs: dict[Quantization, Any] = {
        "fp8_weight_only": torchao.Float8WeightOnlyConfig,
        "int8_weight_only": torchao.Int8WeightOnlyConfig,
    }
    torchao.quantize_(layers, configs[quantization]())

"""Estimates of what a generator costs, from its shapes alone: parameters, floating-point operations, memory.

Everything works for a network on the meta device. N tokens, D the width, S tokens of a latent frame.

Operations come from formulas, which tests hold against torch's `FlopCounterMode`. The counter itself needs a forward
pass of a copy on the meta device: one to two seconds for a released model at 33,000 tokens, where the formulas take
six milliseconds, and a sharded, compiled or quantized generator has no such copy. Nor does it see through a mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from lightning_action.generator.causality import BlockCausality, Visibility
from lightning_action.generator.kv_cache import KVCache
from lightning_action.generator.model import CausalWanModel

_TOKENS_OF_AN_IMAGE = 257
# Parts of the network, by the beginnings of names in it and in its layers.
_PARTS = {
    "patch_embedding": "patch_embedding",
    "text_embedding": "text_embedding",
    "img_emb": "image_embedding",
    "time_embedding": "time_embedding",
    "time_projection": "time_embedding",
    "self_attn": "self_attention",
    "cross_attn": "cross_attention",
    "norm3": "cross_attention",
    "ffn": "feed_forward",
    "modulation": "modulation_tables",
    "head": "head",
}
# What linear maps are applied to, where that is no token of the video.
_INPUTS = {
    "text": re.compile(r"text_embedding\.|.*cross_attn\.[kv]\."),
    "image": re.compile(r"img_emb\.|.*cross_attn\.[kv]_img\."),
    "frame": re.compile(r"time_(embedding|projection)\."),
}


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters."""

    trainable: int
    frozen: int

    @property
    def total(self) -> int:
        """Number of all parameters."""
        return self.trainable + self.frozen


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, a multiplication and an addition counted as two."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        """Number of all operations."""
        return self.linear + self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, times: float) -> Flops:
        return Flops(self.linear * times, self.attention * times)


def count(parameters: Iterable[nn.Parameter]) -> Parameters:
    """Count the numbers that are trained, and those that are not."""
    numbers = [(parameter.numel(), parameter.requires_grad) for parameter in parameters]
    trainable = sum(number for number, trained in numbers if trained)
    return Parameters(trainable, sum(number for number, _ in numbers) - trainable)


def parameters_by_part(generator: CausalWanModel) -> dict[str, Parameters]:
    """Count the parameters of every part that the generator has, each in one part; LoRA layers are a part, `lora`."""
    parts: dict[str, list[nn.Parameter]] = {part: [] for part in ("lora", *_PARTS.values())}
    for name, parameter in generator.named_parameters():
        first = re.sub(r"^blocks\.\d+\.", "", name).split(".")[0]
        parts["lora" if ".lora_" in name else _PARTS[first]].append(parameter)
    return {part: count(parameters) for part, parameters in parts.items() if parameters}


def num_image_tokens(generator: CausalWanModel) -> int:
    """Tokens of CLIP's hidden states that an image-to-video model takes; 0 for others."""
    if generator.img_emb is None:
        return 0
    positions = generator.img_emb.emb_pos
    return _TOKENS_OF_AN_IMAGE if positions is None else positions.shape[1]


def video_flops(generator: CausalWanModel, visibility: tuple[Visibility, ...], tokens_per_frame: int) -> Flops:
    """Operations of one forward pass of one video's tokens.

    Linear: 2 for every weight and token that it is applied to (Kaplan et al. 2020, arXiv:2001.08361, section 2.1).
    Attention: 4 D for every pair of a query and a key (the score, and the weighted sum), in every layer; text and image
    tokens are keys too. The prompt is one of `text_len` tokens, here and below: padding costs less, see `prompt.pad`.
    """
    num_inputs, weights = _num_inputs(generator, visibility, tokens_per_frame), _weights_by_input(generator)
    pairs = sum(len(item.query) * sum(map(len, item.keys)) for item in visibility) * tokens_per_frame**2
    pairs += num_inputs["token"] * (num_inputs["text"] + num_inputs["image"])
    linear = 2 * sum(num_inputs[kind] * weights[kind] for kind in ("token", "frame"))
    return Flops(linear, 4 * generator.dim * pairs * generator.num_layers)


def context_flops(generator: CausalWanModel) -> Flops:
    """Operations of a prompt (and an image): embedding, and keys and values of all layers, once for a video."""
    weights = _weights_by_input(generator)
    return Flops(2 * (generator.text_len * weights["text"] + num_image_tokens(generator) * weights["image"]), 0)


def training_flops(
    generator: CausalWanModel, visibility: tuple[Visibility, ...], tokens_per_frame: int, modulation_learns: bool = True
) -> Flops:
    """Operations of a training step of one video: the forward pass, and the gradients that are computed.

    A linear map costs as much as forward for the gradient of its weight, if that trains, and again for the gradient of
    its input, if something before it trains. Attention costs twice as much backward, and to the prompt once, if nothing
    trains that its keys and values are made by. Activation checkpointing computes each layer again that a gradient
    passes through (Chen et al. 2016, arXiv:1604.06174), with `keep_attention` its linear maps alone.

    Args:
        generator: Generator, of which some parameters are frozen.
        visibility: Frames that see each other.
        tokens_per_frame: Tokens S of a latent frame.
        modulation_learns: True if something trains that the layers' action modulation is made by. If not, the first
            layer that trains may count a little more than is computed.
    """
    forward = video_flops(generator, visibility, tokens_per_frame) + context_flops(generator)
    num_inputs = _num_inputs(generator, visibility, tokens_per_frame)
    attention = forward.attention / generator.num_layers
    # Whether something trains that each kind of input is made by.
    learns = dict.fromkeys(num_inputs, False)
    backward = Flops(0, 0)
    # An image is embedded before the layers, but stands after them.
    for name, part in sorted(generator.parts(), key=lambda each: each[0] != "img_emb"):
        is_layer = name.startswith("blocks.")
        learns["token"] |= is_layer and (modulation_learns or any(learns.values()))
        fixed_keys = {kind for kind in ("text", "image") if not learns[kind]}
        maps = 0.0
        for parameter_name, parameter in part.named_parameters(prefix=name):
            kind = _input_of(parameter_name)
            operations = 2 * num_inputs[kind] * parameter.numel() if _is_map(parameter_name, parameter) else 0
            # The two maps of a LoRA layer train together.
            input_learns = learns[kind] or (parameter.requires_grad and ".lora_B." in parameter_name)
            backward += Flops(operations * (parameter.requires_grad + input_learns), 0)
            maps += operations
            if parameter.requires_grad:
                fixed_keys.discard(kind)
                learns["token" if is_layer else kind] = True
        if is_layer and learns["token"]:
            num_pairs = num_inputs["token"] * sum(num_inputs[kind] for kind in fixed_keys)
            backward += Flops(0, 2 * attention - 4 * generator.dim * num_pairs)
            if generator.activation_checkpointing:
                backward += Flops(maps, 0 if generator.activation_checkpointing == "keep_attention" else attention)
    return forward + backward


def kv_cache_bytes(
    generator: CausalWanModel, causality: BlockCausality, num_frames: int, tokens_per_frame: int, dtype: torch.dtype
) -> int:
    """Bytes of the `KVCache` of one video of `num_frames` latent frames."""
    heads = (generator.num_heads, generator.head_dim)
    return KVCache(generator.num_layers, 1, *heads, tokens_per_frame, num_frames, causality, "meta", dtype).num_bytes


def context_cache_bytes(generator: CausalWanModel, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one prompt (and image) in all layers."""
    tokens = generator.text_len + num_image_tokens(generator)
    return 2 * generator.num_layers * tokens * generator.dim * dtype.itemsize


def activation_bytes(generator: CausalWanModel, num_tokens: int, dtype: torch.dtype) -> int:
    """Bytes that a training step keeps of `num_tokens` tokens for the backward pass.

    A layer keeps of each token 19 vectors of width D and two of the feed-forward's width, in `dtype`, and the three
    inputs of the RMS norms in float32; attention itself keeps nothing that grows with the square of the length. With
    activation checkpointing every layer keeps its input alone, and one layer at a time is recomputed; `keep_attention`
    keeps besides what both attentions give, and a number in float32 for each head.
    """
    layer = (19 * generator.dim + 2 * generator.ffn_dim) * dtype.itemsize + 3 * generator.dim * 4
    if not generator.activation_checkpointing:
        return num_tokens * layer * generator.num_layers
    kept = generator.dim * dtype.itemsize
    if generator.activation_checkpointing == "keep_attention":
        kept += 2 * (generator.dim * dtype.itemsize + 4 * generator.num_heads)
    return num_tokens * (layer + kept * generator.num_layers)


def _num_inputs(generator: CausalWanModel, visibility: tuple[Visibility, ...], tokens_per_frame: int) -> dict[str, int]:
    """Number of inputs of each kind that a linear map is applied to."""
    frames = sum(len(item.query) for item in visibility)
    of_context = {"text": generator.text_len, "image": num_image_tokens(generator)}
    return {"token": frames * tokens_per_frame, "frame": frames, **of_context}


def _input_of(name: str) -> str:
    """Kind of input of a parameter: a video token, a latent frame, a text or image token."""
    return next((kind for kind, pattern in _INPUTS.items() if pattern.match(name)), "token")


def _is_map(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether it is the weight of a linear map."""
    return name.endswith("weight") and parameter.ndim >= 2


def _weights_by_input(generator: CausalWanModel) -> dict[str, int]:
    """Weights of the linear maps, by what each is applied to."""
    weights = {"token": 0, "frame": 0, "text": 0, "image": 0}
    for name, parameter in generator.named_parameters():
        if _is_map(name, parameter):
            weights[_input_of(name)] += parameter.numel()
    return weights

"""Weights of the generator in and out of safetensors files, in the original Wan names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_action.files import replacing

# Original Wan names and those of diffusers' `WanTransformer3DModel`. The first row that a name begins with, behind
# `blocks.N.`, rewrites it; a name that begins with none is the same in both.
_DIFFUSERS_NAMES = (
    ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
    ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
    ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
    ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
    ("time_projection.1.", "condition_embedder.time_proj."),
    ("head.modulation", "scale_shift_table"),
    ("head.head.", "proj_out."),
    ("modulation", "scale_shift_table"),
    ("ffn.0.", "ffn.net.0.proj."),
    ("ffn.2.", "ffn.net.2."),
    ("norm3.", "norm2."),
    *(
        (f"{ours}.{part}.", f"{theirs}.{renamed}.")
        for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for part, renamed in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
    ),
    ("self_attn.norm_", "attn1.norm_"),
    ("cross_attn.norm_", "attn2.norm_"),
)


def to_diffusers_name(name: str) -> str:
    """The name that diffusers gives to a tensor of `CausalWanModel`."""
    return _renamed(name, _DIFFUSERS_NAMES)


def from_diffusers_name(name: str) -> str:
    """The name that `CausalWanModel` gives to a tensor of diffusers' `WanTransformer3DModel`."""
    # `scale_shift_table` is a layer's modulation, and outside the layers the head's.
    other = "head.modulation" if name.startswith("blocks.") else "modulation"
    return _renamed(name, [(theirs, ours) for ours, theirs in _DIFFUSERS_NAMES if ours != other])


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a whole safetensors file.
    """
    return _read(path)[0]


def read_metadata(path: str | Path) -> dict[str, str]:
    """The strings stored beside the tensors. Raises as `read_safetensors`."""
    return _read(path)[1]


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file in one step: it is either whole or not there."""
    with replacing(Path(path)) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, temporary, metadata)
        temporary.chmod(mode)  # what `save_file` makes, nobody else may read


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load every tensor or none. Raises as `check_fits`."""
    check_fits(module, tensors, source)
    module.load_state_dict(dict(tensors))


def check_fits(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that are not exactly the module's.

    Raises:
        ValueError: names or shapes differ; lists the first of each kind.
    """
    own = module.state_dict()
    problems = {
        "missing": [name for name in own if name not in tensors],
        "unexpected": [name for name in tensors if name not in own],
        "of another shape": [
            f"{name} {list(tensors[name].shape)} (expected {list(own[name].shape)})"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            for kind, names in problems.items()
            if names
        )
        raise ValueError(
            f"{source} does not fit {type(module).__name__} ({told}): use the configuration it was trained with"
        )


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: give the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): fetch or write it again") from error


def _renamed(name: str, rows: Iterable[tuple[str, str]]) -> str:
    layer = re.match(r"blocks\.\d+\.", name)
    prefix = layer.group() if layer else ""
    rest = name[len(prefix) :]
    for old, new in rows:
        if rest.startswith(old):
            return prefix + new + rest[len(old) :]
    return name

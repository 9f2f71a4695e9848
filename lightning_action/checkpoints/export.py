"""Generators for use elsewhere, in the original Wan names or in those of diffusers, and for the next fit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lightning_action.atomic import creating_folder, require_new_folder
from lightning_action.checkpoints.lora import base_state_dict, merged_state_dict
from lightning_action.checkpoints.pretrained import GENERATOR_FILE, VAE_FILE
from lightning_action.frozen.interfaces import FittedCodec, VideoCodec
from lightning_action.generator.model import CausalWanModel
from lightning_action.weights.fingerprint import identity
from lightning_action.weights.names import few, to_diffusers_name
from lightning_action.weights.safetensors_files import write_safetensors
from lightning_action.weights.size import detect_size
from lightning_action.weights.tensor_files import LazyTensors

_STEM = "diffusion_pytorch_model"
ADAPTER_FILE, CARD_FILE = "adapter.safetensors", "README.md"
_GENERATOR = re.compile(rf"config\.json|{_STEM}.*\.(safetensors|json)")
_ADAPTER = re.compile(rf"{re.escape(ADAPTER_FILE)}|{re.escape(CARD_FILE)}")


def export_generator(
    generator: CausalWanModel,
    output: str | Path,
    naming: Literal["wan", "diffusers"] = "wan",
    max_shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write the generator in its dtype, with LoRA merged.

    Args:
        generator: Generator to write.
        output: A `.safetensors` file, or a new folder, which gets the `config.json` of the releases as well:
            diffusers' `WanTransformer3DModel.from_pretrained` opens it.
        naming: Names of the tensors, those of Wan's releases or those of diffusers.
        max_shard_bytes: Size at which a new file begins, in a folder; None writes one file.
        metadata: Further strings to store beside the tensors.
        overwrite: Replace what an export wrote there before.

    Raises:
        FileExistsError: The file or folder is there already, or something that no export wrote is to be overwritten.
        ValueError: The weights hold NaN or infinity, or diffusers cannot build the generator.
    """
    require_free(Path(output), overwrite)
    config = wan_config(generator) if naming == "wan" else diffusers_config(generator)
    tensors = merged_state_dict(generator)
    held = {**identity(tensors), **generator.traits}
    stored = {"format": "pt", **held, **(metadata or {})}
    if naming == "diffusers":
        tensors = LazyTensors({to_diffusers_name(name): entry for name, entry in tensors.entries.items()})
    if is_file(output):
        write_safetensors(output, tensors, stored)
        return
    with creating_folder(Path(output), overwrite) as folder:
        write_shards(folder, tensors, stored, max_shard_bytes)
        (folder / "config.json").write_text(json.dumps(config, indent=2))


def export_pretrained(
    folder: str | Path, tensors: Mapping[str, Tensor], traits: Mapping[str, str], vae: VideoCodec, fit_seconds: float
) -> None:
    """Write the files that `load_generator` and `prepare_codec` read, each in one step.

    Args:
        folder: Folder that `pretrained` is to name.
        tensors: Tensors of the generator, with LoRA merged.
        traits: What the generator says of itself beside its weights, `CausalWanModel.traits`.
        vae: Its codec, which is written if it was fitted to data.
        fit_seconds: Wall-clock seconds of its training.
    """
    said = {"fit_seconds": str(fit_seconds), **traits}
    write_safetensors(Path(folder) / GENERATOR_FILE, tensors, {**said, **identity(tensors)})
    if isinstance(vae, FittedCodec):
        fitted = vae.fitted_tensors()
        write_safetensors(Path(folder) / VAE_FILE, fitted, identity(fitted))


def write_shards(
    folder: Path, tensors: LazyTensors, metadata: Mapping[str, str], max_shard_bytes: int | None = None
) -> None:
    """Write `diffusion_pytorch_model.safetensors`, or several files and their index.

    Args:
        folder: Folder to write into, which must exist.
        tensors: Tensors, which are read as they are written, one file at a time.
        metadata: Strings that go into every file. `read_tensors` refuses shards that disagree in it, so say there whose
            they are.
        max_shard_bytes: Size at which a new file begins; None writes one.
    """
    sizes = {name: prod(entry.shape) * entry.dtype.itemsize for name, entry in tensors.entries.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        filled = sum(sizes[other] for other in shards[-1])
        if max_shard_bytes is not None and shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
        shards[-1].append(name)
    if len(shards) == 1:
        write_safetensors(folder / f"{_STEM}.safetensors", tensors, dict(metadata))
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"{_STEM}-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file, {name: tensors[name] for name in names}, dict(metadata))
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    (folder / f"{_STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2))


def is_file(output: str | Path) -> bool:
    """Tell whether the name of an output is that of a file, not of a folder."""
    return Path(output).suffix == ".safetensors"


def require_free(output: Path, overwrite: bool, is_adapter: bool = False) -> None:
    """Refuse to replace anything that is not to be overwritten, and folders that hold more than an export.

    Args:
        output: File or folder that is to be written.
        overwrite: True replaces what an export wrote there before.
        is_adapter: True if it is an adapter with its card, not a generator.

    Raises:
        FileExistsError: The output is there already, or something that no export wrote is to be overwritten.
    """
    if not overwrite:
        written = [output, output.with_suffix(".md")] if is_adapter else [output]
        taken = next((path for path in written if is_file(output) and path.exists()), None)
        if taken is not None:
            raise FileExistsError(f"{taken} is there already: give another --output, or --overwrite to replace it")
        require_new_folder(output)
        return
    exported = _ADAPTER if is_adapter else _GENERATOR
    others = [path.name for path in output.iterdir() if not exported.fullmatch(path.name)] if output.is_dir() else []
    if others or (output.exists() and output.is_file() != is_file(output)):
        raise FileExistsError(
            f"{output} is {'a folder' if output.is_dir() else 'a file'} that no export of this kind wrote"
            f"{f' (it holds {few(others)})' if others else ''}: give another --output"
        )


def wan_config(generator: CausalWanModel) -> dict[str, Any]:
    """Return the `config.json` of Wan's own releases."""
    size = detect_size(base_state_dict(generator))
    return {
        "_class_name": "WanModel",
        "model_type": "i2v" if "image_dim" in size else "t2v",
        **size,
        "num_heads": generator.num_heads,
        "text_len": generator.text_len,
        "eps": generator.head.norm.eps,
        **({"preconditioned": True} if generator.preconditioned else {}),
    }


def diffusers_config(generator: CausalWanModel) -> dict[str, Any]:
    """Return the `config.json` of diffusers' `WanTransformer3DModel`.

    Raises:
        ValueError: The generator has no norms of queries and keys, which diffusers' always has, or is preconditioned,
            which diffusers' never is.
    """
    size = detect_size(base_state_dict(generator))
    if generator.preconditioned:
        raise ValueError("diffusers has no preconditioned Wan transformer: export with --format wan, which says so")
    if not size["qk_norm"]:
        raise ValueError("diffusers has no Wan transformer without qk_norm: export with --format wan")
    image_dim = size.get("image_dim")
    kept = ("patch_size", "text_dim", "freq_dim", "ffn_dim", "num_layers", "cross_attn_norm")
    return {
        "_class_name": "WanTransformer3DModel",
        **{name: size[name] for name in kept},
        "num_attention_heads": generator.num_heads,
        "attention_head_dim": size["dim"] // generator.num_heads,
        "in_channels": size["in_dim"],
        "out_channels": size["out_dim"],
        "qk_norm": "rms_norm_across_heads",
        "eps": generator.head.norm.eps,
        "image_dim": image_dim,
        "added_kv_proj_dim": None if image_dim is None else size["dim"],
        "pos_embed_seq_len": size.get("num_image_positions"),
    }

"""Trained weights for use elsewhere: in the original Wan names, in those of diffusers, or as an action adapter."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_action.atomic import creating_folder, require_new_folder
from lightning_action.callbacks.support.shard_reading import load_shards
from lightning_action.checkpoints.adapter import write_adapter
from lightning_action.checkpoints.lora import base_state_dict, merged_state_dict
from lightning_action.checkpoints.pretrained import generator_file
from lightning_action.cli.trainer_verbs import program_name
from lightning_action.cli.usage import VerbParser
from lightning_action.distributed.sharded_checkpoints import read_folder_metadata
from lightning_action.generator.model import CausalWanModel
from lightning_action.module import ActionVideoModule
from lightning_action.run import load_run
from lightning_action.weights.checkpoint import read_generator
from lightning_action.weights.fingerprint import fingerprint, identity
from lightning_action.weights.fit import require_same
from lightning_action.weights.low_rank import add_changes, read_low_rank
from lightning_action.weights.names import few, to_diffusers_name
from lightning_action.weights.safetensors_files import write_safetensors
from lightning_action.weights.shards import write_shards
from lightning_action.weights.size import detect_size
from lightning_action.weights.tensor_files import LazyTensors, read_tensors
from lightning_action.weights.values import require_finite

# In a file, and in a folder of shards that was made a file by others.
_AVERAGED = re.compile(r"(?:ema_state_dict|optimizer_\d+\.ema)\.(.+)")
_EXPORTED = re.compile(r"config\.json|diffusion_pytorch_model.*\.(safetensors|json)")
FORMATS = ("wan", "diffusers", "adapter")


def export_wan(
    generator: CausalWanModel,
    output: str | Path,
    max_shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write the generator, with LoRA merged, in the original Wan names.

    Args:
        generator: what to write, in its dtype.
        output: a `.safetensors` file, or a new folder, which gets the `config.json` of Wan's releases as well.
        max_shard_bytes: size at which a new file begins, in a folder; None writes one file.
        metadata: more strings to store beside the tensors.
        overwrite: replace what an export wrote there before.

    Raises:
        FileExistsError: the file or folder is there already, or something that no export wrote is to be overwritten.
        ValueError: the weights hold NaN or infinity.
    """
    tensors, output = merged_state_dict(generator), Path(output)
    _require_free(output, overwrite)
    stored = _stored(generator, tensors, metadata)
    if output.suffix == ".safetensors":
        write_safetensors(output, tensors, stored)
        return
    _write_folder(output, tensors, stored, max_shard_bytes, wan_config(generator), overwrite)


def export_diffusers(
    generator: CausalWanModel,
    output: str | Path,
    max_shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a new folder that diffusers' `WanTransformer3DModel.from_pretrained` opens, with LoRA merged.

    Arguments and errors as in `export_wan`.

    Raises:
        ValueError: the generator is one that diffusers cannot build.
    """
    _require_free(Path(output), overwrite)
    config, tensors = diffusers_config(generator), merged_state_dict(generator)
    stored = _stored(generator, tensors, metadata)
    renamed = LazyTensors({to_diffusers_name(name): entry for name, entry in tensors.entries.items()})
    _write_folder(Path(output), renamed, stored, max_shard_bytes, config, overwrite)


def export_adapter(
    module: ActionVideoModule, output: str | Path, base: str | Path | None = None, overwrite: bool = False
) -> None:
    """Write what actions added to the base model, see `adapter.write_adapter`.

    Args:
        module: the trained module.
        output: a `.safetensors` file.
        base: checkpoint of the base that the adapter is for; None is the configuration's `pretrained`, with its
            `pretrained_lora`. If there is none, the base is the generator as it is.
        overwrite: replace a file that is there.

    Raises:
        FileExistsError: the file is there already.
        FileNotFoundError: the base is not there.
        ValueError: the module has no action projection, or its backbone was trained too, so that an adapter alone
            would not give what was trained.
    """
    _require_free(Path(output), overwrite)
    if module.action_projection is None:
        raise ValueError("there is nothing to put into an adapter: the model has no action_projection")
    started = module.initial_weights
    if base is not None:
        _check_is_still(module.generator, base)
    elif started.generator is not None:
        _check_is_still(module.generator, started.path, started.lora)
    write_adapter(output, module.generator, module.action_projection, module.schema)


def run_export(args: Sequence[str]) -> None:
    """The command `export`; `args` follow the verb."""
    parsed = _parser().parse_args(args)
    output = Path(parsed.output)
    if parsed.format == "adapter" and output.suffix != ".safetensors":
        raise ValueError(f"an adapter is a file: give an --output that ends in .safetensors, got {parsed.output!r}")
    _require_free(output, parsed.overwrite)
    module = load_run(parsed.config, parsed.ckpt_path, parsed.allow)
    if parsed.ema:
        load_averages(module, parsed.ckpt_path)
    if parsed.format == "adapter":
        export_adapter(module, output, parsed.base, parsed.overwrite)
    else:
        write = {"wan": export_wan, "diffusers": export_diffusers}[parsed.format]
        max_shard_bytes = None if parsed.max_shard_gb is None else int(parsed.max_shard_gb * 1e9)
        metadata = {"fit_seconds": str(module.fit_seconds)}
        write(module.generator, output, max_shard_bytes, metadata, parsed.overwrite)
    print(f"written to {output}")


@torch.no_grad()
def load_averages(module: nn.Module, ckpt_path: str | Path) -> None:
    """Put the averaged weights of a checkpoint into the module; what was not averaged stays.

    Raises:
        ValueError: the checkpoint holds no average, or one of another module.
    """
    missing = f"{ckpt_path} holds no averaged weights: leave --ema out, or train with the EMA callback"
    if Path(ckpt_path).is_dir():
        said = read_folder_metadata(ckpt_path).get("ema")
        if said is None:
            raise ValueError(missing)
        state = module.state_dict()
        averaged = {name: state[name] for name in said["names"]}
        load_shards({said["group"]: {"ema": averaged}}, ckpt_path, no_dist=True)
        return
    entries = read_tensors(ckpt_path).entries
    averages = LazyTensors({match[1]: entry for name, entry in entries.items() if (match := _AVERAGED.match(name))})
    if not averages:
        raise ValueError(missing)
    own = {name: tensor for name, tensor in module.state_dict().items() if name in averages}
    require_same(
        own, averages.entries, f"the average in {ckpt_path} does not fit", "use the configuration it was trained with"
    )
    require_finite(averages, f"the average in {ckpt_path}", "take an earlier checkpoint")
    for name, tensor in own.items():
        tensor.copy_(averages[name])


def wan_config(generator: CausalWanModel) -> dict[str, Any]:
    """The `config.json` of Wan's own releases."""
    size = detect_size(base_state_dict(generator))
    return {
        "_class_name": "WanModel",
        "model_type": "i2v" if "image_dim" in size else "t2v",
        **size,
        "num_heads": generator.num_heads,
        "text_len": generator.text_len,
        "eps": generator.head.norm.eps,
    }


def diffusers_config(generator: CausalWanModel) -> dict[str, Any]:
    """The `config.json` of diffusers' `WanTransformer3DModel`.

    Raises:
        ValueError: the generator has no norms of queries and keys, which diffusers' always has.
    """
    size = detect_size(base_state_dict(generator))
    if not size["qk_norm"]:
        raise ValueError("diffusers has no Wan transformer without qk_norm: export with --format wan")
    image_dim = size.get("image_dim")
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": size["patch_size"],
        "num_attention_heads": generator.num_heads,
        "attention_head_dim": size["dim"] // generator.num_heads,
        "in_channels": size["in_dim"],
        "out_channels": size["out_dim"],
        "text_dim": size["text_dim"],
        "freq_dim": size["freq_dim"],
        "ffn_dim": size["ffn_dim"],
        "num_layers": size["num_layers"],
        "cross_attn_norm": size["cross_attn_norm"],
        "qk_norm": "rms_norm_across_heads",
        "eps": generator.head.norm.eps,
        "image_dim": image_dim,
        "added_kv_proj_dim": None if image_dim is None else size["dim"],
        "pos_embed_seq_len": size.get("num_image_positions"),
    }


def _stored(generator: CausalWanModel, tensors: LazyTensors, metadata: Mapping[str, str] | None) -> dict[str, str]:
    own = {**identity(tensors), "num_heads": str(generator.num_heads)}
    return {"format": "pt", **own, **(metadata or {})}


def _check_is_still(generator: CausalWanModel, base: str | Path | None, lora: str | None = None) -> None:
    file = generator_file(base)
    held = read_generator(file).tensors
    if lora is not None:
        held = add_changes(held, read_low_rank(lora), lora)
    if fingerprint(held) != fingerprint(base_state_dict(generator)):
        raise ValueError(
            f"the generator is not the base {str(file)!r} any more, because it was trained too: export it with "
            "--format wan and name that with --base, or name the right base"
        )


def _require_free(output: Path, overwrite: bool) -> None:
    """Refuse to replace anything that is not to be overwritten, and folders that hold more than an export."""
    if not overwrite:
        if output.suffix == ".safetensors" and output.exists():
            raise FileExistsError(f"{output} is there already: give another --output, or --overwrite to replace it")
        require_new_folder(output)
        return
    others = [path.name for path in output.iterdir() if not _EXPORTED.fullmatch(path.name)] if output.is_dir() else []
    if others or output.is_dir() != (output.suffix != ".safetensors") and output.exists():
        raise FileExistsError(
            f"{output} is {'a folder' if output.is_dir() else 'a file'} that no export of this kind wrote"
            f"{f' (it holds {few(others)})' if others else ''}: give another --output"
        )


def _write_folder(
    output: Path,
    tensors: LazyTensors,
    metadata: Mapping[str, str],
    max_shard_bytes: int | None,
    config: Mapping[str, Any],
    overwrite: bool,
) -> None:
    with creating_folder(output, overwrite) as folder:
        write_shards(folder, tensors, metadata, max_shard_bytes)
        (folder / "config.json").write_text(json.dumps(config, indent=2))


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text!r}")
    return number


def _parser() -> VerbParser:
    parser = VerbParser(prog=f"{program_name()} export", description=__doc__, allow_abbrev=False)
    add = partial(parser.add_argument, required=True)
    add("--config", action="append", help="configuration of the run, such as its config_fit.yaml; again to stack")
    add("--ckpt_path", help="checkpoint of the run")
    add("--format", choices=FORMATS, help="names of the tensors, or the small file of what actions added")
    add("--output", help="a .safetensors file (wan, adapter) or a new folder (wan, diffusers)")
    parser.add_argument(
        "--max_shard_gb", type=_above_zero, help="size at which a new file begins (folders); default: one file"
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module of yours whose classes the configuration may name; again for more",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what an export wrote to --output before")
    parser.add_argument("--ema", action="store_true", help="the averaged weights, of a run with the EMA callback")
    parser.add_argument("--base", help="checkpoint that an adapter is for; default: `pretrained` of the configuration")
    return parser

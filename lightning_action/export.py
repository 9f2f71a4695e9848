"""Trained weights for use elsewhere: in the original Wan names, in those of diffusers, or as an action adapter."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from lightning_action.adapter import write_adapter
from lightning_action.callbacks.shard_reading import load_shards
from lightning_action.command_line import program_name
from lightning_action.files import creating_folder, require_new_folder
from lightning_action.generator.model import CausalWanModel
from lightning_action.lora import base_state_dict, merged_state_dict
from lightning_action.mistakes import UsageError
from lightning_action.module import ActionVideoModule
from lightning_action.pretrained import generator_file
from lightning_action.run import load_module
from lightning_action.strategies.checkpoints import read_folder_metadata
from lightning_action.usage_messages import explain
from lightning_action.weights import (
    LazyTensors,
    add_changes,
    detect_size,
    fingerprint,
    read_generator,
    read_low_rank,
    read_tensors,
    require_same,
    to_diffusers_name,
    write_safetensors,
    write_shards,
)

FORMATS = ("wan", "diffusers", "adapter")


def export_wan(
    generator: CausalWanModel,
    output: str | Path,
    max_shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the generator, with LoRA merged, in the original Wan names.

    Args:
        generator: what to write, in its dtype.
        output: a `.safetensors` file, or a new folder, which gets the `config.json` of Wan's releases as well.
        max_shard_bytes: size at which a new file begins, in a folder; None writes one file.
        metadata: more strings to store beside the tensors.

    Raises:
        FileExistsError: the folder is there already.
    """
    tensors, output = merged_state_dict(generator), Path(output)
    stored = {"format": "pt", "fingerprint": fingerprint(tensors), **(metadata or {})}
    if output.suffix == ".safetensors":
        write_safetensors(output, tensors, stored)
        return
    _write_folder(output, tensors, stored, max_shard_bytes, wan_config(generator))


def export_diffusers(
    generator: CausalWanModel,
    output: str | Path,
    max_shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a new folder that diffusers' `WanTransformer3DModel.from_pretrained` opens, with LoRA merged.

    Arguments and errors as in `export_wan`.

    Raises:
        ValueError: the generator is one that diffusers cannot build.
    """
    config, tensors = diffusers_config(generator), merged_state_dict(generator)
    stored = {"format": "pt", "fingerprint": fingerprint(tensors), **(metadata or {})}
    renamed = LazyTensors({to_diffusers_name(name): entry for name, entry in tensors.entries.items()})
    _write_folder(Path(output), renamed, stored, max_shard_bytes, config)


def export_adapter(module: ActionVideoModule, output: str | Path, base: str | Path | None = None) -> None:
    """Write what actions added to the base model, see `adapter.write_adapter`.

    Args:
        module: the trained module.
        output: a `.safetensors` file.
        base: checkpoint of the base that the adapter is for; None is the configuration's `pretrained`, with its
            `pretrained_lora`. If there is none, the base is the generator as it is.

    Raises:
        FileNotFoundError: the base is not there.
        ValueError: the module has no action projection, or its backbone was trained too, so that an adapter alone
            would not give what was trained.
    """
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
    if output.suffix != ".safetensors":
        require_new_folder(output)
    module = load_module(parsed.config, parsed.ckpt_path, parsed.allow)
    if parsed.ema:
        load_averages(module, parsed.ckpt_path)
    if parsed.format == "adapter":
        export_adapter(module, output, parsed.base)
    else:
        write = {"wan": export_wan, "diffusers": export_diffusers}[parsed.format]
        max_shard_bytes = None if parsed.max_shard_gb is None else int(parsed.max_shard_gb * 1e9)
        write(module.generator, output, max_shard_bytes, {"fit_seconds": str(module.fit_seconds)})
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
    outer = "ema_state_dict."
    averages = {name.removeprefix(outer): t for name, t in read_tensors(ckpt_path).items() if name.startswith(outer)}
    if not averages:
        raise ValueError(missing)
    own = {name: tensor for name, tensor in module.state_dict().items() if name in averages}
    require_same(own, averages, f"the average in {ckpt_path} does not fit", "use the configuration it was trained with")
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


def _write_folder(
    output: Path,
    tensors: LazyTensors,
    metadata: Mapping[str, str],
    max_shard_bytes: int | None,
    config: Mapping[str, Any],
) -> None:
    with creating_folder(output) as folder:
        write_shards(folder, tensors, metadata, max_shard_bytes)
        (folder / "config.json").write_text(json.dumps(config, indent=2))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        told = explain(message, list(self._option_string_actions))
        raise UsageError(f"{told} ({self.prog} --help lists what there is)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=f"{program_name()} export", description=__doc__, allow_abbrev=False)
    add = partial(parser.add_argument, required=True)
    add("--config", action="append", help="configuration of the run, such as its config_fit.yaml; again to stack")
    add("--ckpt_path", help="checkpoint of the run")
    add("--format", choices=FORMATS, help="names of the tensors, or the small file of what actions added")
    add("--output", help="a .safetensors file (wan, adapter) or a new folder (wan, diffusers)")
    parser.add_argument(
        "--max_shard_gb", type=float, help="size at which a new file begins (folders); default: one file"
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module of yours whose classes the configuration may name; again for more",
    )
    parser.add_argument("--ema", action="store_true", help="the averaged weights, of a run with the EMA callback")
    parser.add_argument("--base", help="checkpoint that an adapter is for; default: `pretrained` of the configuration")
    return parser

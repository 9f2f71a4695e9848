"""`export`: trained weights for use elsewhere, in the names of Wan or of diffusers, or as an action adapter."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lightning_action.checkpoints.adapter import write_adapter
from lightning_action.checkpoints.export import export_generator, is_file, require_free
from lightning_action.checkpoints.lora import base_state_dict
from lightning_action.checkpoints.pretrained import generator_file
from lightning_action.cli.trainer_verbs import program_name
from lightning_action.cli.usage import VerbParser
from lightning_action.generator.model import CausalWanModel
from lightning_action.module import ActionVideoModule
from lightning_action.run import load_averages, load_run
from lightning_action.weights.fingerprint import fingerprint
from lightning_action.weights.generator_file import read_generator
from lightning_action.weights.low_rank import add_changes, read_low_rank


def run_export(args: Sequence[str]) -> None:
    """Run the command `export`; `args` follow the verb."""
    parsed = _parser().parse_args(args)
    output = Path(parsed.output)
    if parsed.format == "adapter" and not is_file(output):
        raise ValueError(f"an adapter is a file: give an --output that ends in .safetensors, got {parsed.output!r}")
    require_free(output, parsed.overwrite)
    module = load_run(parsed.config, parsed.ckpt_path, parsed.allow)
    if parsed.ema:
        load_averages(module, parsed.ckpt_path)
    if parsed.format == "adapter":
        export_adapter(module, output, parsed.base)
    else:
        max_shard_bytes = None if parsed.max_shard_gb is None else int(parsed.max_shard_gb * 1e9)
        metadata = {"fit_seconds": str(module.fit_seconds)}
        export_generator(module.generator, output, parsed.format, max_shard_bytes, metadata, parsed.overwrite)
    print(f"written to {output}")


def export_adapter(module: ActionVideoModule, output: str | Path, base: str | Path | None = None) -> None:
    """Write what actions added to the base model, see `write_adapter`.

    Args:
        module: Trained module.
        output: A `.safetensors` file.
        base: Checkpoint of the base that the adapter is for; None is the configuration's `pretrained`, with its
            `pretrained_lora`. If there is none, the base is the generator as it is.

    Raises:
        FileNotFoundError: The base is not there.
        ValueError: The module has no action projection, or its backbone was trained too, so that an adapter alone
            would not give what was trained.
    """
    if module.action_projection is None:
        raise ValueError("there is nothing to put into an adapter: the model has no action_projection")
    started = module.initial_weights
    if base is not None:
        _check_is_still(module.generator, base)
    elif started.generator is not None:
        _check_is_still(module.generator, started.path, started.lora)
    write_adapter(output, module.generator, module.action_projection, module.schema, module.action_statistics)


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
    require = partial(parser.add_argument, required=True)
    require("--config", action="append", help="Configuration of the run, such as its config_fit.yaml; again to stack.")
    require("--ckpt_path", help="Checkpoint of the run.")
    require(
        "--format",
        choices=("wan", "diffusers", "adapter"),
        help="Names of the tensors, or the small file of what actions added.",
    )
    require("--output", help="A .safetensors file, or (wan, diffusers) a new folder.")
    add = parser.add_argument
    add("--max_shard_gb", type=_above_zero, help="Size at which a new file begins, in a folder; default: one file.")
    add(
        "--allow",
        action="append",
        default=[],
        metavar="MODULE",
        help="A module of yours whose classes the configuration may name; again for more.",
    )
    add("--overwrite", action="store_true", help="Replace what an export wrote to --output before.")
    add("--ema", action="store_true", help="Export the averaged weights, of a run with the EMA callback.")
    add("--base", help="Checkpoint that an adapter is for; default: `pretrained` of the configuration.")
    return parser

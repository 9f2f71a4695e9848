"""`export`: trained weights for use elsewhere, in the names of Wan or of diffusers, or as an action adapter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lightning_action.atomic import creating_folder, write_text
from lightning_action.checkpoints.adapter import write_adapter
from lightning_action.checkpoints.export import (
    ADAPTER_FILE,
    CARD_FILE,
    export_generator,
    is_file,
    require_free,
)
from lightning_action.checkpoints.lora import base_state_dict
from lightning_action.checkpoints.pretrained import generator_file
from lightning_action.cli.support.mistakes import UsageError
from lightning_action.cli.support.usage import VerbParser
from lightning_action.evaluation.report.model_card import model_card
from lightning_action.evaluation.report.provenance import told_fingerprint
from lightning_action.evaluation.report.report import Report, read_report, report_file
from lightning_action.generator.model import CausalWanModel
from lightning_action.module.action_video_module import ActionVideoModule
from lightning_action.ranges import require_numbers
from lightning_action.run import load_averages, load_run
from lightning_action.weights.fingerprint import fingerprint
from lightning_action.weights.generator_file import read_generator
from lightning_action.weights.low_rank import add_changes, read_low_rank
from lightning_action.weights.safetensors_files import read_metadata


def run_export(args: Sequence[str]) -> None:
    """Run the command `export`; `args` follow the verb."""
    parsed = _parser().parse_args(args)
    output, is_adapter = Path(parsed.output), parsed.format == "adapter"
    if parsed.report is not None and not is_adapter:
        raise UsageError("--report is for the card of an adapter: give --format adapter, or leave it out")
    if parsed.max_shard_gb is not None:
        require_numbers({"max_shard_gb": parsed.max_shard_gb}, 0, without_low=True)
    require_free(output, parsed.overwrite, is_adapter)
    given = None if parsed.report is None else read_report(Path(parsed.report))
    module = load_run(parsed.config, parsed.ckpt_path, parsed.allow)
    if parsed.ema:
        load_averages(module, parsed.ckpt_path)
    if is_adapter:
        report = found_report(module, parsed.ckpt_path) if given is None else require_own(module, given, parsed.report)
        card = export_with_card(module, output, report, parsed.base, parsed.overwrite)
        print(f"card, {'without a report' if report is None else 'with the figures of the report'}, written to {card}")
    else:
        max_shard_bytes = None if parsed.max_shard_gb is None else int(parsed.max_shard_gb * 1e9)
        metadata = {"fit_seconds": str(module.fit_seconds)}
        export_generator(module.generator, output, parsed.format, max_shard_bytes, metadata, parsed.overwrite)
    print(f"written to {output}")


def found_report(module: ActionVideoModule, ckpt_path: str | Path) -> Report | None:
    """Look for `report.json` beside a checkpoint or in the folder above, of these weights; None where there is none."""
    for folder in Path(ckpt_path).absolute().parents[:2]:
        path = report_file(folder)
        if not path.is_file():
            continue
        try:
            report = read_report(path)
        except ValueError as error:
            print(f"left out of the card: {error}")
            continue
        if is_of(module, report):
            return report
        print(f"left out of the card: {path} does not say that it is of these weights (see --report)")
    return None


def require_own(module: ActionVideoModule, report: Report, source: str) -> Report:
    """Refuse a report of other weights; one that does not say of which is taken.

    Raises:
        ValueError: The report was measured on other weights.
    """
    if told_fingerprint(report, "checkpoint") is not None and not is_of(module, report):
        raise ValueError(
            f"{source} was measured on other weights than those of the checkpoint (the averages of --ema are others "
            "too): give the report of these, or run `test` again"
        )
    return report


def is_of(module: ActionVideoModule, report: Report) -> bool:
    """Tell whether a report says that it was measured on the weights of a module."""
    told = told_fingerprint(report, "checkpoint")
    return told is not None and told == fingerprint(module.state_dict())


def export_with_card(
    module: ActionVideoModule,
    output: Path,
    report: Report | None,
    base: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an adapter with its model card, and return the path of the card.

    Args:
        module: Trained module.
        output: A `.safetensors` file, beside which the card is `NAME.md`; or a new folder that can be uploaded to the
            Hub as it is, with the card as `README.md`.
        report: Report of a test; None where there is none.
        base: See `export_adapter`.
        overwrite: Replace what an export wrote there before.
    """
    if is_file(output):
        export_adapter(module, output, base)
        card = output.with_suffix(".md")
        write_text(card, card_of(module, output, report))
        return card
    with creating_folder(output, overwrite) as folder:
        file = folder / ADAPTER_FILE
        export_adapter(module, file, base)
        write_text(folder / CARD_FILE, card_of(module, file, report))
    return output / CARD_FILE


def card_of(module: ActionVideoModule, file: Path, report: Report | None) -> str:
    """Write the model card of an adapter's file."""
    base = read_metadata(file)["base"]
    says_so = report is not None and told_fingerprint(report, "checkpoint") is not None
    return model_card(file.name, base, module.schema, module.action_statistics, report, says_so)


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


def _parser() -> VerbParser:
    parser = VerbParser("export", description=__doc__)
    require = partial(parser.add_argument, required=True)
    require("--config", action="append", help="Configuration of the run, such as its config_fit.yaml; again to stack.")
    require("--ckpt_path", help="Checkpoint of the run.")
    require(
        "--format",
        choices=("wan", "diffusers", "adapter"),
        help="Names of the tensors, or the small file of what actions added.",
    )
    require("--output", help="A .safetensors file, or a new folder.")
    add = parser.add_argument
    add("--max_shard_gb", type=float, help="Size at which a new file begins, in a folder; default: one file.")
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
    add(
        "--report",
        help="Report for the card of an adapter, or its folder; default: that of these weights, beside the run.",
    )
    return parser

"""`evaluate`: which of two tested models obeys better; whether videos of another program do; rollouts for a judge."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_action.atomic import write_text
from lightning_action.cli.support.data_section import split_settings
from lightning_action.cli.support.mistakes import UsageError
from lightning_action.cli.support.text_table import text_table
from lightning_action.cli.support.usage import VerbParser
from lightning_action.evaluation.report.comparison import Comparison, compare
from lightning_action.evaluation.report.comparison_page import comparison_page
from lightning_action.evaluation.report.figures import format_value
from lightning_action.evaluation.report.report import Report, read_report, report_file

_NAMES = ("A", "B")
_USAGE = """
  %(prog)s --compare A B [--output FILE.html]
  %(prog)s --videos DIR --config FILE --output DIR [--other DIR] [--null DIR] ...
  %(prog)s --videos DIR --truth DIR --output DIR [--actions PATH] ...
  %(prog)s --export worldproof --config FILE --ckpt_path FILE --output DIR ..."""
_OF_DATA = ("output", "config", "data", "allow", "split")
_USES = {
    "compare": ("output",),
    "videos": (
        *_OF_DATA,
        *("other", "null", "truth", "other_truth", "actions", "other_actions", "manifest"),
        *("num_initial_frames", "temporal_compression_ratio", "object_color", "inverse_dynamics", "resize"),
    ),
    "export": (*_OF_DATA, "ckpt_path", "num_samples", "fps", "device", "dtype", "overwrite"),
}
_REQUIRED = {"compare": (), "videos": ("output",), "export": ("config", "ckpt_path", "output")}


def run_evaluate(args: Sequence[str]) -> None:
    """Run the command `evaluate`; `args` follow the verb."""
    settings, rest = split_settings(args)
    given = vars(_parser().parse_args(rest))
    if settings:
        given["data"] = settings
    uses = [use for use in _USES if use in given]
    if len(uses) != 1:
        what = "one thing at a time" if uses else "nothing to evaluate"
        raise UsageError(
            f"{what}: give --compare A B, two reports that `test` wrote, or their folders; or --videos DIR, videos "
            "that another program made; or --export worldproof, rollouts for another judge"
        )
    use = uses[0]
    misplaced = [name for name in given if name != use and name not in _USES[use]]
    if misplaced:
        others = [f"--{other}" for other, options in _USES.items() if misplaced[0] in options]
        raise UsageError(f"--{misplaced[0]} is for {' and '.join(others)}, not for --{use}: leave it out")
    missing = [name for name in _REQUIRED[use] if name not in given]
    if missing:
        raise UsageError(f"--{use} needs {' and '.join(f'--{name}' for name in missing)}")
    given["settings"] = given.pop("data", ())
    if use == "compare":
        first, second = given["compare"]
        compare_reports(first, second, given.get("output"))
    elif use == "videos":
        from lightning_action.cli.evaluate_videos import evaluate_videos
        from lightning_action.cli.video_inputs import VideoOptions

        evaluate_videos(VideoOptions(**given))
    else:
        from lightning_action.cli.export_rollouts import RolloutOptions, export_rollouts

        del given["export"]
        export_rollouts(RolloutOptions(**given))


def compare_reports(first: Path, second: Path, output: Path | None = None) -> None:
    """Print which figures of a second report differ from those of a first one by more than noise.

    Args:
        first: Report, or the folder that it is in.
        second: The other one.
        output: HTML file that shows them side by side; None writes none.

    Raises:
        FileNotFoundError: A path names no report.
        ValueError: A file is no report, both are the same, they have no figure in common, or `output` is not `.html`.
    """
    if output is not None and output.suffix != ".html":
        raise ValueError(f"--output is a page: give a name that ends in .html, got {str(output)!r}")
    reports = read_report(first), read_report(second)
    if report_file(first).samefile(report_file(second)):
        raise ValueError(f"{first} is compared with itself: give two reports")
    comparison = compare(*reports, _NAMES)
    if not comparison.changes and not comparison.details:
        raise ValueError(f"{first} and {second} have no figure in common that could be compared")
    print(format_comparison(comparison, reports, (str(first), str(second))))
    if output is not None:
        page = comparison_page(comparison, *reports, (str(first), str(second)))
        write_text(output, page)
        print(f"written to {output}")


def format_comparison(comparison: Comparison, reports: tuple[Report, Report], paths: tuple[str, str]) -> str:
    """Write a comparison as text: whose reports, the figures, how they were tested, and a summary."""
    whose = [
        "\n".join(
            [f"{name}: {path}: {label}", *(f"   - {why}" for why in (report.get("verdict") or {}).get("reasons", ()))]
        )
        for name, path, label, report in zip(comparison.names, paths, comparison.verdicts, reports, strict=True)
    ]
    rows, has_distances = [], False
    for change in comparison.changes:
        tested = change.tested
        nearer = tested is not None and change.figure.better == "nearer"
        has_distances |= nearer
        rows.append(
            (
                change.figure.heading,
                format_value(change.first),
                format_value(change.second),
                "-" if tested is None else f"{tested.difference:+.3f}{'*' if nearer else ' '}",
                "-" if tested is None else f"{tested.interval[0]:+.3f} .. {tested.interval[1]:+.3f}",
                "-" if tested is None else f"{tested.episodes}",
                format_value(change.p_value),
                change.outcome,
            )
        )
    first, second = comparison.names
    header = ("", first, second, f"{second} - {first} ", "95 %", "n", "p", f"{second} is")
    stars = "\n  * of the distances from the ideal" if has_distances else ""
    table = text_table("FIGURES", header, rows) + stars
    return "\n\n".join(["\n".join(whose), table, f"  {comparison.method()}", comparison.summary()])


def _parser() -> VerbParser:
    parser = VerbParser("evaluate", description=__doc__, usage=_USAGE, argument_default=argparse.SUPPRESS)
    add = parser.add_argument
    add("--output", type=Path, metavar="PATH", help="Page FILE.html, or folder of the reports or of the rollouts.")
    add(
        "--config", action="append", metavar="FILE", help="Configuration, whose `data` has the samples; again to stack."
    )
    add("--data.NAME", metavar="VALUE", help="Argument of the data, such as --data.test_size 8.")
    add("--allow", action="append", metavar="MODULE", help="Module whose classes it may name; again for more.")
    add("--split", choices=("test", "predict"), help="Samples of the data; default: test.")
    add = parser.add_argument_group("compare two reports").add_argument
    add("--compare", nargs=2, type=Path, metavar=("A", "B"), help="Two files report.json, or the folders they are in.")
    add = parser.add_argument_group("videos of another program").add_argument
    add("--videos", type=Path, metavar="DIR", help="Videos made under the true actions, one for each sample.")
    add("--other", type=Path, metavar="DIR", help="Videos under other actions, from the same starts and noise.")
    add("--null", type=Path, metavar="DIR", help="Videos without actions, from the same starts and noise.")
    add("--truth", type=Path, metavar="DIR", help="True videos, in place of --config.")
    add("--other_truth", type=Path, metavar="DIR", help="True videos under the other actions.")
    add("--actions", type=Path, metavar="PATH", help="Folder of tables, or an .npz, of the actions of --truth.")
    add("--other_actions", type=Path, metavar="PATH", help="The same of --other; default: of the sample before.")
    add("--manifest", type=Path, metavar="FILE", help="Table of which files belong together; default: equal names.")
    add("--num_initial_frames", type=int, metavar="N", help="Number of frames that were given; default: 1.")
    add("--temporal_compression_ratio", type=int, metavar="R", help="Frames of a latent frame; default: as the data's.")
    add(
        "--object_color", type=int, nargs=3, metavar=("R", "G", "B"), help="Object to look for, where --truth is given."
    )
    add(
        "--inverse_dynamics",
        type=Path,
        metavar="DIR",
        help="Model of `inverse-dynamics`, which reads actions off videos.",
    )
    add("--resize", action="store_true", help="Scale videos to the size of the true ones.")
    add = parser.add_argument_group("rollouts for another judge").add_argument
    add("--export", choices=("worldproof",), help="Format of the folder.")
    add("--ckpt_path", metavar="FILE", help="Checkpoint of the run.")
    add("--num_samples", type=int, metavar="N", help="Number of videos of each start, each with noise of its own.")
    add("--fps", type=float, metavar="F", help="Frames of a second that the folder tells; default: 16.")
    add("--device", metavar="NAME", help="Device such as cuda:0 or cpu; default: a GPU if there is one.")
    add("--dtype", choices=("float32", "bfloat16"), help="Dtype of the weights; default: float32.")
    add("--overwrite", action="store_true", help="Replace what is at --output.")
    return parser

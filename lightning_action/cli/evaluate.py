"""`evaluate`: which of two tested models obeys better, and whether that is more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_action.atomic import replacing
from lightning_action.cli.mistakes import UsageError
from lightning_action.cli.text_table import text_table
from lightning_action.cli.trainer_verbs import program_name
from lightning_action.cli.usage import VerbParser
from lightning_action.evaluation.comparison import Comparison, compare
from lightning_action.evaluation.comparison_page import comparison_page
from lightning_action.evaluation.figures import format_value
from lightning_action.evaluation.report import Report, read_report, report_file

_NAMES = ("A", "B")


def run_evaluate(args: Sequence[str]) -> None:
    """Run the command `evaluate`; `args` follow the verb."""
    parsed = _parser().parse_args(args)
    if parsed.compare is None:
        raise UsageError("nothing to evaluate: give --compare A B, two reports that `test` wrote, or their folders")
    output = None if parsed.output is None else Path(parsed.output)
    first, second = map(Path, parsed.compare)
    compare_reports(first, second, output)


def compare_reports(first: Path, second: Path, output: Path | None = None) -> None:
    """Print which figures of a second report differ from those of a first one by more than noise.

    Args:
        first: Report, or the folder that it is in.
        second: The other one.
        output: HTML file that shows them side by side; None writes none.

    Raises:
        FileNotFoundError: A report is not there.
        ValueError: A file is no report, both are the same, they have no figure in common, or `output` is not `.html`.
    """
    if output is not None and output.suffix != ".html":
        raise ValueError(f"--output is a page: give a name that ends in .html, got {str(output)!r}")
    reports = read_report(first), read_report(second)
    if report_file(first).samefile(report_file(second)):
        raise ValueError(f"{first} is compared with itself: give two reports")
    comparison = compare(*reports, _NAMES)
    if not comparison.changes:
        raise ValueError(f"{first} and {second} have no figure in common that could be compared")
    print(format_comparison(comparison, reports, (str(first), str(second))))
    if output is not None:
        page = comparison_page(comparison, *reports, (str(first), str(second)))
        with replacing(output) as temporary:
            temporary.write_text(page, encoding="utf-8")
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
                format_value(change.p_value),
                change.outcome,
            )
        )
    first, second = comparison.names
    header = ("", first, second, f"{second} - {first} ", "95 %", "p", f"{second} is")
    stars = "\n  * of the distances from the ideal" if has_distances else ""
    table = text_table("FIGURES", header, rows) + stars
    return "\n\n".join(["\n".join(whose), table, f"  {comparison.method()}", comparison.summary()])


def _parser() -> VerbParser:
    parser = VerbParser(prog=f"{program_name()} evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="Two files report.json that `test` wrote, or the folders that they are in.",
    )
    parser.add_argument("--output", metavar="FILE.html", help="Page that shows both side by side.")
    return parser

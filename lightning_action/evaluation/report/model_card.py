"""The model card of an action adapter, in the form that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from lightning_action import __version__
from lightning_action.action.schema import ActionSchema
from lightning_action.batch import pixel_frames_of
from lightning_action.evaluation.report.figures import Figure, figures_of, format_value, is_number

_SHOWN_LATENTS = 4
_ALIGNMENTS = {
    "transition": "row k leads from pixel frame k to k + 1",
    "state": "row k is recorded with pixel frame k",
    "per_latent": "row i belongs to latent frame i",
}
_COMBINED = {
    "concat": "side by side",
    "mean": "as their mean",
    "sum": "as their sum",
    "last": "by the last one of them",
}


def model_card(
    file: str,
    base: str,
    schema: ActionSchema,
    statistics: Sequence[Mapping[str, Any]] = (),
    report: Mapping[str, Any] | None = None,
    is_of_these_weights: bool = False,
) -> str:
    """Write the card as Markdown, with metadata in YAML before it.

    Args:
        file: Name of the adapter's file.
        base: Fingerprint of the base model that the adapter is for.
        schema: Meaning of its actions.
        statistics: Figures of each column of the actions that it was trained on.
        report: Report of a test; None where there is none, which the card then says.
        is_of_these_weights: True if the report names the weights that the card is for.
    """
    parts = [
        f"---\n{yaml.safe_dump(_metadata(file, report), sort_keys=False, allow_unicode=True)}---\n",
        f"# {file}\n",
        "What actions add to a causal Wan video generator: with its base model, a world model that is commanded. Made "
        f"by lightning_action {__version__}.\n",
        "## Does it obey?\n",
        *(_unmeasured() if report is None else _measured(report, is_of_these_weights)),
        "## What an action is\n",
        *_actions(schema, statistics),
        "## How to load it\n",
        *_usage(file, base, schema),
    ]
    return "\n".join(parts)


def _metadata(file: str, report: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata under which the Hub files a model; results as it shows them beside the card."""
    found: dict[str, Any] = {
        "library_name": "lightning_action",
        "pipeline_tag": "image-to-video",
        "tags": ["world-model", "action-conditioned", "video-generation", "wan", "adapter"],
    }
    shown = figures_of(report or ()).values()
    known = [figure for figure in shown if figure.printed and report and is_number(report.get(figure.key))]
    if report is None or not known:
        return found
    data = ((report.get("provenance") or {}).get("data") or {}).get("class", "its own test set")
    metrics = [{"type": figure.key, "name": figure.name, "value": round(report[figure.key], 4)} for figure in known]
    result = {
        "task": {"type": "image-to-video"},
        "dataset": {"name": f"{data}, test split", "type": "custom"},
        "metrics": metrics,
    }
    return {**found, "model-index": [{"name": file.removesuffix(".safetensors"), "results": [result]}]}


def _unmeasured() -> Iterator[str]:
    yield (
        "**Nobody knows: no report was given when this card was written.** `python main.py test` measures it, and "
        "writes `report.json`; `export --format adapter --report report.json` puts the figures here.\n"
    )


def _measured(report: Mapping[str, Any], is_of_these_weights: bool) -> Iterator[str]:
    """Verdict, figures beside the baselines, and how they were measured."""
    verdict = report.get("verdict") or {}
    yield f"**{verdict.get('label', 'no verdict')}**\n"
    yield "".join(f"- {reason}\n" for reason in verdict.get("reasons", ()))
    if not is_of_these_weights:
        yield "The report does not say which weights it was measured on: that they are these is the exporter's word.\n"
    baselines: Mapping[str, Any] = report.get("baselines") or {}
    intervals = report.get("intervals") or {}

    def row(figure: Figure) -> list[str]:
        key, low_high = figure.key, intervals.get(figure.key)
        interval = " to ".join(map(format_value, low_high)) if low_high else ""
        values = [format_value(each.get(key)) for each in (report, *baselines.values())]
        return [figure.heading, values[0], interval, *values[1:]]

    shown = [figure for figure in figures_of(report).values() if figure.printed]
    yield _table(["", "model", "95 %", *(name.replace("_", " ") for name in baselines)], map(row, shown))
    limits = ", ".join(f"{name} {limit:g}" for name, limit in (verdict.get("thresholds") or {}).items())
    told = [
        f"{report['episodes']:.0f} test episodes" if is_number(report.get("episodes")) else "",
        f"{report['num_frames']} frames, {report.get('num_initial_frames')} of them given"
        if "num_frames" in report
        else "",
        f"rollouts {report['rollout']}" if "rollout" in report else "",
        f"seed {report['seed']}" if "seed" in report else "",
        "intervals by bootstrap over episodes" if intervals else "",
    ]
    yield f"{'; '.join(filter(None, told))}.\n" if any(told) else ""
    yield f"Thresholds of the verdict: {limits}.\n" if limits else ""


def _actions(schema: ActionSchema, statistics: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The columns of a row, and which rows belong to which latent frame."""
    rows, column = [], 0
    for part in schema.parts:
        columns = f"{column}" if part.num_columns == 1 else f"{column} to {column + part.num_columns - 1}"
        is_continuous = part.kind == "continuous"
        classes = f"{part.size} classes" if part.kind == "discrete" else part.kind.replace("_", "-")
        bounds = [str(part.low), str(part.high)] if is_continuous else ["", ""]
        rows.append([columns, part.name, classes, *bounds])
        column += part.num_columns
    yield "An action row has these columns; `low` is what the model takes for -1, and `high` for 1:\n"
    yield _table(["column", "name", "kind", "low", "high"], rows)
    if statistics:
        yield "Of the actions that it was trained on:\n"
        keys = [key for key in ("name", "mean", "std", "low", "high") if key in statistics[0]]
        yield _table(keys, [[_cell(each.get(key)) for key in keys] for each in statistics])
    yield (
        f"Alignment `{schema.alignment}`: {_ALIGNMENTS[schema.alignment]}. L latent frames take "
        f"{_count(schema)} rows, and the rows of a latent frame act {_COMBINED[schema.combine]}.\n"
    )
    ratio = schema.temporal_compression_ratio
    times = [
        [str(latent), _span(pixel_frames_of(latent, ratio)), _span(schema.rows_of(latent))]
        for latent in range(_SHOWN_LATENTS)
    ]
    yield _table(["latent frame", "pixel frames", "action rows"], times)


def _count(schema: ActionSchema) -> str:
    per_latent = schema.num_rows(2) - schema.num_rows(1)
    first = schema.num_rows(1) - per_latent
    return "L" if first == 0 and per_latent == 1 else f"{per_latent} L {'+' if first > 0 else '-'} {abs(first)}"


def _usage(file: str, base: str, schema: ActionSchema) -> Iterator[str]:
    yield (
        f"It belongs to the base model with the fingerprint `{base}`, and refuses another one unless it is told to "
        "take it (`any_base`). Install lightning_action, then:\n"
    )
    yield (
        "```python\nfrom lightning_action import ActionCausalInferencePipeline\n\n"
        f'pipeline = ActionCausalInferencePipeline.from_checkpoint("BASE.safetensors", adapter="{file}")\n```\n'
    )
    yield "or, with the configuration of the run:\n"
    yield f"```\npython main.py predict --config CONFIG.yaml --model.pretrained BASE --model.adapter {file}\n```\n"
    yield (
        "`lightning_action.load_adapter` puts it into a generator of yours. An action row has "
        f"{schema.num_columns} columns, unscaled.\n"
    )


def _table(header: Sequence[str], rows: Any) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if is_number(value) else str(value)


def _span(numbers: range) -> str:
    if not numbers:
        return "none"
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"

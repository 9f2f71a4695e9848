"""`inspect`: what is in a data set, whether its actions are aligned with its frames, and the schema that they need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor

from lightning_action.action.schema import ActionSchema
from lightning_action.atomic import write_text
from lightning_action.batch import num_latent_frames, num_pixel_frames, to_unit_range
from lightning_action.callbacks.support.pictures import draw_actions, enlarge, in_grid, write_png
from lightning_action.cli.support.data_section import parse_data
from lightning_action.cli.support.dry_run import action_times
from lightning_action.cli.support.text_table import Row, span, text_table
from lightning_action.cli.support.usage import RunParser
from lightning_action.data.clip_encoding import ClipData
from lightning_action.data.recorded import RecordedDataModule
from lightning_action.data.split_data import Split
from lightning_action.recordings.clips import Clip
from lightning_action.recordings.lag import estimate_lag
from lightning_action.recordings.statistics import ColumnStatistics, measure

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_SHOWN_LATENTS, _SHOWN_COLUMNS = 4, 6
# Stretches of clips, and frames of each, that the lag is estimated from; more tell the same.
_LAG_STRETCHES, _LAG_FRAMES = 60, 80
_SHEET_CLIPS, _SHEET_FRAMES, _SHEET_SIDE = 4, 8, 200


def run_inspect(args: Sequence[str]) -> None:
    """Say what is in a data set: clips, actions and their ranges, which rows belong to which frames, and their lag."""
    parsed, build = parse_data("inspect", run_inspect.__doc__, _add_options, args)
    datamodule = build()
    if not isinstance(datamodule, ClipData):
        raise ValueError(
            f"{type(datamodule).__name__} has no clips to look at: give a DataModule with `clips(split)`, such as "
            "LeRobotDataModule or VideoFolderDataModule"
        )
    datamodule.prepare_data()
    datamodule.setup("fit")
    schema = datamodule.action_schema
    if schema is None and parsed.write is not None:
        raise ValueError("there are no actions, so that there is no schema to write: leave out --write")
    acting = [clip for clip in datamodule.clips("train") if clip.has_actions]
    print("\n\n".join(filter(None, [_contents(datamodule), *_actions(datamodule, acting)])))
    output = Path(parsed.output)
    write_png(output, contact_sheet(list(datamodule.clips("train")), schema))
    print(f"\ncontact sheet written to {output}")
    if schema is not None and parsed.write is not None:
        _write_schema(Path(parsed.write), schema)
        print(f"schema written to {parsed.write}: stack it with --config {parsed.write}")


def contact_sheet(clips: Sequence[Clip], schema: ActionSchema | None) -> Tensor:
    """Show frames of some clips, one clip a row, each with the action that led to it: `[3, H, W]`, uint8."""
    count = min(_SHEET_CLIPS, len(clips))
    pictures, captions = [], []
    for clip in (clips[index * len(clips) // count] for index in range(count)):
        numbers = [round((clip.num_frames - 1) * step / (_SHEET_FRAMES - 1)) for step in range(_SHEET_FRAMES)]
        video = enlarge(to_unit_range(torch.cat([clip.video(number, 1) for number in numbers])), _SHEET_SIDE)
        if clip.has_actions and schema is not None:
            led = [clip.action(number - 1, 2)[schema.rows_per_frame - 1] for number in numbers[1:]]
            video = draw_actions(video, torch.stack(led))
        pictures += [frame[None] for frame in video]
        captions += [f"{clip.name}, frame {number}" for number in numbers]
    return in_grid(pictures, captions, _SHEET_FRAMES)[0]


def _contents(datamodule: ClipData) -> str:
    rows: list[Row] = []
    prompts: Counter[str] = Counter()
    for split in _SPLITS:
        clips = datamodule.clips(split)
        frames = sum(clip.num_frames for clip in clips)
        seconds = sum(clip.num_frames / clip.fps for clip in clips)
        without = sum(not clip.has_actions for clip in clips)
        rows.append((split, str(len(clips)), f"{frames:,}", f"{seconds / 60:.1f}", str(without)))
        prompts.update(clip.prompt for clip in clips)
    table = text_table("CLIPS", ("", "number", "frames", "minutes", "without actions"), rows)
    shown = ", ".join(f"{prompt!r} ({count})" for prompt, count in prompts.most_common(3))
    lines = [f"  {len(prompts)} prompts: {shown}{', ...' if len(prompts) > 3 else ''}"]
    if isinstance(datamodule, RecordedDataModule):
        lines = [f"  frames: {datamodule.frame_rule}", *lines]
    return "\n".join([table, *lines])


def _actions(datamodule: ClipData, acting: Sequence[Clip]) -> list[str]:
    """Describe ranges, rows in time, and lag of the actions."""
    schema = datamodule.action_schema
    if schema is None or not acting:
        return ["ACTIONS\n  none were recorded: the data trains a backbone, and no obedience"]
    statistics = _statistics(datamodule, acting)
    figures = text_table(
        "ACTIONS of the training clips",
        ("column", "mean", "deviation", "least", "1 %", "99 %", "most"),
        [
            (each.name, *(f"{value:.4g}" for value in (each.mean, each.std, each.low, each.q01, each.q99, each.high)))
            for each in statistics
        ],
    )
    remarks = "".join(f"\n  - {remark}" for each in statistics for remark in each.remarks())
    return [figures + remarks, _in_time(acting[0], schema, statistics), _lag(acting, schema)]


def _statistics(datamodule: ClipData, acting: Sequence[Clip]) -> list[ColumnStatistics]:
    if isinstance(datamodule, RecordedDataModule):
        return datamodule.statistics
    rows = [clip.action(0, clip.num_frames).numpy() for clip in acting]
    return measure(rows, [f"action_{column}" for column in range(rows[0].shape[1])], sum(map(len, rows)))


def _in_time(clip: Clip, schema: ActionSchema, statistics: Sequence[ColumnStatistics]) -> str:
    """Show the action rows of the first latent frames of a clip, with the pixel frames that they belong to."""
    ratio = schema.temporal_compression_ratio
    num_latents = min(_SHOWN_LATENTS, num_latent_frames(clip.num_frames, ratio))
    values = clip.action(0, num_pixel_frames(num_latents, ratio))[:, :_SHOWN_COLUMNS]
    rows: list[Row] = []
    for time in action_times(schema, num_latents):
        rows.append((str(time.latent), span(time.pixel_frames), span(time.action_rows), ""))
        rows += [("", "", str(row), " ".join(f"{value:9.4g}" for value in values[row])) for row in time.action_rows]
    names = " ".join(f"{each.name[:9]:>9}" for each in statistics[:_SHOWN_COLUMNS])
    title = f"ACTIONS IN TIME, {clip.name}, alignment: {schema.alignment}"
    return text_table(title, ("latent frame", "pixel frames", "action rows", names), rows)


def _lag(acting: Sequence[Clip], schema: ActionSchema) -> str:
    """Estimate the lag at the model's frame rate; several rows of a frame are averaged."""
    stretches = [
        (clip, start, length)
        for clip in acting
        for length in [min(clip.num_frames // 2, _LAG_FRAMES)]
        for start in range(0, clip.num_frames - length + 1, max(1, length))
    ]
    pairs = []
    for clip, start, length in stretches[:: max(1, len(stretches) // _LAG_STRETCHES)][:_LAG_STRETCHES]:
        rows = clip.action(start, length)[: schema.rows_per_frame * (length - 1)]
        parts = zip(schema.parts, rows.split(schema.part_widths, dim=-1), strict=True)
        vectors = torch.cat([part.encode(raw) for part, raw in parts], dim=-1)
        pairs.append((clip.video(start, length), vectors.unflatten(0, (length - 1, -1)).mean(dim=1)))
    try:
        estimate = estimate_lag(pairs)
    except ValueError as error:
        return f"LAG of the pixels\n  cannot tell: {error}"
    curve = ", ".join(f"{lag:+d}: {score:.2f}" for lag, score in estimate.scores.items())
    return f"LAG of the pixels behind the actions\n  {estimate.verdict()}\n  explained at each lag: {curve}"


def _write_schema(path: Path, schema: ActionSchema) -> None:
    text = yaml.safe_dump({"model": {"schema": schema.to_dict()}}, sort_keys=False)
    write_text(path, f"# What an action is, measured on the training clips.\n{text}")


def _add_options(parser: RunParser) -> None:
    parser.add_argument("--output", type=str, default="contact_sheet.png", help="Picture of frames with their actions.")
    parser.add_argument("--write", type=str | None, default=None, help="YAML file that the schema is written to.")

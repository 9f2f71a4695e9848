"""`evaluate --videos`: the report of `test`, of videos that another program made."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from lightning_action.cli.true_videos import DataSource, FileSource
from lightning_action.cli.video_inputs import VideoOptions, find_inputs
from lightning_action.evaluation.given_videos import GivenVideosTest
from lightning_action.evaluation.metrics.inverse_dynamics_model import InverseDynamicsModel, load_inverse_dynamics
from lightning_action.evaluation.report.provenance import reader_provenance, versions
from lightning_action.evaluation.report.report import format_table, write_reports


def evaluate_videos(options: VideoOptions) -> None:
    """Compare videos with the truth, write `report.json` and `report.html`, and print the figures.

    Raises:
        FileNotFoundError: A folder or file is not there.
        ValueError: A video is missing, too much, broken, or of another size than the true ones.
    """
    inputs = find_inputs(options)
    source: DataSource | FileSource = DataSource(options, inputs) if options.config else FileSource(options, inputs)
    reader = None if options.inverse_dynamics is None else load_inverse_dynamics(options.inverse_dynamics)
    if reader is not None and isinstance(source, DataSource) and source.schema is not None:
        reader.require_reads(source.schema)
    test = GivenVideosTest(source.ratio, options.num_initial_frames, reader)
    for episodes in tqdm(source, desc="comparing", unit="batch", total=len(source)):
        test.add(episodes)
    report = {**test.report(), "provenance": provenance(options, source, reader)}
    paths = write_reports(options.output, report, test.pictures())
    print(f"\n{format_table(report)}\n\nwritten to {' and '.join(map(str, paths))}")
    if test.unlike:
        print(
            f"In {len(test.unlike)} of {report['episodes']:.0f} episodes ({test.unlike[0]} the first) the given frames "
            "are not like the true ones: are they videos of the same episodes, which begin with the given frames?"
        )


def provenance(
    options: VideoOptions, source: DataSource | FileSource, reader: InverseDynamicsModel | None
) -> dict[str, Any]:
    """Say what was compared with what."""
    data = {"class": source.kind, "fingerprint": source.fingerprint, "config": ", ".join(options.config)}
    folder = options.inverse_dynamics
    read = {} if folder is None or reader is None else {"inverse_dynamics": reader_provenance(folder, reader)}
    return {
        "videos": {kind: str(path) for kind, path in options.paths.items()},
        "data": {name: value for name, value in data.items() if value},
        **read,
        "versions": versions(),
    }

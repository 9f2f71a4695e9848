"""`replay`: a session that `play` has recorded, played again and compared bit for bit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lightning_action.cli.support.mistakes import UsageError
from lightning_action.cli.support.playable import PlayableCLI, load_stage, require_playable, settings_of
from lightning_action.cli.support.text_table import text_table
from lightning_action.configuration.ckpt_path import require_checkpoint
from lightning_action.play.replaying import Replayed, changed_settings, replay
from lightning_action.play.session_recording import RecordedSession, read_session

# Letters of a value that a table shows.
_WIDTH = 52


def run_replay(args: Sequence[str]) -> bool:
    """Play a recorded session again, the folder that is named first; True says that every bit is the same.

    Further arguments change what it was recorded with: --ckpt_path where the checkpoint has moved, --device.
    """
    if not args or args[0].startswith("-"):
        if args and args[0] in ("-h", "--help"):
            PlayableCLI("replay FOLDER", run_replay.__doc__, args)
        raise UsageError("which session? Name its folder first: replay runs/demo/play/001")
    folder = Path(args[0])
    session = read_session(folder)
    with tempfile.TemporaryDirectory() as temporary:
        config = Path(temporary) / "config.yaml"
        config.write_text(session.config, encoding="utf-8")
        cli = PlayableCLI("replay", run_replay.__doc__, [f"--config={config}", *args[1:]])
    require_checkpoint("replay", cli.config.ckpt_path)
    data = require_playable(cli.model, cli.datamodule)
    recorded_threads = str(session.provenance.get("threads", ""))
    if recorded_threads.isdecimal() and 0 < int(recorded_threads) <= 1024:
        # Sums are split among the threads, and their bits follow from how.
        torch.set_num_threads(int(recorded_threads))
    stage = load_stage(cli, data, settings_of(cli.config, folder.name), {}, _tell)
    total = sum(len(episode.hashes) for episode in session.episodes)
    with tqdm(total=total, unit="block", leave=False) as bar:
        replayed = replay(session, stage, bar.update)
    settings = changed_settings(session.config, cli.parser.dump(cli.config))
    # What became of a setting says more than the setting.
    replayed = replace(replayed, changes={**settings, **replayed.changes})
    print(format_replayed(session, replayed))
    return replayed.differs is None


def _tell(doing: str, share: float) -> None:
    print(f"  {doing}", flush=True)


def format_replayed(session: RecordedSession, replayed: Replayed) -> str:
    """Say in text whether a session was reproduced, and what has changed since it was recorded."""
    worlds = len(session.episodes)
    equal = f"{replayed.num_blocks} blocks, {replayed.num_frames} frames"
    # Where the checkpoint lies changes no bit.
    changes = {name: pair for name, pair in replayed.changes.items() if name != "ckpt_path"}
    rows = [(name, *_short(*pair)) for name, pair in changes.items()]
    table = text_table("CHANGED SINCE", ("", "recorded", "now"), rows) if rows else ""
    if replayed.differs is None:
        said = f"reproduced bit for bit: {equal} of {worlds} world{'s' * (worlds != 1)}"
        return f"{table}\n\n{said}" if table else said
    unknown = "  nothing that is recorded has changed: what differs is not recorded, such as a driver"
    refused = f"  refused now: {replayed.refused}" if replayed.refused else ""
    reason = "\n\n".join(filter(None, (refused, table))) or unknown
    return f"NOT THE SAME from {replayed.differs} on; equal before: {equal}\n\n{reason}"


def _short(*values: Any) -> list[str]:
    """Cut values to where they begin to differ, with a little of what they have in common before."""
    texts = ["-" if value is None else str(value) for value in values]
    if max(map(len, texts)) <= _WIDTH:
        return texts
    begin = max(len(os.path.commonprefix(texts)) - 20, 0)
    ends = [" ..." if len(text) > begin + _WIDTH else "" for text in texts]
    return ["... " * (begin > 0) + text[begin : begin + _WIDTH] + end for text, end in zip(texts, ends, strict=True)]

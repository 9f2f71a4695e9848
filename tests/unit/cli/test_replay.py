"""The verb that plays a recorded session again; a whole way is tested beside `play`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lightning_action.cli.play import PlayCLI, what_is_played
from lightning_action.cli.replay import format_replayed, run_replay
from lightning_action.cli.support.playable import load_stage, require_playable, settings_of
from lightning_action.play.live_world import LiveWorld
from lightning_action.play.replaying import Replayed
from lightning_action.play.session_recording import SESSION_FILE, RecordedEpisode, RecordedSession, SessionRecording
from tests.support.playable_run import write_playable_run

SESSION = RecordedSession([RecordedEpisode(0, "", {}, ["a", "b"], [torch.zeros(4, 2)])], {}, "")


def test_a_folder_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which session. Name its folder first"):
        run_replay([])
    with pytest.raises(ValueError, match="which session"):
        run_replay(["--device=cpu"])
    with pytest.raises(FileNotFoundError, match="is no recorded session"):
        run_replay([str(tmp_path)])


def test_it_says_what_was_reproduced() -> None:
    assert format_replayed(SESSION, Replayed(5, 20, None, {})) == (
        "reproduced bit for bit: 5 blocks, 20 frames of 1 world"
    )
    moved = Replayed(5, 20, None, {"ckpt_path": ("a", "b"), "device": ("cuda:0", "cpu")})
    assert "  device     cuda:0   cpu\n" in format_replayed(SESSION, moved)
    assert "ckpt_path" not in format_replayed(SESSION, moved)


def test_it_names_what_differs() -> None:
    changes = {"generator": ("a" * 64, "b" * 64), "version of torch": ("2.8.0", None)}
    text = format_replayed(SESSION, Replayed(2, 8, "block 3 of world 0", changes))
    assert text.startswith("NOT THE SAME from block 3 of world 0 on; equal before: 2 blocks, 8 frames")
    assert "version of torch" in text and "2.8.0" in text and f"  {'a' * 52} ..." in text
    unknown = format_replayed(SESSION, Replayed(2, 8, "block 3 of world 0", {}))
    assert unknown.endswith("nothing that is recorded has changed: what differs is not recorded, such as a driver")
    refused = format_replayed(SESSION, Replayed(2, 8, "block 3 of world 0", {}, "prompt has 9 words"))
    assert refused.endswith("equal before: 2 blocks, 8 frames\n\n  refused now: prompt has 9 words")


def test_long_values_are_shown_where_they_differ() -> None:
    pair = (f"{'a' * 70}b{'c' * 70}", f"{'a' * 70}d{'c' * 70}")
    text = format_replayed(SESSION, Replayed(0, 0, "block 1 of world 0", {"data.paths": pair}))
    assert f"... {'a' * 20}b{'c' * 31} ..." in text and f"... {'a' * 20}d{'c' * 31} ..." in text


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config, checkpoint = write_playable_run(folder)
    cli = PlayCLI("play", None, [f"--config={config}", f"--ckpt_path={checkpoint}", "--device=cpu"])
    data = require_playable(cli.model, cli.datamodule)
    stage = load_stage(cli, data, settings_of(cli.config, "mine"), {"config": ["x"]}, lambda *told: None)
    world = LiveWorld(stage, SessionRecording(lambda: folder / "session", stage, what_is_played(cli)))
    world.reset(0)
    for _ in range(2):
        world.step(torch.tensor([0.5, 0.0]))
    world.close()
    return folder / "session"


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was printed, with one space between words."""
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("options", "place", "rows"),
    [
        (["--data.init_args.seed=9"], "the first frames", ["data.init_args.seed 0 9", "data: start of world 0 "]),
        (["--split=validation"], "the first frames", ["split test validation", "data: start of world 0 "]),
        (["--model.timestep_shift=5"], "block 1", ["model.timestep_shift 3.0 5.0"]),
        (["--model.sampling.num_inference_steps=3"], "block 1", ["model.sampling.num_inference_steps 2 3"]),
        (
            ["--model.causality.num_frame_per_block=3", "--window=6"],
            "block 1",
            ["model.causality.num_frame_per_block 1 3", "model.causality.local_attn_size 5 6"],
        ),
    ],
)
def test_settings_and_data_that_differ_are_named(
    recorded: Path, options: list[str], place: str, rows: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not run_replay([str(recorded), *options])
    lines = shown(capsys)
    assert any(line.startswith(f"NOT THE SAME from {place} of world 0 on; equal before: 0 blocks") for line in lines)
    assert [row for row in rows if not any(line.startswith(row) for line in lines)] == []


def test_what_changes_nothing_is_not_named(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = "reproduced bit for bit: 2 blocks, 8 frames of 1 world"
    assert run_replay([str(recorded), "--trainer.max_steps=7", "--fps=5"])
    lines = shown(capsys)
    assert lines[-1] == same and "CHANGED SINCE" not in lines
    assert run_replay([str(recorded), "--model.acceleration.overlap_decoding=true"])
    lines = shown(capsys)
    assert lines[-1] == same and "model.acceleration.overlap_decoding False True" in lines


def test_recordings_of_before_are_replayed(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They had causality and sampling as a text, and said less of the weights and nothing of the data."""
    folder = shutil.copytree(recorded, tmp_path / "session")
    told = json.loads((folder / SESSION_FILE).read_text())
    kept = ("generator", "action_projection", "vae", "text_encoder", "dtype", "device", "threads", "ckpt_path")
    told["provenance"] = {name: told["provenance"][name] for name in kept}
    told["provenance"] |= {"causality": "BlockCausality(1, 5, 1)", "sampling": "Sampling()"}
    for episode in told["episodes"]:
        episode.pop("start", None)
    (folder / SESSION_FILE).write_text(json.dumps(told))
    assert run_replay([str(folder)])
    lines = shown(capsys)
    assert lines[-1] == "reproduced bit for bit: 2 blocks, 8 frames of 1 world" and "CHANGED SINCE" not in lines

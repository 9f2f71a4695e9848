"""A recorded session: a LeRobot folder, and what it takes to see the same again."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_action import LeRobotDataModule
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.play import session_recording
from lightning_action.play.live_world import LiveWorld, Stage
from lightning_action.play.session_recording import (
    ROWS_FILE,
    SESSION_FILE,
    SessionRecording,
    claim_folder,
    hash_frames,
    read_session,
    require_recordable,
)
from lightning_action.recordings.lerobot import read_lerobot
from lightning_action.recordings.lerobot_writer import LeRobotWriter
from lightning_action.recordings.local_folder import LocalFolder
from tests.support.simulated_session import SimulatedSession, simulated_stage

RIGHT, DOWN = torch.tensor([0.5, 0.0]), torch.tensor([0.0, 0.25])
STAGE = simulated_stage(provenance={"generator": "abc"})


def record(folder: Path, stage: Stage = STAGE) -> list[torch.Tensor]:
    """Two worlds of 3 and 1 blocks; a third one has none."""
    world = LiveWorld(stage, SessionRecording(lambda: folder, stage, "model: {}\n"))
    world.reset(4)
    world.step(RIGHT)
    world.prompt("dark")
    world.step(DOWN)
    world.write_pending()
    world.step(RIGHT)
    world.reset(1, "a cat")
    world.step(DOWN)
    world.reset(0)
    world.close()
    return [RIGHT, DOWN, RIGHT, DOWN]


def test_a_session_is_read_as_it_was_played(tmp_path: Path) -> None:
    record(tmp_path / "session")
    session = read_session(tmp_path / "session")
    assert (session.provenance, session.config) == ({"generator": "abc"}, "model: {}\n")
    first, second = session.episodes
    assert (first.seed, first.prompts, len(first.rows)) == (4, {1: "dark"}, 3)
    assert (second.seed, second.prompt, second.prompts) == (1, "a cat", {})
    assert [rows.tolist() for rows in first.rows] == [[row.tolist()] * 4 for row in (RIGHT, DOWN, RIGHT)]
    world = SimulatedSession()
    begun = world.reset(STAGE.start(1).first_frames, "a cat", 1)
    assert second.hashes == [hash_frames(begun[0]), hash_frames(world.step_block(DOWN.expand(1, 4, -1))[0])]


def test_it_is_a_lerobot_folder_that_models_learn_from(tmp_path: Path) -> None:
    rows = record(tmp_path / "session")
    info = json.loads((tmp_path / "session" / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"]) == ("v3.0", 2, 16)
    assert info["fps"] == 16 and info["features"]["action"]["names"] == ["move_0", "move_1"]
    settings: dict[str, Any] = {"num_latents": 2, "batch_size": 1, "validation_share": 0.0, "test_share": 0.0}
    settings["size_multiple"] = 4
    settings["bad_episodes"] = "skip"  # the second one is shorter than a window
    data = LeRobotDataModule(root=str(tmp_path / "session"), num_workers=0, **settings)
    data.prepare_data()
    with pytest.warns(UserWarning, match="passed over 1 of 3 episodes"):
        data.setup("fit")
    clip, dark = data.clips("train")
    assert (clip.num_frames, dark.num_frames, dark.prompt) == (5, 7, "dark")
    assert clip.action(0, 5).tolist() == [rows[number // 4].tolist() for number in range(4)]
    assert dark.action(0, 7).tolist() == [rows[number // 4].tolist() for number in range(5, 11)]
    world = LiveWorld(STAGE)
    frames = np.concatenate([world.reset(4).frames, world.step(RIGHT).frames])[:4]
    video = ((clip.video(0, 4) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(video - frames).mean() < 4  # H.264 with half the resolution in colour
    assert not np.abs(video - frames[::-1]).mean() < 4


def test_frames_have_the_prompt_that_they_were_made_under(tmp_path: Path) -> None:
    """The frames that a world begins with have that of its first block."""
    world = LiveWorld(STAGE, SessionRecording(lambda: tmp_path / "session", STAGE, ""))
    world.reset(4)
    world.prompt("dawn")
    world.step(RIGHT)
    world.prompt("noon")
    world.prompt("dusk")
    world.step(RIGHT)
    world.step(RIGHT)
    world.prompt("never seen")
    world.reset(1, "a cat")
    world.step(DOWN)
    world.close()
    parts = read_lerobot(LocalFolder(str(tmp_path / "session"))).episodes
    # The last frame has no row, and is left out.
    assert [(part.prompt, part.num_frames) for part in parts] == [("dawn", 5), ("dusk", 7), ("a cat", 4)]


def test_a_recording_of_which_a_block_cannot_be_written_is_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = LiveWorld(STAGE, SessionRecording(partial(claim_folder, tmp_path), STAGE, ""))
    world.reset(3)
    world.step(RIGHT)
    world.write_pending()
    world.step(RIGHT)
    add_frame, calls = LeRobotWriter.add_frame, itertools.count(1)

    def failing(*given: Any) -> None:
        if next(calls) == 3:
            raise OSError("no space left on device")
        add_frame(*given)

    monkeypatch.setattr(LeRobotWriter, "add_frame", failing)
    assert world.observer is not None
    world.write_pending()
    assert world.observer is None and "a recording has ended" in caplog.text and "no space left" in caplog.text
    world.step(RIGHT)
    world.reset(2)
    world.step(RIGHT)
    world.close()
    assert not list(tmp_path.iterdir()) and "cannot be written and is discarded" in caplog.text


@pytest.mark.parametrize(
    ("alignment", "num_given", "expected"),
    [
        ("transition", 1, [[0.0, 0], [1.0, 1], [2.0, 2], [3.0, 3]]),
        ("transition", 0, [[0.5, 0], [1.5, 1], [2.5, 2]]),
        ("state", 1, [[1.0, 0], [2.0, 1], [3.0, 2], [4.0, 3]]),
        ("per_latent", 1, [[1.0, 0], [2.0, 0], [3.0, 0], [4.0, 0]]),
        ("state", 0, [[0.5, 0], [1.5, 1], [2.5, 2], [3.5, 3]]),
    ],
)
def test_rows_stand_with_their_frames(alignment: Any, num_given: int, expected: list[list[float]]) -> None:
    schema = ActionSchema([ActionPart("x", "continuous", 1, 0.0, 9.0)], alignment)
    kept = SessionRecording(Path, simulated_stage(schema=schema), "")
    frames = torch.arange(5.0)[:, None, None, None].expand(-1, 3, 2, 2) / 255
    if not num_given:
        frames = frames[1:] - 0.5 / 255
    kept._last = frames[:1] if num_given else None
    num_rows = {"transition": 3 + num_given, "state": 4, "per_latent": 1}[alignment]
    pairs = kept._pairs(torch.arange(float(num_rows))[:, None], frames[num_given:])
    assert [[float(frame[0, 0, 0]), row[0]] for frame, row in pairs] == [[round(at), row] for at, row in expected]


@pytest.mark.parametrize("num_latents", [1, 2, 3])
def test_rows_of_latent_frames_stand_with_all_of_their_frames(num_latents: int) -> None:
    """The first latent frame of a world is a single pixel frame."""
    schema = ActionSchema([ActionPart("x", "continuous", 1, 0.0, 9.0)], "per_latent")
    kept = SessionRecording(Path, simulated_stage(schema=schema), "")
    rows = torch.arange(float(num_latents))[:, None]
    begun = kept._pairs(rows, torch.rand(4 * num_latents - 3, 3, 2, 2))
    assert [row[0] for _, row in begun] == ([0.0] + [1.0] * 4 + [2.0] * 4)[: 4 * num_latents - 3]
    kept._last = torch.rand(1, 3, 2, 2)
    later = kept._pairs(rows, torch.rand(4 * num_latents, 3, 2, 2))
    assert [row[0] for _, row in later] == ([0.0] * 4 + [1.0] * 4 + [2.0] * 4)[: 4 * num_latents]


def test_sessions_of_several_servers_have_numbers_of_their_own(tmp_path: Path) -> None:
    """A session has its number from its first block on, whatever others do before it ends."""
    parent = tmp_path / "sessions"
    worlds = [
        LiveWorld(STAGE, SessionRecording(partial(claim_folder, parent), STAGE, f"number: {number}"))
        for number in (1, 2, 3)
    ]
    for world in worlds:
        world.reset(3)
        world.step(RIGHT)
        world.write_pending()
    for world in worlds:
        world.close()
    assert [read_session(parent / name).config for name in ("001", "002", "003")] == [f"number: {n}" for n in (1, 2, 3)]
    (parent / "notes").touch()
    (parent / "1500").touch()
    assert claim_folder(parent) == parent / "1501"


def test_a_number_that_somebody_takes_at_the_same_time_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def late(path: Path, *given: Any, **named: Any) -> None:
        if path.name == "001" and not path.exists():
            make(path)
        make(path, *given, **named)

    monkeypatch.setattr(Path, "mkdir", late)
    assert claim_folder(tmp_path) == tmp_path / "002"


def test_a_recording_that_fails_leaves_nothing(tmp_path: Path) -> None:
    world = LiveWorld(STAGE, SessionRecording(partial(claim_folder, tmp_path), STAGE, "\ud800"))
    world.reset(3)
    world.step(RIGHT)
    with pytest.raises(UnicodeEncodeError):
        world.close()
    assert not list(tmp_path.iterdir())


def test_a_session_without_a_block_leaves_nothing(tmp_path: Path) -> None:
    world = LiveWorld(STAGE, SessionRecording(lambda: tmp_path / "session", STAGE, ""))
    world.reset(3)
    world.close()
    assert not list(tmp_path.iterdir())


def test_worlds_without_a_block_are_not_kept(tmp_path: Path) -> None:
    kept = SessionRecording(lambda: tmp_path / "session", STAGE, "")
    world = LiveWorld(STAGE, kept)
    for seed in range(50):
        world.reset(seed)
        world.prompt("dark")
    assert not kept._episodes
    world.step(DOWN)
    world.close()
    (episode,) = read_session(tmp_path / "session").episodes
    assert (episode.seed, episode.prompts, len(episode.rows)) == (49, {0: "dark"}, 1)


def test_a_long_recording_ends_and_its_world_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_recording, "MAX_FRAMES", 8)
    world = LiveWorld(STAGE, SessionRecording(lambda: tmp_path / "kept", STAGE, ""))
    world.reset(3)
    told = [world.is_recorded for block in range(4) if world.step(RIGHT) and world.write_pending() is None]
    world.close()
    assert told == [True, False, False, False]
    record(tmp_path / "session")
    assert "has 8 frames and ends; its world goes on" in caplog.text
    (episode,) = read_session(tmp_path / "session").episodes
    assert len(episode.rows) == 2


def test_a_folder_that_is_there_is_not_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "session").mkdir()
    (tmp_path / "session" / "notes.txt").touch()
    record(tmp_path / "session")
    assert "session is there already" in caplog.text
    assert [path.name for path in tmp_path.rglob("*")] == ["session", "notes.txt"]


def test_what_a_lerobot_folder_does_not_hold_is_refused_beforehand() -> None:
    require_recordable(STAGE)
    with pytest.raises(ValueError, match="this model takes 3: leave --record out"):
        require_recordable(simulated_stage(schema=ActionSchema(rows_per_frame=3)))
    with pytest.raises(ValueError, match="a whole number of frames of a second, got 12.5"):
        require_recordable(simulated_stage(fps=12.5))


def test_what_is_no_recorded_session_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no recorded session .meta/play/session.json is missing."):
        read_session(tmp_path)
    folder = tmp_path / "session"
    record(folder)
    told = json.loads((folder / SESSION_FILE).read_text())
    changes: list[dict[str, Any]] = [
        {"format": 2},
        {"episodes": []},
        {"episodes": [{}]},
        {"episodes": told["episodes"] * 2},
        {"episodes": [{**told["episodes"][0], "blocks": [4, 4]}]},
        {"episodes": [{**told["episodes"][0], "hashes": []}]},
        {"episodes": None},
        {"provenance": 3},
    ]
    for change in changes:
        (folder / SESSION_FILE).write_text(json.dumps({**told, **change}))
        with pytest.raises(ValueError, match="is no whole recorded session"):
            read_session(folder)
    (folder / SESSION_FILE).write_text(json.dumps(told))
    (folder / ROWS_FILE).write_bytes((folder / ROWS_FILE).read_bytes()[:-3])
    with pytest.raises(ValueError, match="is no whole recorded session"):
        read_session(folder)

"""One command records an environment as a LeRobot folder, the same whenever it is given."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lightning_action import LeRobotDataModule
from lightning_action.cli.record import run_record, split_env_kwargs
from lightning_action.cli.support.mistakes import UsageError
from lightning_action.seeding import mix_seed
from tests.support.dot_world import DotWorld

ENV = "tests.support.dot_world:DotWorld"


def record(out: Path, *more: str, env: str = ENV, episodes: int = 2, steps: int = 5) -> list[dict[str, Any]]:
    """Record, and read the rows."""
    run_record([f"--env={env}", f"--output={out}", f"--episodes={episodes}", f"--steps={steps}", *more])
    return rows(out)


def rows(out: Path) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = pq.read_table(out / "data/chunk-000/file-000.parquet").to_pylist()
    return table


def info(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "meta/info.json").read_text())
    return content


def frames(out: Path) -> np.ndarray:
    with av.open(str(next(out.rglob("*.mp4")))) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_row_leads_from_its_frame_to_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Replayed from its seed with the recorded actions, the environment shows the recorded states and frames."""
    recorded = record(tmp_path / "dots", "--seed=3", "--prompt=a dot", "--policy=random")
    pictures, env = frames(tmp_path / "dots"), DotWorld()
    assert len(recorded) == len(pictures) == 10
    for episode in range(2):
        observation, _ = env.reset(seed=mix_seed(3, episode) % 2**31)
        for index in range(5 * episode, 5 * episode + 5):
            assert recorded[index]["observation.state"] == observation.tolist()
            # Lossy, and of colours there is one for each four pixels.
            assert np.abs(env.render().astype(float) - pictures[index]).mean() < 4
            action = np.array(recorded[index]["action"], np.float32)
            observation, reward, *_ = env.step(action)
            assert recorded[index]["next.reward"] == np.float32(reward)
            assert (np.abs(action) <= 2).all() and recorded[index]["next.done"] is False
    assert len({tuple(row["action"]) for row in recorded}) == 10
    told = capsys.readouterr()
    assert "2 episodes, 10 frames of 32 x 48, 10 a second, with observation.state [2], action [2]" in told.out
    assert "recording: 100%" in told.err
    assert pq.read_table(tmp_path / "dots/meta/tasks.parquet").to_pylist() == [{"task_index": 0, "task": "a dot"}]


def test_the_same_command_writes_the_same_bytes(tmp_path: Path) -> None:
    """Those of the videos: test_lerobot_writer.py."""
    record(tmp_path / "one", "--seed=1")
    record(tmp_path / "two", "--seed=1")
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 7
    files = [name for name in files if name.suffix != ".mp4"]
    assert [
        name for name in files if (tmp_path / "one" / name).read_bytes() != (tmp_path / "two" / name).read_bytes()
    ] == []
    assert record(tmp_path / "three", "--seed=2") != rows(tmp_path / "one")


def test_an_episode_follows_from_the_seed_and_its_number(tmp_path: Path) -> None:
    """Whatever comes before it, and however many there are."""
    few, more = record(tmp_path / "few"), record(tmp_path / "more", episodes=3, steps=8)
    for episode in range(2):
        ours, longer = ([row for row in each if row["episode_index"] == episode] for each in (few, more))
        for key in ("action", "observation.state"):
            assert [row[key] for row in ours] == [row[key] for row in longer[:5]]


def test_actions_are_held_for_some_steps(tmp_path: Path) -> None:
    actions = [row["action"] for row in record(tmp_path / "dots", episodes=1, steps=200)]
    changes = [index for index in range(1, 200) if actions[index] != actions[index - 1]]
    lengths = np.diff(changes)
    assert lengths.min() == 2 and lengths.max() == 8
    assert np.abs(actions).max() > 1.8


@pytest.mark.parametrize(
    ("kind", "dtype", "width", "values"),
    [
        ("box", "float32", 2, None),
        ("discrete", "int64", 1, {0, 1, 2, 3, 4}),
        ("multi_binary", "int64", 4, {0, 1}),
        ("multi_discrete", "int64", 2, {0, 1, 2}),
    ],
)
def test_actions_of_every_kind(kind: str, dtype: str, width: int, values: set[int] | None, tmp_path: Path) -> None:
    recorded = record(tmp_path / "dots", f"--env_kwargs.actions={kind}", episodes=1, steps=150)
    feature = info(tmp_path / "dots")["features"]["action"]
    assert (feature["dtype"], feature["shape"]) == (dtype, [width]) and len(feature["names"]) == width
    if values is not None:
        assert {int(value) for row in recorded for value in np.ravel(row["action"])} == values


def test_policies_of_a_user(tmp_path: Path) -> None:
    right = record(tmp_path / "right", "--policy=tests.support.dot_world:to_the_right")
    assert {row["action"][0] for row in right} == {1.0} and len({row["action"][1] for row in right}) == 10
    # An object for each episode: the second one begins anew.
    turns = record(tmp_path / "turns", "--policy=tests.support.dot_world:Alternating")
    assert [row["action"][0] for row in turns] == [1, -1, 1, -1, 1] * 2
    unbounded = ("--env_kwargs.actions=unbounded", "--policy=tests.support.dot_world:to_the_right")
    assert len(record(tmp_path / "unbounded", *unbounded)) == 10


def test_episodes_end_where_the_environment_ends_them(tmp_path: Path) -> None:
    recorded = record(tmp_path / "dots", "--env_kwargs.end_after", "3")
    assert [row["frame_index"] for row in recorded] == [0, 1, 2] * 2
    assert [row["next.done"] for row in recorded] == [False, False, True] * 2


def test_frames_are_resized_and_timed_as_asked(tmp_path: Path) -> None:
    record(tmp_path / "dots", "--frame_size", "16", "64", "--fps=25")
    assert frames(tmp_path / "dots").shape == (10, 16, 64, 3) and info(tmp_path / "dots")["fps"] == 25


def test_the_state_is_what_is_named(tmp_path: Path) -> None:
    record(tmp_path / "dots", "--state", "num_steps", "place")
    assert info(tmp_path / "dots")["features"]["observation.state"]["names"] == ["num_steps", "place_0", "place_1"]
    record(tmp_path / "pixels", "--env_kwargs.pixels=true")
    assert "observation.state" not in info(tmp_path / "pixels")["features"]


def test_where_it_comes_from_is_kept(tmp_path: Path) -> None:
    record(tmp_path / "dots", "--env_kwargs.end_after=4")
    kept = json.loads((tmp_path / "dots/meta/recording.json").read_text())
    assert kept["env"] == ENV and kept["env_kwargs"] == {"end_after": 4} and kept["policy"] == "hold"
    part = {"name": "action", "kind": "continuous", "size": 2, "low": [-2.0, -2.0], "high": [2.0, 2.0]}
    assert kept["action_parts"] == [part]


def test_a_recording_is_replaced_only_when_asked(tmp_path: Path) -> None:
    first = record(tmp_path / "dots")
    with pytest.raises(FileExistsError, match="is there already"):
        record(tmp_path / "dots", "--seed=1")
    assert rows(tmp_path / "dots") == first
    assert record(tmp_path / "dots", "--seed=1", "--overwrite") != first


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (("--env=NoSuch-v0",), ValueError, "cannot make the environment 'NoSuch-v0'"),
        (("--env=tests.support.dot_world:Nothing",), ValueError, "no attribute 'Nothing'"),
        (("--env=no_such_module:make",), ImportError, "no_such_module"),
        (("--env=tests.support.dot_world:make_nothing",), ValueError, "must return a gymnasium.Env, got object"),
        (("--env_kwargs.render_mode=ansi",), ValueError, "must have render_mode 'rgb_array', .* got 'ansi'"),
        (("--env_kwargs.colour=red",), ValueError, r"does not take these arguments \(colour\): got an unexpected"),
        (("--env_kwargs.size=[33, 48]",), ValueError, "frames of observation.image are 33 x 48, expected even sides"),
        (("--env_kwargs.actions=unbounded",), ValueError, "has no bounds: wrap the environment"),
        (("--env_kwargs.actions=dict",), ValueError, "is none of Box, Discrete, MultiDiscrete and MultiBinary"),
        (("--env_kwargs.actions=dict", "--policy=tests.support.dot_world:to_the_right"), ValueError, "is none of Box"),
        (("--policy=expert",), ValueError, "the policy is random, hold, or module:name, got 'expert'"),
        (("--state", "speed"), ValueError, "there is no 'speed' in observation and info, which have place"),
        (("--state", "note"), ValueError, "'note' is no numbers"),
        (("--episodes=0",), UsageError, "--episodes: invalid whole number above 0 value: '0'"),
        (("--polcy=hold",), UsageError, "there is no option --polcy: did you mean '--policy'"),
        (("--env_kwargs.size",), UsageError, "--env_kwargs.size has no value"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(
    more: tuple[str, ...], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        record(tmp_path / "dots", *more)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r"need gymnasium: pip install 'lightning_action\[env\]'"):
        record(tmp_path / "dots")


def test_a_policy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"an action of Discrete\(5, start=1\) has shape \[\], got numbers \[0, "):
        record(tmp_path / "dots", "--env_kwargs.actions=discrete", "--policy=tests.support.dot_world:to_the_right")
    assert list(tmp_path.iterdir()) == []


def test_what_is_recorded_can_be_trained_on(tmp_path: Path) -> None:
    recorded = record(tmp_path / "dots", "--prompt=a dot", "--env_kwargs.actions=discrete", episodes=4, steps=40)
    data = LeRobotDataModule(root=str(tmp_path / "dots"), num_latents=3, batch_size=5)
    data.setup("fit")
    assert data.action_schema is not None
    assert [(part.kind, part.size) for part in data.action_schema.parts] == [("discrete", 5)]
    pictures = torch.from_numpy(frames(tmp_path / "dots")).permute(0, 3, 1, 2) / 127.5 - 1
    for clip in data.clips("train"):
        (first,) = (row["index"] for row in recorded if row["frame_index"] == 0 and clip.name == episode_of(row))
        torch.testing.assert_close(clip.video(3, 9), pictures[first + 3 : first + 12], atol=1e-6, rtol=0)
        expected = [[row["action"]] for row in recorded[first + 3 : first + 11]]
        assert clip.action(3, 9).tolist() == expected and clip.prompt == "a dot"


def episode_of(row: dict[str, Any]) -> str:
    return f"episode {row['episode_index']}"


@pytest.mark.parametrize("option", ["--output", "--out"])
def test_the_recording_has_an_older_option_too(option: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=str(tmp_path)):
        run_record([f"--env={ENV}", f"{option}={tmp_path}"])


def test_arguments_of_the_environment_are_read_as_yaml() -> None:
    args = ["--seed=1", "--env_kwargs.size=[8, 9]", "--env_kwargs.mode", "state", "--env_kwargs.k=-2", "--output", "x"]
    assert split_env_kwargs(args) == (["--seed=1", "--output", "x"], {"size": [8, 9], "mode": "state", "k": -2})


def test_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_record(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--env_kwargs.NAME VALUE" in shown and "random actions that are held for 2 to 8 steps" in shown

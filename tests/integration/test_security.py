"""Every row of docs/security.md: what a stranger gives is read, and does not run."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from torch.distributed.checkpoint.api import CheckpointException
from torch.utils.data import DataLoader, TensorDataset
from websockets.exceptions import InvalidStatus

from lightning_action import ActionCausalInferencePipeline, ActionSchema, EnvironmentDataModule, load_run
from lightning_action.atomic import write_json
from lightning_action.callbacks import EMA
from lightning_action.checkpoints.adapter import read_adapter
from lightning_action.cli.check import run_check
from lightning_action.cli.export import run_export
from lightning_action.cli.play import run_play
from lightning_action.cli.replay import run_replay
from lightning_action.cli.support.trainer_cli import require_strategy_for
from lightning_action.cli.trainer_verbs import run
from lightning_action.data.action_file import read_actions
from lightning_action.data.lerobot import LeRobotDataModule
from lightning_action.data.video_folder import VideoFolderDataModule
from lightning_action.distributed.fsdp2 import FSDP2Strategy
from lightning_action.play.action_map import read_action_map
from lightning_action.play.session_recording import CONFIG_FILE, ROWS_FILE, SESSION_FILE, read_session
from lightning_action.recordings.local_folder import LocalFolder
from lightning_action.run import load_averages
from lightning_action.weights.generator_file import read_generator
from lightning_action.weights.low_rank import read_low_rank
from lightning_action.weights.safetensors_files import write_safetensors
from lightning_action.weights.tensor_files import read_tensors
from tests.support.live_server import next_notice, serving
from tests.support.malice import POISONS, Touches, poison_tensors
from tests.support.simulated_session import simulated_stage
from tests.support.two_parts import TwoParts
from tests.support.written_run import CONFIG, as_folder, write_run
from tests.support.written_videos import lerobot_copy

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
# The rows of the page, by how they begin.
ROWS = [
    "a file of weights",
    "a folder of shards",
    "an index of shards",
    "an address",
    "a configuration",
    "a configuration",
    "a configuration",
    "the name of an environment",
    "a table of actions",
    "a recording",
    "a store of latents",
    "a picture",
    "videos of another program",
    "a report",
    "a recorded session",
    "a map of actions",
    "an address of a page",
    "a folder with a text encoder",
]
Poison = Callable[[Path, Path], None]


def test_the_page_has_the_rows_that_are_tested() -> None:
    rows = re.findall(r"^\| (?!what one|---)(.*?) \|", PAGE.read_text(), re.MULTILINE)
    assert [row[: len(begins)] for row, begins in zip(rows, ROWS, strict=True)] == ROWS


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "pth", "bin", "safetensors"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_file_of_weights(tmp_path: Path, marker: Path, suffix: str, inside: bool) -> None:
    path = tmp_path / f"x.{suffix}"
    content: Any = {"generator": {"head.weight": torch.zeros(2), "x": Touches(marker)}} if inside else Touches(marker)
    writers: list[Callable[[], Any]] = [
        lambda: torch.save(content, path),
        lambda: torch.save(content, path, _use_new_zipfile_serialization=False),
        lambda: path.write_bytes(pickle.dumps(content)),
    ]
    config = write_run(tmp_path)[0]
    for write in writers:
        write()
        for read in (read_tensors, read_generator, read_low_rank, read_adapter):
            with pytest.raises(ValueError, match=str(path)):
                read(path)
        with pytest.raises(ValueError, match=str(path)):
            load_run(config, path)
        with pytest.raises(ValueError, match=str(path)):
            ActionCausalInferencePipeline.from_checkpoint(path)
        assert not marker.exists()
    pickle.loads(pickle.dumps(content))
    assert marker.exists(), "the control: without care it runs"


@pytest.mark.parametrize("poison", POISONS)
def test_a_folder_of_shards(tmp_path: Path, marker: Path, poison: Poison) -> None:
    config, path = write_run(tmp_path)
    folder = as_folder(path)
    poison(folder, marker)
    with pytest.raises(ValueError, match=str(folder)):
        load_run(config, folder)
    with pytest.raises(ValueError, match=str(folder)):
        ActionCausalInferencePipeline.from_checkpoint(folder, config=config)
    with pytest.raises(ValueError, match=str(folder)):
        READERS["export"](config, folder)
    assert not marker.exists() and not (tmp_path / "a.safetensors").exists()


def trainer(folder: Path, steps: int) -> L.Trainer:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=FSDP2Strategy(),
        max_steps=steps,
        default_root_dir=folder,
        callbacks=[EMA()],
        **quiet,
    )


@pytest.mark.parametrize(
    "poison",
    [
        *POISONS,
        lambda folder, marker: poison_tensors(folder, marker, "optimizer_0.param_groups"),
        lambda folder, marker: poison_tensors(folder, marker, "optimizer_1.ema"),
        lambda folder, marker: torch.save(Touches(marker), folder / "meta.pt"),
    ],
)
def test_a_folder_of_shards_that_a_sharded_fit_goes_on_from(tmp_path: Path, marker: Path, poison: Poison) -> None:
    batches = DataLoader(TensorDataset(torch.arange(6.0).view(2, 3) / 6), batch_size=2)
    first, folder = trainer(tmp_path, 1), tmp_path / "a.ckpt"
    first.fit(TwoParts(), batches)
    first.save_checkpoint(folder)
    poison(folder, marker)
    with pytest.raises((ValueError, CheckpointException)):
        trainer(tmp_path, 2).fit(TwoParts(), batches, ckpt_path=folder)
    assert not marker.exists()


def test_averages_in_a_folder_of_shards(tmp_path: Path, marker: Path) -> None:
    config, path = write_run(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    name = "generator.head.head.bias"
    torch.save({**checkpoint, "ema": {"names": [name], "group": "state_dict"}}, path)
    module, folder = load_run(config, path), as_folder(path)
    poison_tensors(folder, marker)
    with pytest.raises(ValueError, match=str(folder)):
        load_averages(module, folder)
    assert not marker.exists()


@pytest.mark.parametrize("strategy", ["auto", "fsdp", "ddp", "lightning.pytorch.strategies.ModelParallelStrategy"])
def test_a_folder_of_shards_that_lightning_would_read_itself(tmp_path: Path, strategy: str) -> None:
    with pytest.raises(ValueError, match="is a folder of shards: stack configs/fsdp.yaml"):
        require_strategy_for(str(tmp_path), strategy)


def fit_like(verb: str) -> Callable[[Path, Path], Any]:
    return lambda config, path: run([verb, f"--config={config}", f"--ckpt_path={path}"])


def recorded(config: Path) -> Path:
    """A session that was recorded with a configuration."""
    folder = config.parent / "session"
    (folder / "meta" / "play").mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / ROWS_FILE, {"000000": torch.zeros(4, 2)}, {})
    (folder / CONFIG_FILE).write_text(config.read_text())
    world = {"seed": 0, "prompt": "", "prompts": {}, "hashes": ["", ""], "start": None, "blocks": [4]}
    write_json(folder / SESSION_FILE, {"format": 1, "provenance": {}, "episodes": [world]})
    return folder


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "play": lambda config, path: run_play([f"--config={config}", f"--ckpt_path={path}", "--port=0"]),
    "replay": lambda config, path: run_replay([str(recorded(config)), f"--ckpt_path={path}"]),
    **{verb: fit_like(verb) for verb in ("fit", "validate", "test", "predict")},
    "check": lambda config, path: run_check([f"--config={config}"]),
    "export": lambda config, path: run_export(
        [f"--config={config}", f"--ckpt_path={path}", "--format=wan", f"--output={config.parent / 'a.safetensors'}"]
    ),
    "load_run": load_run,
    "from_checkpoint": lambda config, path: ActionCausalInferencePipeline.from_checkpoint(path, config=config),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_configuration(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    config, path = write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "module_of_a_stranger.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    command = {"class_path": "os.system", "init_args": {"command": f"touch {marker}"}}
    for vae in (command, "module_of_a_stranger.VAE", {"class_path": "torch.hub.load", "init_args": {"model": "x"}}):
        config.write_text(yaml.safe_dump({**CONFIG, "model": {**CONFIG["model"], "vae": vae}}))
        with pytest.raises((ValueError, SystemExit)):
            READERS[reader](config, path)
        assert not marker.exists()
    config.write_text(yaml.safe_dump(CONFIG) + f"more: !!python/object/apply:os.system ['touch {marker}']\n")
    with pytest.raises((ValueError, SystemExit)):
        READERS[reader](config, path)
    assert not marker.exists() and not (tmp_path / "a.safetensors").exists()
    subprocess.run(f"touch {marker}", shell=True, check=True)
    assert marker.exists(), "the control: the command does it"


@pytest.mark.parametrize("verb", ["fit", "check"])
def test_a_configuration_of_data_and_callbacks(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    config, path = write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = {"class_path": "os.system", "init_args": {"command": f"touch {marker}"}}
    call = {"class_path": "torch.utils.cpp_extension.load", "init_args": {"name": "x", "sources": ["x"]}}
    world = {"class_path": "lightning_action.data.SpriteDataModule", "init_args": {"world": command}}
    callback = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": call}}
    odd: list[dict[str, Any]] = [{"data": command}, {"data": world}, {"trainer": {"callbacks": [callback]}}]
    odd += [{"trainer": {key: command}} for key in ("callbacks", "logger", "strategy", "plugins", "profiler")]
    for sections in odd:
        config.write_text(yaml.safe_dump({**CONFIG, **sections}))
        with pytest.raises((ValueError, SystemExit)):
            READERS[verb](config, path)
        assert not marker.exists()


@pytest.mark.parametrize("verb", [run_check, lambda args: run(["fit", *args])], ids=["check", "fit"])
@pytest.mark.parametrize("argument", ["env", "policy", "position"])
def test_the_name_of_an_environment(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, argument: str, verb: Callable[[list[str]], Any]
) -> None:
    config, _ = write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    stranger = f"stranger_{tmp_path.name}"
    (tmp_path / f"{stranger}.py").write_text(f"open({str(marker)!r}, 'w').close()\nmake = 0\n")
    (tmp_path / "hubconf.py").write_text(f"def make(): open({str(marker)!r}, 'w').close()\n")
    fine = {"env": "tests.support.dot_world:DotWorld", "locator": "tests.support.dot_world.locate"}
    hub = {"env": "torch.hub:load", "env_kwargs": {"repo_or_dir": str(tmp_path), "model": "make", "source": "local"}}
    for odd in ({argument: f"{stranger}:make"}, {argument: "torch.hub:load"}, hub, {"env": f"{stranger}:X-v0"}):
        data = {"class_path": "lightning_action.EnvironmentDataModule", "init_args": {**fine, **odd}}
        config.write_text(yaml.safe_dump({**CONFIG, "data": data}))
        with pytest.raises((ValueError, SystemExit)):
            verb([f"--config={config}", "--allow=tests"])
        assert not marker.exists()
    with pytest.raises((ValueError, TypeError)):
        EnvironmentDataModule(**{**fine, argument: f"{stranger}:make"}).dataset("test")[0]  # type: ignore[arg-type]
    assert marker.exists(), "the control: in Python it is imported"


def test_a_table_of_actions(tmp_path: Path, marker: Path) -> None:
    objects = np.array([[Touches(marker)]], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", actions=objects)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Touches(marker)))
    for name in ("a.npy", "a.npz", "b.npy"):
        with pytest.raises((ValueError, OSError)):
            read_actions(tmp_path / name)
        assert not marker.exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert marker.exists(), "the control: without care it runs"


@pytest.mark.parametrize("kind", ["lerobot", "folder", "store"])
def test_data_that_points_outside_its_folder(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"")
    if kind == "lerobot":
        root = lerobot_copy("v21", tmp_path)
        info = json.loads((root / "meta/info.json").read_text())
        (root / "meta/info.json").write_text(json.dumps({**info, "video_path": "../secret.mp4"}))
        data: Any = LeRobotDataModule(str(root), num_latents=3)
    else:
        (tmp_path / "data").mkdir()
        (tmp_path / "data/files.csv").write_text("video\n../secret.mp4\n")
        data = VideoFolderDataModule(str(tmp_path / "data"), manifest="files.csv")
    if kind == "store":
        with pytest.raises(ValueError, match="leads out of"):
            LocalFolder(str(tmp_path / "data")).path("../secret.mp4")
        return
    with pytest.raises(ValueError, match="leads out of"):
        data.setup("fit")


def test_a_recorded_session(tmp_path: Path, marker: Path) -> None:
    """Its configuration is read as any other, above; its rows are no pickle."""
    folder = recorded(write_run(tmp_path)[0])
    assert len(read_session(folder).episodes) == 1
    (folder / ROWS_FILE).write_bytes(pickle.dumps(Touches(marker)))
    with pytest.raises(ValueError, match="is no whole recorded session"):
        read_session(folder)
    assert not marker.exists()


def test_a_map_of_actions(tmp_path: Path, marker: Path) -> None:
    (tmp_path / "map.yaml").write_text(f"controls: !!python/object/apply:os.system ['touch {marker}']\n")
    with pytest.raises(ValueError, match="map.yaml is no action map"):
        read_action_map(tmp_path / "map.yaml", ActionSchema())
    assert not marker.exists()


def test_an_address_of_a_page() -> None:
    """Forms and sizes of messages, tokens and origins: tests/unit/play."""
    with serving(simulated_stage(), token="a-secret-of-mine", max_sessions=1) as running:
        for headers in ({}, {"Authorization": "Bearer guessed"}, {"Origin": "http://evil.example"}):
            with pytest.raises(InvalidStatus, match="HTTP 403"), running.connect(**headers):
                pass
        with running.connect(Authorization="Bearer a-secret-of-mine") as client:
            assert next_notice(client, "hello")["max_message"] == 4096

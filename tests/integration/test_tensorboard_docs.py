"""What docs/tensorboard.md promises: its runs can be made, and its table of log keys is what they hold."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.request import urlopen

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lightning_action import callbacks
from lightning_action.callbacks.tensorboard_layout import DEFAULT_LAYOUT
from lightning_action.cli import trainer_verbs
from lightning_action.data.sprite_data import SpriteDataset
from lightning_action.data.sprite_world import MovingSpriteWorld
from tests.support.short_fits import quiet_trainer

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tensorboard.md"
DEMO = ROOT / "configs" / "demo.yaml"
# What callbacks log; all other keys are those of modules.
FAMILIES = ("action", "sensitivity", "loss", "grad", "rollout", "drift", "throughput", "phase")
STEPS = 6
TINY = [
    "--model.pretrained=null",
    "--model.generator.init_args.dim=24",
    "--model.generator.init_args.ffn_dim=40",
    "--model.generator.init_args.num_layers=2",
    "--model.action_projection.init_args.num_layers=2",
    "--model.sampling.num_inference_steps=1",
    "--data.init_args.num_latents=5",
    "--data.init_args.batch_size=3",
    "--data.init_args.train_size=15",
    "--data.init_args.validation_size=2",
    "--data.init_args.predict_size=2",
    f"--trainer.max_steps={STEPS}",
    f"--trainer.val_check_interval={STEPS // 3}",
    "--trainer.log_every_n_steps=1",
]


def documented_keys() -> dict[str, str]:
    """Every key of the page's table, with the callback that logs it."""
    rows = re.findall(r"^\| (`.+?`) \|.*\| (\w+) \|$", PAGE.read_text(), re.MULTILINE)
    return {key: callback for keys, callback in rows for key in re.findall(r"`([^`]+)`", keys)}


def matches(key: str, tag: str) -> bool:
    """Whether a documented key stands for a tag: `<...>` is a part without a slash."""
    parts = re.split(r"(<\w+>)", key)
    return bool(re.fullmatch("".join("[^/]+" if part[:1] == "<" else re.escape(part) for part in parts), tag))


def callbacks_at_every_step(file: Path, unfreeze_at_step: int) -> str:
    """A configuration with the demo's callbacks, and the argument that stacks it."""
    listed = yaml.safe_load(DEMO.read_text())["trainer"]["callbacks"]
    for callback in listed:
        signature = inspect.signature(getattr(callbacks, callback["class_path"].rpartition(".")[2]))
        changes = {"every_n_steps": 1, "unfreeze_at_step": unfreeze_at_step}
        small = {name: value for name, value in changes.items() if name in signature.parameters}
        callback["init_args"] = callback.get("init_args", {}) | small
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": listed}}))
    return f"--config={file}"


def tags_below(folder: Path) -> set[str]:
    """Tags of all event files below a folder."""
    tags = [EventAccumulator(str(file)).Reload().Tags() for file in folder.rglob("events.*")]
    return {tag for of_file in tags for kind in ("scalars", "images", "histograms") for tag in of_file[kind]}


def values(folder: Path, tag: str) -> list[float]:
    (file,) = folder.rglob("events.*")
    return [event.value for event in EventAccumulator(str(file)).Reload().Scalars(tag)]


class Measured(BoringModel):
    """Says what a module may say besides: operations of a batch, and the loss by noise level in validation."""

    flops_per_batch = 1e6

    def validation_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        return {"loss_per_frame": torch.rand(2, 3), "timestep": 1000 * torch.rand(2, 3)}


@pytest.fixture(scope="module")
def make_screenshots() -> Iterator[ModuleType]:
    """The script. Its classes are named on the command line, so that they must be found under the script's name."""
    specification = importlib.util.spec_from_file_location("make_screenshots", ROOT / "docs" / "make_screenshots.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["make_screenshots"] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules["make_screenshots"]


@pytest.fixture(scope="module")
def runs(make_screenshots: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs of the script, small, and of a prediction with the healthy one."""
    folder = tmp_path_factory.mktemp("runs")
    for name, run in make_screenshots.RUNS.items():
        small = callbacks_at_every_step(folder / f"{name}.yaml", 1 if run.freezes_backbone_first else 0)
        # What validations log is looked for in the healthy run alone.
        quiet = [] if name == "healthy" else ["--trainer.limit_val_batches=0"]
        make_screenshots.fit(name, folder, [small, *TINY, *quiet])
    small = callbacks_at_every_step(folder / "predict.yaml", 0)
    root = f"--trainer.default_root_dir={folder / 'prediction'}"
    checkpoint = f"--ckpt_path={folder / 'healthy' / 'checkpoints' / 'last.ckpt'}"
    trainer_verbs.run(["predict", f"--config={DEMO}", small, *TINY, root, checkpoint])
    return folder


def test_the_runs_have_the_faults_of_their_names(runs: Path, make_screenshots: ModuleType) -> None:
    norms = {name: values(runs / name, "action/modulation_norm/all") for name in make_screenshots.RUNS}
    gradients = {name: values(runs / name, "action/projection_grad_norm") for name in make_screenshots.RUNS}
    assert all(norms[name][0] == 0 for name in ("healthy", "exploding", "mixed_up"))
    assert 0 < norms["healthy"][-1] < 0.01 * norms["exploding"][-1]
    assert all(norm > 0 for norm in norms["detached"]) and not any(gradients["detached"])
    # Not from the first step on: the head of an untrained generator is zero and lets nothing through.
    assert all(gradients[name][-1] > 0 for name in ("healthy", "exploding", "mixed_up"))


def test_mixed_up_sprites_move_as_others_were_told(make_screenshots: ModuleType) -> None:
    true, mixed_up = (
        SpriteDataset(world(), "train", 0, 5, 9).batch(range(3))
        for world in (MovingSpriteWorld, make_screenshots.MixedUpWorld)
    )
    assert torch.equal(true["action"], mixed_up["action"])
    assert torch.equal(true["position"][:, 0], mixed_up["position"][:, 0])
    assert not torch.equal(true["position"][:, 1:], mixed_up["position"][:, 1:])


def test_every_documented_key_is_logged_and_every_logged_one_documented(runs: Path, tmp_path: Path) -> None:
    measures = callbacks.ThroughputMonitor(peak_flops=1e9), callbacks.NoiseLevelLoss()
    options = {"max_steps": 2, "log_every_n_steps": 1, "limit_val_batches": 1, "val_check_interval": 1}
    with pytest.warns(UserWarning, match="NoiseLevelLoss logs nothing"):
        quiet_trainer(tmp_path, *measures, logger=TensorBoardLogger(tmp_path), **options).fit(Measured())
    tags = tags_below(runs / "healthy") | tags_below(runs / "prediction") | tags_below(tmp_path)
    keys = documented_keys()
    assert len(keys) > 40
    assert [key for key in keys if not any(matches(key, tag) for tag in tags)] == []
    logged_by_callbacks = {tag for tag in tags if tag.split("/")[0] in FAMILIES and "/" in tag}
    assert [tag for tag in logged_by_callbacks if not any(matches(key, tag) for key in keys)] == []


def test_every_documented_callback_exists() -> None:
    assert all(issubclass(getattr(callbacks, name), Callback) for name in documented_keys().values())


def test_tensorboard_serves_the_groups(runs: Path, make_screenshots: ModuleType) -> None:
    path = "data/plugin/custom_scalars/layout"
    with make_screenshots.tensorboard(runs / "healthy") as address, urlopen(f"{address}{path}") as answer:
        layout = json.load(answer)
    assert [group["title"] for group in layout["category"]] == list(DEFAULT_LAYOUT)


def test_page_shows_the_pictures_that_the_script_makes(make_screenshots: ModuleType) -> None:
    shown = re.findall(r"\]\((tensorboard_\w+\.png)\)", PAGE.read_text())
    assert sorted(shown) == sorted(f"tensorboard_{name}.png" for name in make_screenshots.SHOTS)
    for name, shot in make_screenshots.SHOTS.items():
        left, top, right, bottom = shot.box
        with Image.open(PAGE.parent / f"tensorboard_{name}.png") as picture:
            assert picture.size == (right - left, bottom - top)
        assert shot.run in make_screenshots.RUNS


def test_cut_writes_the_rectangle(make_screenshots: ModuleType, tmp_path: Path) -> None:
    page = Image.new("RGB", (13, 17))
    page.putpixel((3, 5), (255, 255, 255))
    page.save(tmp_path / "page.png")
    make_screenshots.cut((tmp_path / "page.png").read_bytes(), (3, 5, 10, 16), tmp_path / "rectangle.png")
    with Image.open(tmp_path / "rectangle.png") as rectangle:
        assert rectangle.size == (7, 11)
        assert rectangle.getbbox() == (0, 0, 1, 1)


def test_without_a_browser_it_says_so(
    make_screenshots: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="expected chromedriver and Chromium on the PATH, found None and None"):
        make_screenshots.photograph("http://localhost/", "images", 7, 11)


def test_a_server_that_does_not_start_is_an_error(make_screenshots: ModuleType) -> None:
    with (
        pytest.raises(RuntimeError, match="expected 'port' in the output of .* and it ended without"),
        make_screenshots.serve([sys.executable, "-c", "print('no')"], "port"),
    ):
        pass

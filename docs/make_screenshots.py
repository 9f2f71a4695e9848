"""Makes the pictures of docs/tensorboard.md, once `make demo` has made its backbone: python docs/make_screenshots.py.

Fits the demo for some hundred steps, once as it is and once for each fault, and photographs what TensorBoard shows of
them in a headless Chromium, which has to be installed. It takes about eight minutes on two cores.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import yaml
from PIL import Image
from torch import Tensor

from lightning_action import ActionModulationProjection, command_line
from lightning_action.data import MovingSpriteWorld
from lightning_action.data.sprite_world import WorldStart

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "configs" / "demo.yaml"
# Enough for charts, and a third of the bytes.
NUM_COLORS = 256
CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # Milliseconds of a clock that stands still while the page waits for data, so that all charts are drawn.
    "--virtual-time-budget=20000",
)


class DetachedProjection(ActionModulationProjection):
    """Its modulation acts, and no gradient comes back."""

    def forward(self, action: Tensor, present: Tensor | None = None) -> Tensor:
        return super().forward(action, present).detach()


class MixedUpWorld(MovingSpriteWorld):
    """Every sprite moves as another one of the batch was told to."""

    def simulate(self, start: WorldStart, actions: Tensor) -> Tensor:
        return super().simulate(start, actions.roll(1, dims=0))


def _path(part: type) -> str:
    return f"{part.__module__}.{part.__qualname__}"


class Run(NamedTuple):
    """A fit of the demo: its steps, and what differs from `configs/demo.yaml`."""

    steps: int
    settings: tuple[str, ...] = ()
    # Without a projection that learns, nothing would be left to train.
    freezes_backbone_first: bool = True


RUNS = {
    "healthy": Run(400),
    "detached": Run(
        200,
        (
            f"--model.action_projection.class_path={_path(DetachedProjection)}",
            "--model.action_projection.init_args.zero_init=false",
        ),
        freezes_backbone_first=False,
    ),
    "exploding": Run(200, ("--model.action_projection.init_args.action_modulation_scale=1000.0",)),
    "mixed_up": Run(200, (f"--data.init_args.world.class_path={_path(MixedUpWorld)}",)),
}


class Shot(NamedTuple):
    """A rectangle of TensorBoard's page, in pixels: `left`, `top`, `right`, `bottom`."""

    run: str
    page: str
    box: tuple[int, int, int, int]


CHARTS = "custom_scalars&_smoothingWeight=0"
FIRST_GROUP = (0, 0, 1460, 760)
SHOTS = {
    "healthy": Shot("healthy", CHARTS, FIRST_GROUP),
    "healthy_where": Shot("healthy", CHARTS, (358, 762, 1460, 1446)),
    "rollouts": Shot("healthy", "images", FIRST_GROUP),
    "detached": Shot("detached", CHARTS, FIRST_GROUP),
    "exploding": Shot("exploding", CHARTS, FIRST_GROUP),
    "mixed_up": Shot("mixed_up", CHARTS, FIRST_GROUP),
}


def fit(name: str, folder: Path, settings: Sequence[str] = ()) -> list[str]:
    """Makes a run in `folder`, and returns what the callbacks warn of.

    Args:
        name: in `RUNS`.
        folder: of all runs; this one gets a folder of its name.
        settings: more arguments of the command line, which come last.
    """
    run = RUNS[name]
    demo = yaml.safe_load(DEMO.read_text())
    kept = [
        callback for callback in demo["trainer"]["callbacks"] if run.freezes_backbone_first or not _freezes(callback)
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yaml.safe_dump({"trainer": {"callbacks": kept, "enable_progress_bar": False}}, file)
        file.flush()
        steps = (f"--trainer.max_steps={run.steps}", f"--trainer.val_check_interval={run.steps // 2}")
        goes_to = f"--trainer.default_root_dir={folder / name}"
        command_line.run(
            ["fit", f"--config={DEMO}", f"--config={file.name}", goes_to, *steps, *run.settings, *settings]
        )
    return [str(warning.message) for warning in caught if _is_of_a_callback(warning.category)]


def _freezes(callback: dict[str, Any]) -> bool:
    return callback["class_path"].endswith("FreezeBackboneFirst")


def _is_of_a_callback(category: type[Warning]) -> bool:
    return category.__module__.startswith("lightning_action.callbacks")


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard that shows the runs in a folder."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0", "--host", "localhost"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            found = (re.search(r"http://\S+?:\d+/", line) for line in server.stderr)
            address = next(match.group() for match in found if match)
            with urlopen(f"{address}data/runs") as answer:
                answer.read()
            yield address
        finally:
            server.terminate()


def photograph(address: str, box: tuple[int, int, int, int], path: Path) -> None:
    """Writes a rectangle of a page as PNG."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise FileNotFoundError("expected chromium or google-chrome on the PATH, found neither: install one of them")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.png"
        options = [f"--user-data-dir={folder}/profile", f"--window-size={box[2]},{box[3]}", f"--screenshot={page}"]
        subprocess.run([browser, *CHROMIUM, *options, address], check=True, capture_output=True, timeout=120)
        with Image.open(page) as picture:
            picture.convert("RGB").crop(box).quantize(NUM_COLORS).save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are not there yet, then all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "screenshots", help="where the fits go")
    folder = parser.parse_args(arguments).runs
    for name in RUNS:
        if not (folder / name / "checkpoints" / "last.ckpt").exists():
            print(*fit(name, folder), sep="\n")
    for name, shot in SHOTS.items():
        with tensorboard(folder / shot.run) as address:
            photograph(f"{address}#{shot.page}", shot.box, ROOT / "docs" / f"tensorboard_{name}.png")


if __name__ == "__main__":
    main()

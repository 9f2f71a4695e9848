"""Makes the pictures of docs/tensorboard.md, once `make demo` has made its backbone: python docs/make_screenshots.py.

Fits the demo for some hundred steps, once as it is and once for each fault, and photographs what TensorBoard shows of
them in a headless Chromium, which has to be installed with its chromedriver. It takes about eight minutes on two cores.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import yaml
from PIL import Image
from torch import Tensor

from lightning_action import ActionModulationProjection, MovingSpriteWorld
from lightning_action.cli import trainer_verbs
from lightning_action.data.sprite_world import WorldStart

Ask = Callable[..., Any]

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "configs" / "demo.yaml"
SECONDS_OF_SILENCE = 6
CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class DetachedProjection(ActionModulationProjection):
    """Its modulation acts, and no gradient comes back."""

    def forward(self, action: Tensor, present: Tensor | None = None) -> Tensor:
        return super().forward(action, present).detach()


class MixedUpWorld(MovingSpriteWorld):
    """Every sprite moves as another one of the batch was told to."""

    def simulate(self, start: WorldStart, actions: Tensor) -> Tensor:
        # Those of the sample after: with those of the one before, swapped actions would be the true ones.
        return super().simulate(start, actions.roll(-1, dims=0))


def _path(part: type) -> str:
    return f"{part.__module__}.{part.__qualname__}"


class Run(NamedTuple):
    """A fit of the demo: its steps, and what differs from `configs/demo.yaml`."""

    steps: int
    settings: tuple[str, ...] = ()
    # Without a projection that learns, nothing would be left to train.
    freezes_backbone_first: bool = True


RUNS = {
    "healthy": Run(402),
    "detached": Run(
        201,
        (
            f"--model.action_projection.class_path={_path(DetachedProjection)}",
            "--model.action_projection.init_args.zero_init=false",
        ),
        freezes_backbone_first=False,
    ),
    "exploding": Run(201, ("--model.action_projection.init_args.action_modulation_scale=1000.0",)),
    "mixed_up": Run(201, (f"--data.init_args.world.class_path={_path(MixedUpWorld)}",)),
}


class Shot(NamedTuple):
    """A rectangle of a page of TensorBoard, in pixels: left, top, right, bottom."""

    run: str
    page: str
    box: tuple[int, int, int, int]


CHARTS = "custom_scalars&_smoothingWeight=0"
# Three charts side by side, two groups below one another.
WIDTH, HEIGHT = 1460, 1700
FIRST_GROUP = (0, 0, 1460, 760)
SHOTS = {
    "healthy": Shot("healthy", CHARTS, FIRST_GROUP),
    "healthy_where": Shot("healthy", CHARTS, (358, 762, 1460, 1446)),
    "rollouts": Shot("healthy", "images", (358, 120, 1100, 1140)),
    "detached": Shot("detached", CHARTS, FIRST_GROUP),
    "exploding": Shot("exploding", CHARTS, FIRST_GROUP),
    "mixed_up": Shot("mixed_up", CHARTS, FIRST_GROUP),
}


def fit(name: str, folder: Path, settings: Sequence[str] = ()) -> list[str]:
    """Make a run in `folder`, and return what the callbacks warn of.

    Args:
        name: Name of the run in `RUNS`.
        folder: Folder of all runs; this one gets a folder of its name in it.
        settings: Further arguments of the command line, which come last.
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
        steps = (f"--trainer.max_steps={run.steps}", f"--trainer.val_check_interval={run.steps // 3}")
        goes_to = f"--trainer.default_root_dir={folder / name}"
        trainer_verbs.run(
            ["fit", f"--config={DEMO}", f"--config={file.name}", goes_to, *steps, *run.settings, *settings]
        )
    return [str(warning.message) for warning in caught if _is_of_a_callback(warning.category)]


def _freezes(callback: dict[str, Any]) -> bool:
    return callback["class_path"].endswith("FreezeBackboneFirst")


def _is_of_a_callback(category: type[Warning]) -> bool:
    return category.__module__.startswith("lightning_action.callbacks")


@contextmanager
def serve(command: Sequence[str], pattern: str) -> Iterator[str]:
    """Run a server, and give what `pattern` finds in the first line of its output that has it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        try:
            found = (re.search(pattern, line) for line in server.stdout)
            match = next(filter(None, found), None)
            if match is None:
                raise RuntimeError(f"expected {pattern!r} in the output of {' '.join(command)}, and it ended without")
            yield match.group(1)
        finally:
            server.terminate()


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard that shows the runs in a folder."""
    shown = os.path.relpath(folder)  # the page shows it
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", shown, "--port", "0", "--host", "localhost"]
    with serve(command, r"(http://\S+?:\d+/)") as address:
        yield address


@contextmanager
def browser(width: int, height: int) -> Iterator[Ask]:
    """A headless Chromium with a window of that size, which is asked by WebDriver commands: `ask("url", url=...)`."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or chromium is None:
        raise FileNotFoundError(f"expected chromedriver and Chromium on the PATH, found {driver} and {chromium}")
    with tempfile.TemporaryDirectory() as profile, serve([driver, "--port=0"], r"successfully on port (\d+)") as port:
        options = [*CHROMIUM, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        wanted = {"goog:chromeOptions": {"args": options, "binary": chromium}}
        session = _request(f"http://localhost:{port}/session", {"capabilities": {"alwaysMatch": wanted}})
        address = f"http://localhost:{port}/session/{session['sessionId']}"
        try:
            yield lambda command, **arguments: _request(f"{address}/{command}", arguments)
        finally:
            _request(address, method="DELETE")


def _request(url: str, arguments: dict[str, Any] | None = None, method: str | None = None) -> Any:
    """The value that WebDriver answers with. Commands without arguments are asked for by GET."""
    data = json.dumps(arguments).encode() if arguments else None
    with urlopen(Request(url, data, {"Content-Type": "application/json"}, method=method), timeout=120) as answer:
        return json.load(answer)["value"]


def photograph(address: str, page: str, width: int, height: int) -> bytes:
    """A page of TensorBoard as PNG, with all of every line in its chart, once everything has been loaded."""
    with browser(width, height) as ask:
        ask("url", url=f"{address}data/runs")
        ask("execute/sync", script="localStorage.setItem('_ignoreYOutliers', 'false')", args=[])
        ask("url", url=f"{address}#{page}")
        loaded, before = 0, -1
        while loaded != before:
            time.sleep(SECONDS_OF_SILENCE)
            count = "return performance.getEntriesByType('resource').length"
            loaded, before = ask("execute/sync", script=count, args=[]), loaded
        return base64.b64decode(ask("screenshot"))


def cut(page: bytes, box: tuple[int, int, int, int], path: Path) -> None:
    """Write a rectangle of a picture as PNG."""
    with Image.open(BytesIO(page)) as picture:
        picture.convert("RGB").crop(box).save(path, optimize=True)


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
            page = photograph(address, shot.page, WIDTH, HEIGHT)
        cut(page, shot.box, ROOT / "docs" / f"tensorboard_{name}.png")


if __name__ == "__main__":
    main()

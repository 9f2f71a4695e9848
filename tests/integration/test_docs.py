"""Every code block of the README and of docs/ is run, in order, in a folder with small versions of the demo's runs."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from benchmarks import _gpu_bench, gpu
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.cli import main, selfcheck
from lightning_action.cli import play as play_verb
from lightning_action.play.action_map import read_action_map
from lightning_action.play.live_world import LiveWorld
from lightning_action.play.server import PlayServer
from lightning_action.weights.safetensors_files import write_safetensors
from tests.support.wan_release import VERSIONS, small_arguments, small_model, write_release
from tests.support.written_videos import LEROBOT, numbered_frames, write_video

# Of a model that has trained for some steps.
pytestmark = [
    pytest.mark.filterwarnings("ignore:DriftMonitor. generated videos drift"),
    pytest.mark.usefixtures("few_draws"),
]
ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
FEW_STEPS = selfcheck.Sizes(dim=24, num_layers=1, num_latents=3, batch_size=4, base_steps=3, action_steps=3)
ONE_STEP = ["--model.sampling.num_inference_steps=1"]
FEW_SPRITES = [
    "--trainer.devices=1",
    "--data.init_args.train_size=16",
    "--data.init_args.validation_size=2",
    "--data.init_args.test_size=3",
    "--data.init_args.predict_size=3",
]
# Wan on a data set of three episodes of 40 frames.
OF_LEROBOT = ["--data.num_latents=4", "--data.num_workers=0", *small_model()]
SMALL_LEROBOT = {
    "check": ["--data.num_latents=7"],
    "encode": [
        *OF_LEROBOT,
        "--max_latents=4",
        "--data.frame_size=[32, 48]",
        "--model.action_projection.init_args.num_layers=2",
    ],
    "fit": [
        *OF_LEROBOT,
        "--model.action_projection.init_args.num_layers=2",
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
    ],
}
SMALL_SCRIPTS = {
    "docs/examples/plan.py": ["--trials=1", "--blocks=1"],
    "docs/measure_drift.py": ["--worlds=1", "--blocks=16"],
}
# What a CPU cannot do, or not in seconds, in a benchmark.
ON_A_CPU = {
    "--device cuda": "--device cpu",
    **{"--compile default": "", "--compile max-autotune-no-cudagraphs": ""},
}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each code block."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The lines of shell blocks, split as a shell would."""
    return [words for language, text in blocks(page) if language == "bash" for words in split(text)]


def split(text: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in text.replace("\\\n", "").splitlines() if line]


def run_page(page: Path, folder: Path) -> None:
    """Run its blocks in the folder; one that begins with the name of a file, as a comment, is written there as well."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.syspath_prepend(folder)
        for language, text in blocks(page):
            name = re.match(r"# (\w+\.\w+)\n", text)
            if name:
                (folder / name[1]).write_text(text)
            if language == "bash":
                for words in split(text):
                    run_command(words, folder, patched)
            elif language == "python":
                run_python(text, page)
            elif language == "yaml":
                parse_yaml(text, folder)
            else:
                assert language == "text", f"{page.name} has a block of {language}, which nobody runs"


def run_command(words: list[str], folder: Path, patched: pytest.MonkeyPatch) -> None:
    words = [word.replace("/path/to", str(folder / "path_to")) for word in words]
    patched.setattr(play_verb, "serve", play_for_a_moment)
    if words[:3] == ["python", "main.py", "selfcheck"]:
        patched.setattr(selfcheck, "measure", partial(selfcheck.measure, sizes=FEW_STEPS))
        main(words[2:])
    elif words[:2] == ["python", "main.py"]:
        try:
            main(small(*words[2:]))
        except SystemExit as stopped:  # after --help
            assert not stopped.code, words
    elif words[0] == "python" and words[1] in SMALL_SCRIPTS:
        patched.setattr(sys, "argv", [*words[1:], *SMALL_SCRIPTS[words[1]]])
        runpy.run_path(words[1], run_name="__main__")
    elif words[0] == "export":
        name, value = words[1].split("=")
        assert Path(value).is_dir(), f"there is no {value} in the test"
        patched.setenv(name, value)
    elif "benchmarks.gpu" in words:
        line = " ".join(words[words.index("benchmarks.gpu") + 1 :])
        for theirs, ours in ON_A_CPU.items():
            line = line.replace(theirs, ours)
        with torch.compiler.set_stance("force_eager"):
            gpu.main(["--tiny", *line.split()])
    else:
        assert words[0] == "tensorboard" or (words[0] == "make" and words[1] in makefile_targets()), words


def play_for_a_moment(server: PlayServer, listening: object, loading: Callable[[], None]) -> None:
    """In place of a server that nobody would end: a world of three blocks, recorded if so asked."""
    loading()
    playground = server.playground
    assert playground is not None
    world = LiveWorld(playground.stage, playground.new_observer and playground.new_observer())
    world.reset(0)
    for _ in range(3):
        world.step(playground.action_map.row([(0, 1.0)]))
    world.close()


def small(verb: str, *arguments: str) -> list[str]:
    """The same command with sizes, steps and devices that take seconds."""
    if verb == "inverse-dynamics":
        return [verb, *arguments, "--max_steps=2", "--device=cpu"]
    if "configs/lerobot.yaml" in arguments:
        return [verb, *arguments, *SMALL_LEROBOT[verb]]
    if verb == "evaluate" and "--config" in arguments:
        return [verb, *arguments, "--data.test_size=3", "--data.predict_size=3"]
    if verb in ("check", "export", "record", "inspect", "evaluate", "replay") or "help" in arguments[-1]:
        return [verb, *arguments]
    released = [config for config in reversed(VERSIONS) if f"configs/{config}.yaml" in arguments]
    is_own = any(name in argument for argument in arguments for name in ("own_actions", "my_videos", "/latents.yaml"))
    num_steps = 3 if "--ckpt_path" in arguments else 2
    short = [f"--trainer.max_steps={num_steps}", "--trainer.limit_val_batches=0"]
    more = [*arguments, *(short if verb == "fit" else [])]
    if released:
        # Compiled code takes a minute on a CPU, and float8 takes widths that are multiples of 16.
        cpu = ["--model.acceleration={compile_mode: null, quantization: null, overlap_decoding: true}"]
        return [verb, *more, *small_arguments(released[0]), *cpu]
    return [verb, *more, *ONE_STEP, *([] if is_own else FEW_SPRITES)]


def run_python(text: str, page: Path) -> None:
    """Run it, and compare what is printed last with the comments behind `print`."""
    output = io.StringIO()
    with redirect_stdout(output):
        exec(compile(text, str(page), "exec"), {"__name__": "block"})
    promised = re.findall(r"^ *print\(.*\)  # (.*)", text, re.MULTILINE)
    printed = [line for line in output.getvalue().splitlines() if line]
    results = printed[-len(promised) :] if promised else []
    assert all(said.startswith(result) for said, result in zip(promised, results, strict=True)), printed


def parse_yaml(text: str, folder: Path) -> None:
    """It is a configuration that stacks on the demo's, or a map of its actions."""
    (folder / "block.yaml").write_text(text)
    if "\ncontrols:" in text:
        read_action_map(folder / "block.yaml", ActionSchema([ActionPart("move", "continuous", 2)]))
        return
    with pytest.raises(SystemExit) as stopped, redirect_stdout(io.StringIO()):
        main(["fit", "--config", "configs/demo.yaml", "--config", "block.yaml", "--print_config"])
    assert stopped.value.code == 0


def demo_with_a_small_generator() -> dict[str, Any]:
    """The demo's configuration with a generator of another size."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    settings["model"]["generator"]["init_args"] |= {"dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 2}
    settings["model"]["action_projection"]["init_args"] |= {"num_layers": 2}
    return settings


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder like the checkout, with a small demo and a small release in `path_to`, in which the README was run."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "docs").symlink_to(ROOT / "docs")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "configs" / "demo.yaml").write_text(yaml.safe_dump(demo_with_a_small_generator(), sort_keys=False))
    weights = folder / "path_to"
    generator = write_release(weights / "Wan2.1-T2V-1.3B", "2.1")
    (weights / "lerobot").symlink_to(LEROBOT / "v3")
    (weights / "kitchen").mkdir()
    for take in ("take_01", "take_02", "take_03"):
        write_video(weights / "kitchen" / f"{take}.mp4", numbered_frames(30))
    (weights / "kitchen" / "take_01.csv").write_text("x,y\n" + "0.5,1\n" * 30)
    for name in ("videos", "truth", "actions"):
        (weights / "their_model" / name).mkdir(parents=True)
    for take in ("take_01", "take_02"):
        write_video(weights / "their_model" / "truth" / f"{take}.mp4", numbered_frames(9))
        write_video(weights / "their_model" / "videos" / f"{take}.webm", numbered_frames(9), codec="libvpx-vp9")
        (weights / "their_model" / "actions" / f"{take}.csv").write_text("x,y\n" + "0.5,1\n" * 8)
    (weights / "Wan2.1-T2V-14B").symlink_to(weights / "Wan2.1-T2V-1.3B")
    tiny = _gpu_bench.tiny_decoder_tensors((8, 6, 5, 4))
    write_safetensors(weights / "Wan2.1-T2V-1.3B" / "taew2_1.safetensors", tiny, {})
    torch.save({"generator_ema": generator.state_dict()}, weights / "longlive_base.pt")
    lora = {f"blocks.0.self_attn.q.lora_{part}.weight": torch.randn(4, 24) for part in "AB"}
    lora = {name: tensor.T if "lora_B" in name else tensor for name, tensor in lora.items()}
    torch.save({"generator_lora": lora}, weights / "longlive_lora.pt")
    run_page(README, folder)
    yield folder


def test_readme_commands_leave_what_it_says(workshop: Path) -> None:
    verbs = [command[2] for command in commands(README) if command[0] == "python"]
    assert verbs == ["selfcheck", "fit", "fit", "predict", "test"]
    for result in ("checkpoints/last.ckpt", "report.json", "report.html", "action_scan.png", "predictions/000000.mp4"):
        assert (workshop / "runs" / "demo" / result).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run(page: Path, workshop: Path) -> None:
    """In the folder with the runs of the README."""
    run_page(page, workshop)


def test_pictures_are_made_from_the_runs(workshop: Path) -> None:
    path = ROOT / "docs" / "make_pictures.py"
    specification = importlib.util.spec_from_file_location("make_pictures", path)
    assert specification is not None and specification.loader is not None
    make_pictures = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(make_pictures)
    root = workshop / "elsewhere"
    (root / "docs").mkdir(parents=True)
    (root / "runs").symlink_to(workshop / "runs")
    (root / "README.md").write_text((ROOT / "README.md").read_text())
    make_pictures.main(root)
    report = json.loads((workshop / "runs" / "demo" / "report.json").read_text())
    text = (root / "README.md").read_text()
    assert f"| R² x / y | {report['r2_x']:.2f} / {report['r2_y']:.2f} |" in text
    outside = r"(?s)<!-- figures of the demo -->.*<!-- end of the figures -->"
    assert re.sub(outside, "", text) == re.sub(outside, "", (ROOT / "README.md").read_text())
    assert (root / "docs" / "action_scan.png").is_file()
    with Image.open(root / "docs" / "demo.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 33


def test_make_demo_runs_the_commands_of_the_readme() -> None:
    text = (ROOT / "Makefile").read_text()
    variables = dict(re.findall(r"^(\w+) \?*:?= (.*)$", text, re.MULTILINE))
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    assert recipe is not None
    expanded = recipe.group(1)
    while "$(" in expanded:
        expanded = re.sub(r"\$\((\w+)\)", lambda match: variables[match.group(1)], expanded)
    run_by_make = [shlex.split(line.split("python ", 1)[1]) for line in expanded.splitlines()]
    shown = [command[1:] for command in commands(README) if command[:2] == ["python", "main.py"]]
    begin_anew = ["--checkpoint.overwrite", "true"]
    assert shown[0][1] == "selfcheck"
    assert run_by_make == [[*words, *(begin_anew if words[1] == "fit" else [])] for words in shown[1:5]]


def test_links_lead_somewhere() -> None:
    for page in (README, *PAGES):
        for target, anchor in re.findall(r"\]\(([^):#]*)(?:#([^)]*))?\)", page.read_text()):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(path), f"{page.name} links to {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs" / "README.md").read_text()))
    assert linked == {page.name for page in PAGES} - {"README.md"}


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+)(?: [a-z- ]+)?:", (ROOT / "Makefile").read_text(), re.MULTILINE))

"""Every code block of the README and of docs/ is run, in order, in a folder with small versions of the demo's runs."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from lightning_action import command_line

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = {
    "all": ["--model.sampling.num_inference_steps=1"],
    "sprites": [
        "--data.init_args.train_size=16",
        "--data.init_args.validation_size=2",
        "--data.init_args.test_size=3",
        "--data.init_args.predict_size=3",
    ],
    "fit": ["--trainer.max_steps=2", "--trainer.limit_val_batches=0"],
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The lines of shell blocks, split as a shell would."""
    return [shlex.split(line, comments=True) for block in blocks(page, "bash") for line in block.splitlines() if line]


def run_small(command: list[str]) -> None:
    verb, *arguments = command
    more = SMALL["all"] + (SMALL["fit"] if verb == "fit" else [])
    if not any("own_actions" in argument for argument in arguments):
        more = more + SMALL["sprites"]
    command_line.run([verb, *arguments, *more])


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the checkout, in which the README's commands were run in order."""
    folder = tmp_path_factory.mktemp("workshop")
    for name in ("configs", "docs"):
        (folder / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for command in commands(ROOT / "README.md"):
            if command[:2] == ["python", "main.py"]:
                run_small(command[2:])
    return folder


def test_readme_commands_leave_what_it_says(workshop: Path) -> None:
    shown = commands(ROOT / "README.md")
    assert [command[2] for command in shown if command[0] == "python"] == ["fit", "fit", "predict", "test", "predict"]
    assert all(command[1] in makefile_targets() for command in shown if command[0] == "make")
    assert {command[0] for command in shown} == {"python", "make"}
    for result in ("checkpoints/last.ckpt", "report.json", "action_scan.png", "predictions/000000.mp4"):
        assert (workshop / "runs" / "demo" / result).is_file()
    assert (workshop / "runs" / "mine" / "predictions" / "000000.mp4").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_print_what_their_comments_say(
    page: Path, workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the folder with the checkpoint that the README's example loads."""
    monkeypatch.chdir(workshop)
    for block in blocks(page, "python"):
        capsys.readouterr()
        exec(compile(block, str(page), "exec"), {})
        printed = [line for line in capsys.readouterr().out.splitlines() if line]
        promised = re.findall(r"^print\(.*\)  # (.*)", block, re.MULTILINE)
        results = printed[-len(promised) :] if promised else []
        assert all(said.startswith(result) for said, result in zip(promised, results, strict=True)), printed


def test_pictures_are_made_from_the_runs(workshop: Path) -> None:
    path = ROOT / "docs" / "make_pictures.py"
    specification = importlib.util.spec_from_file_location("make_pictures", path)
    assert specification is not None and specification.loader is not None
    make_pictures = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(make_pictures)
    root = workshop / "elsewhere"
    (root / "docs").mkdir(parents=True)
    (root / "runs").symlink_to(workshop / "runs")
    make_pictures.main(root)
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
    shown = [command[1:] for command in commands(ROOT / "README.md") if command[:2] == ["python", "main.py"]]
    assert run_by_make == shown[:4]


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+)(?: [a-z- ]+)?:", (ROOT / "Makefile").read_text(), re.MULTILINE))

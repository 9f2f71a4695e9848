from __future__ import annotations

import configparser
import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from lightning_action import ActionModulationProjection
from lightning_action.cli import main, selfcheck
from lightning_action.cli.selfcheck import Check, Sizes, installed, measure, run_selfcheck
from lightning_action.cli.support.mistakes import UsageError

SMALL = Sizes(dim=24, num_layers=1, num_latents=3, batch_size=4, base_steps=3, action_steps=3)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "measure", partial(measure, sizes=SMALL))


def test_a_sound_installation_passes_and_leaves_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new"
    assert run_selfcheck(["--output", str(folder)])
    printed = capsys.readouterr().out
    assert "all checks passed" in printed and "FAILED" not in printed
    assert [printed.count(f"\n{stage}/3 ") for stage in (1, 2, 3)] == [1, 1, 1]
    assert (folder / "predictions" / "000000.mp4").stat().st_size > 0
    with Image.open(folder / "action_scan.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 100
    checks = [Check(**check) for check in json.loads((folder / "selfcheck.json").read_text())["checks"]]
    assert [check.measured for check in checks[:3]] == [0, 1, 0]
    assert all(check.passed for check in checks) and all(check.measured > 0 for check in checks[3:])


def test_a_projection_that_is_not_zero_fails(tmp_path: Path) -> None:
    checks = measure(tmp_path, SMALL, partial(ActionModulationProjection, zero_init=False))
    assert [check.passed for check in checks] == [False, False, False, True, True]
    assert str(checks[0]).startswith("FAILED")


def test_a_projection_that_learns_nothing_fails(tmp_path: Path) -> None:
    checks = measure(tmp_path, SMALL, action_learning_rate=0.0)
    assert [check.passed for check in checks] == [True, True, True, False, False]


def test_a_failure_is_the_exit_code_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selfcheck, "measure", partial(measure, sizes=SMALL, action_learning_rate=0.0))
    with pytest.raises(SystemExit) as stopped:
        main(["selfcheck", "--output", str(tmp_path / "new")])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert printed.count("\nFAILED  ") == 2 and "selfcheck failed: the lines marked FAILED" in printed


def test_only_a_folder_of_its_own_is_replaced(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    assert run_selfcheck(["--output", str(own)])
    (own / "left").touch()
    assert run_selfcheck(["--output", str(own)])
    assert (own / "selfcheck.json").is_file() and not (own / "left").exists()
    other.mkdir()
    (other / "mine").touch()
    with pytest.raises(FileExistsError, match="is there already"):
        run_selfcheck(["--output", str(other)])
    assert [path.name for path in other.iterdir()] == ["mine"]


def test_it_says_what_is_installed_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selfcheck.EXTRAS, "wan", ("no-such-package",))
    text = "\n".join(installed())
    assert "torch " in text and "lightning " in text and "cpu (" in text and "scaled dot-product" in text
    assert "wan (no-such-package missing)" in text


def test_every_extra_is_listed() -> None:
    metadata = configparser.ConfigParser()
    metadata.read(Path(__file__).parents[3] / "setup.cfg")
    assert {*metadata["options.extras_require"]} - {"dev"} == {*selfcheck.EXTRAS}


def test_an_unknown_option_is_a_mistake_of_the_user() -> None:
    with pytest.raises(UsageError, match="--outptu.*--help lists what there is"):
        run_selfcheck(["--outptu", "here"])

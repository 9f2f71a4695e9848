"""The commands that `benchmarks/README.md` gives start as they stand there."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.support.forked_processes import end_of, start

ROOT = Path(__file__).resolve().parents[3]
GIVEN = (ROOT / "benchmarks" / "README.md").read_text()
MODULES = sorted(set(re.findall(r"^python -m (benchmarks\.\S+)", GIVEN, re.M)))
SCRIPTS = sorted(set(re.findall(r"^python (benchmarks/\S+)", GIVEN, re.M)))


@pytest.mark.parametrize("module", [*MODULES, "benchmarks.gpu", "benchmarks.live"])
def test_a_module_starts(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)  # as in a process of its own
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(module, run_name="__main__")
    assert not stopped.value.code and "--json" in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_from_its_own_folder(script: str, tmp_path: Path) -> None:
    code = end_of(start(tmp_path / "told", run_script, script))
    told = (tmp_path / "told").read_text()
    assert code == 0 and "--json" in told, told


def run_script(script: str) -> None:
    """What `python SCRIPT --help` does: the folder of the script can be imported from, that of the checkout not."""
    sys.argv = [script, "--help"]
    sys.path[:] = [str(Path(script).parent), *(path for path in sys.path if path and Path(path) != ROOT)]
    runpy.run_path(script, run_name="__main__")

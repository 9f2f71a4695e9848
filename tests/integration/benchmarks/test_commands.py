"""The commands that `benchmarks/README.md` gives start as they stand there."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

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
def test_a_script_starts_from_its_own_folder(script: str) -> None:
    arguments = [sys.executable, script, "--help"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--json" in done.stdout, done.stderr

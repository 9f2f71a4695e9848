from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CALL = "from lightning_action.cli import require_working_torchvision as f; f()"


def run(code: str, extra_path: Path) -> subprocess.CompletedProcess[str]:
    """Run without site-packages, so that what is installed does not matter."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(extra_path), str(ROOT)])}
    return subprocess.run([sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True)


def fake_torchvision(folder: Path, source: str) -> None:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(source)


def test_broken_torchvision_is_refused_with_its_error_and_the_remedy(tmp_path: Path) -> None:
    fake_torchvision(tmp_path, "raise RuntimeError('operator torchvision::nms does not exist')")
    result = run(CALL, tmp_path)
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: expected torchvision to be absent or to work")
    assert "RuntimeError: operator torchvision::nms does not exist" in message
    assert "pip uninstall torchvision" in message


def test_working_or_absent_torchvision_is_accepted(tmp_path: Path) -> None:
    assert run(CALL, tmp_path).returncode == 0
    fake_torchvision(tmp_path, "")
    assert run(CALL, tmp_path).returncode == 0

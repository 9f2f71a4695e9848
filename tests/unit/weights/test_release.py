from __future__ import annotations

from pathlib import Path

import pytest

from lightning_action.weights.release import find_release_file

NAMES = ("Wan2.1_VAE.pth", "vae")


def test_the_first_name_that_is_there_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_ACTION_WEIGHTS", str(tmp_path))
    (tmp_path / "vae").mkdir()
    assert find_release_file(NAMES, "the VAE") == tmp_path / "vae"
    (tmp_path / "Wan2.1_VAE.pth").touch()
    assert find_release_file(NAMES, "the VAE") == tmp_path / "Wan2.1_VAE.pth"


def test_what_was_looked_for_and_what_to_do_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_ACTION_WEIGHTS", raising=False)
    with pytest.raises(FileNotFoundError, match=r"no path .* the VAE: give one, or set .*Wan2.1_VAE.pth or vae"):
        find_release_file(NAMES, "the VAE")
    for folder in (tmp_path, tmp_path / "none"):
        monkeypatch.setenv("LIGHTNING_ACTION_WEIGHTS", str(folder))
        with pytest.raises(FileNotFoundError, match=r"found no Wan2.1_VAE.pth or vae \(the VAE\) in .*the path itself"):
            find_release_file(NAMES, "the VAE")

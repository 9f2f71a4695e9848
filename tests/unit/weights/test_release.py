"""Where networks lie, and what stands beside them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_action.weights.release import config_beside, find_release_file, locate, stamp

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


def test_a_path_is_taken_or_looked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(str(tmp_path), NAMES[::-1], "the VAE") == tmp_path
    (tmp_path / "Wan2.1_VAE.pth").touch()
    assert locate(str(tmp_path), NAMES[::-1], "the VAE") == tmp_path / "Wan2.1_VAE.pth"
    (tmp_path / "vae").mkdir()
    assert locate(str(tmp_path), NAMES[::-1], "the VAE") == tmp_path / "vae"
    assert locate(str(tmp_path / "missing"), NAMES[::-1], "the VAE") == tmp_path / "missing"
    monkeypatch.setenv("LIGHTNING_ACTION_WEIGHTS", str(tmp_path))
    assert locate(None, NAMES[::-1], "the VAE") == tmp_path / "vae"
    monkeypatch.delenv("LIGHTNING_ACTION_WEIGHTS")
    with pytest.raises(FileNotFoundError, match="no path was given for the VAE"):
        locate(None, NAMES[::-1], "the VAE")


def test_the_configuration_beside_is_the_one_of_the_network(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    assert config_beside(weights, "model_type", "umt5") is None
    (tmp_path / "config.json").write_text('{"model_type": "umt5", "d_model": 7}')
    expected = {"model_type": "umt5", "d_model": 7}
    assert config_beside(weights, "model_type", "umt5") == config_beside(tmp_path, "model_type", "umt5") == expected
    assert config_beside(weights, "model_type", "t5") is None
    assert config_beside(weights, "_class_name", "umt5") is None


@pytest.mark.parametrize("content", ["[1]", '"umt5"', "null", "{"])
def test_a_configuration_that_is_none_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json .*fetch it again"):
        config_beside(tmp_path, "model_type", "umt5")


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Alone and in folders, by size and by time of change."""
    file = tmp_path / "part" / "weights.pth"
    file.parent.mkdir()
    file.write_bytes(b"four")
    stamps = [(stamp(file), stamp(tmp_path))]
    assert (stamp(file), stamp(tmp_path)) == stamps[0]
    os.utime(file, ns=(5, 5))
    stamps.append((stamp(file), stamp(tmp_path)))
    file.write_bytes(b"seven..")
    os.utime(file, ns=(5, 5))
    stamps.append((stamp(file), stamp(tmp_path)))
    for of_one in zip(*stamps, strict=True):
        assert len(set(map(str, of_one))) == 3

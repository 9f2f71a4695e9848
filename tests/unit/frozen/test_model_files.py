"""Where networks lie, what stands beside them, and how their tensors are renamed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_action.frozen.model_files import config_beside, locate, renamed, stamp, wan_extra

NAMES = ("vae", "Wan2.1_VAE.pth")


def test_a_path_is_taken_or_looked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(str(tmp_path), NAMES, "the VAE") == tmp_path
    (tmp_path / "Wan2.1_VAE.pth").touch()
    assert locate(str(tmp_path), NAMES, "the VAE") == tmp_path / "Wan2.1_VAE.pth"
    (tmp_path / "vae").mkdir()
    assert locate(str(tmp_path), NAMES, "the VAE") == tmp_path / "vae"
    assert locate(str(tmp_path / "missing"), NAMES, "the VAE") == tmp_path / "missing"
    monkeypatch.setenv("LIGHTNING_ACTION_WEIGHTS", str(tmp_path))
    assert locate(None, NAMES, "the VAE") == tmp_path / "vae"
    monkeypatch.delenv("LIGHTNING_ACTION_WEIGHTS")
    with pytest.raises(FileNotFoundError, match="no path was given for the VAE"):
        locate(None, NAMES, "the VAE")


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


def test_beginnings_are_replaced_once() -> None:
    rows = [("a.", "b."), ("b.", "c.")]
    assert [renamed(name, rows) for name in ("a.b.a.", "b.a.", "ab.a.", "")] == ["b.b.a.", "c.a.", "ab.a.", ""]


def test_a_missing_package_is_told_with_its_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"'diffusers_of_tomorrow': .*lightning_action\[wan\]"), wan_extra():
        import diffusers_of_tomorrow  # type: ignore[import-not-found]  # noqa: F401


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

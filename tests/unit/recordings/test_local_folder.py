from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from lightning_action.recordings.lerobot import read_lerobot
from lightning_action.recordings.local_folder import LocalFolder
from tests.support.written_videos import LEROBOT


@pytest.fixture
def address() -> str:
    """A data set at an address that is no path."""
    system = fsspec.filesystem("memory")
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)
    system.put(str(LEROBOT / "v3_multi"), "/bucket/v3_multi", recursive=True)
    return "memory://bucket/v3_multi"


def test_files_of_an_address_are_copied_once(address: str, tmp_path: Path) -> None:
    folder = LocalFolder(address, str(tmp_path))
    path = folder.path("meta/info.json")
    assert path.read_bytes() == (LEROBOT / "v3_multi/meta/info.json").read_bytes()
    assert path.is_relative_to(tmp_path)
    path.write_text("kept")
    assert LocalFolder(address + "/", str(tmp_path)).path("meta/info.json").read_text() == "kept"


def test_a_data_set_at_an_address_reads_as_the_one_on_disk(address: str, tmp_path: Path) -> None:
    remote, local = (
        read_lerobot(LocalFolder(address, str(tmp_path))),
        read_lerobot(LocalFolder(str(LEROBOT / "v3_multi"))),
    )
    assert len(remote.episodes) == len(local.episodes) == 3
    for one, other in zip(remote.episodes, local.episodes, strict=True):
        assert (one.cameras[0].read([3, 39]) == other.cameras[0].read([3, 39])).all()


def test_lists_are_the_same(address: str, tmp_path: Path) -> None:
    remote, local = LocalFolder(address, str(tmp_path)), LocalFolder(str(LEROBOT / "v3_multi"))
    for pattern in ("meta/episodes/**/*.parquet", "meta/*", "**/*.mp4"):
        assert remote.list(pattern) == local.list(pattern) != []


@pytest.mark.parametrize("relative", ["../secret", "/etc/passwd", "meta/../../secret", "", "a\\..\\b"])
def test_no_path_leads_out(tmp_path: Path, relative: str) -> None:
    (tmp_path / "secret").write_text("")
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match="leads out of the data set"):
        LocalFolder(str(tmp_path / "data")).path(relative)


def test_what_is_missing_is_named(tmp_path: Path, address: str) -> None:
    with pytest.raises(FileNotFoundError, match="no folder at"):
        LocalFolder(str(tmp_path / "nothing"))
    for folder in (LocalFolder(str(tmp_path)), LocalFolder(address, str(tmp_path))):
        with pytest.raises(FileNotFoundError, match="has no file meta/nothing.json"):
            folder.path("meta/nothing.json")

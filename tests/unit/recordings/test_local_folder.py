from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

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
        assert (one.cameras[0]([3, 39]) == other.cameras[0]([3, 39])).all()


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


def test_another_version_has_copies_of_its_own(address: str, tmp_path: Path) -> None:
    before = LocalFolder(address, str(tmp_path), b"one").path("meta/info.json")
    fsspec.filesystem("memory").pipe("/bucket/v3_multi/meta/info.json", b"anew")
    folder = LocalFolder(address, str(tmp_path), b"two")
    assert folder.path("meta/info.json").read_bytes() == b"anew" != before.read_bytes()
    fsspec.filesystem("memory").pipe("/bucket/v3_multi/meta/info.json", b"later")
    assert folder.read("meta/info.json") == b"later" and folder.path("meta/info.json").read_bytes() == b"anew"


def test_files_are_read_and_looked_for_without_a_copy(address: str, tmp_path: Path) -> None:
    expected = (LEROBOT / "v3_multi/meta/info.json").read_bytes()
    for folder in (LocalFolder(address, str(tmp_path)), LocalFolder(str(LEROBOT / "v3_multi"))):
        assert folder.read("meta/info.json") == expected
        assert folder.exists("meta/info.json") and not folder.exists("meta/nothing.json")
        with pytest.raises(FileNotFoundError, match="has no file meta/nothing.json"):
            folder.read("meta/nothing.json")
        with pytest.raises(ValueError, match="leads out of the data set"):
            folder.read("../secret")
    assert not list(tmp_path.iterdir())


def test_a_file_that_many_want_is_copied_once(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied, get_file = [], MemoryFileSystem.get_file

    def counted(self: MemoryFileSystem, source: str, target: str) -> None:
        copied.append(source)
        sleep(0.1)
        get_file(self, source, target)

    monkeypatch.setattr(MemoryFileSystem, "get_file", counted)
    folder = LocalFolder(address, str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        (path,) = set(pool.map(folder.path, ["meta/info.json"] * 4))
    assert path.read_bytes() == (LEROBOT / "v3_multi/meta/info.json").read_bytes() and len(copied) == 1
    assert {each.name for each in path.parent.iterdir()} == {"info.json", ".info.json.lock"}


def test_copies_lie_in_the_users_cache(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert LocalFolder(address).path("meta/info.json").is_relative_to(tmp_path / "lightning_action")

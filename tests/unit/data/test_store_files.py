"""Files of an address are copied once, whole, and not mixed up with those of a store before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from lightning_action.data.store_files import StoreFiles


def remote(folder: Path) -> str:
    folder.mkdir()
    (folder / "index.json").write_text("{}")
    (folder / "a").write_bytes(b"first")
    return f"file://{folder}"


def open_store(address: str, cache: Path) -> StoreFiles:
    files = StoreFiles(address, "index.json", str(cache))
    files.read_index()
    return files


def test_files_on_disk_stay_where_they_are(tmp_path: Path) -> None:
    remote(tmp_path / "store")
    files = open_store(str(tmp_path / "store"), tmp_path / "cache")
    assert files.local("a") == tmp_path / "store" / "a" and not (tmp_path / "cache").exists()
    assert files.exists("a") and not files.exists("b")


def test_files_of_an_address_are_copied_when_they_are_read(tmp_path: Path) -> None:
    address = remote(tmp_path / "store")
    files = open_store(address, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() and files.exists("a") and not files.exists("b")
    path = files.local("a")
    assert path.is_relative_to(tmp_path / "cache") and path.read_bytes() == b"first"
    (tmp_path / "store" / "a").unlink()
    assert open_store(address, tmp_path / "cache").local("a") == path
    with pytest.raises(FileNotFoundError, match="has no b, which its index names"):
        files.local("b")
    assert {each.name for each in path.parent.iterdir()} == {"a", ".a.lock", ".b.lock"}


def test_a_store_that_was_written_anew_has_a_cache_of_its_own(tmp_path: Path) -> None:
    address = remote(tmp_path / "store")
    before = open_store(address, tmp_path / "cache").local("a")
    (tmp_path / "store" / "index.json").write_text('{"anew": 1}')
    (tmp_path / "store" / "a").write_bytes(b"second")
    after = open_store(address, tmp_path / "cache").local("a")
    assert (before.read_bytes(), after.read_bytes()) == (b"first", b"second")


def test_an_address_in_memory(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe({"/store/index.json": b"{}", "/store/a": b"first"})
    assert open_store("memory://store", tmp_path).local("a").read_bytes() == b"first"
    with pytest.raises(FileNotFoundError, match="no index.json in 'memory://other'"):
        open_store("memory://other", tmp_path)


def test_a_file_that_many_want_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = open_store(remote(tmp_path / "store"), tmp_path / "cache")
    copied, copy = [], files._copy
    monkeypatch.setattr(files, "_copy", lambda name, path: (copied.append(name), copy(name, path)))
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(files.local, ["a"] * 8))
    assert {path.read_bytes() for path in paths} == {b"first"} and copied == ["a"]

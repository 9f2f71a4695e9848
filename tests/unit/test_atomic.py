from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from lightning_action.atomic import creating_folder, replacing, require_new_folder, require_writable, write_json
from lightning_action.cli.support.run_checkpoint import AtomicCheckpointIO
from lightning_action.weights.safetensors_files import write_safetensors


def test_a_folder_that_cannot_be_made_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "one", "--output")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match=f"cannot write to '{folder}' .Not a directory.: .* with --output"):
            require_writable(folder, "--output")


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert temporary.parent == path.parent and temporary != path
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "a": 1\n}\n' and list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_place_of_a_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.mkdir()
    (path / "a.txt").write_text("precious")
    with pytest.raises(IsADirectoryError), replacing(path) as temporary:
        temporary.write_text("new")
    assert (path / "a.txt").read_text() == "precious" and list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "new"
    with creating_folder(path) as temporary:
        (temporary / "a.txt").write_text("a")
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ["a.txt"]
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), creating_folder(tmp_path / "new") as temporary:
        (temporary / "a.txt").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with creating_folder(tmp_path / "empty") as temporary:
        (temporary / "a.txt").write_text("a")
    for path in (tmp_path / "empty", tmp_path / "empty" / "a.txt"):
        with pytest.raises(FileExistsError, match=f"{path} is there already: give the path of a new folder"):
            require_new_folder(path)
        with pytest.raises(FileExistsError), creating_folder(path):
            pass
    assert (tmp_path / "empty" / "a.txt").read_text() == "a"


def abandoned(path: Path) -> Path:
    """What a process that was killed while it wrote `path` has left."""
    left = path.with_name(f".{path.name}-{uuid4().hex}")
    left.write_text("half")
    return left


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path, others = tmp_path / "a[1].txt", [tmp_path / ".a[1].txt-old", tmp_path / ".b.txt-notes"]
    for other in others:
        other.write_text("not a temporary file")
    of_another = abandoned(tmp_path / "b.txt")
    abandoned(path)
    abandoned(path)
    (tmp_path / f".a[1].txt-{uuid4().hex}").mkdir()
    with replacing(path) as alive:
        alive.write_text("first")
        with replacing(path) as later:
            later.write_text("second")
            assert alive.read_text() == "first", "its writer lives"
    assert sorted(tmp_path.iterdir()) == sorted([path, of_another, *others])
    with creating_folder(tmp_path / "b.txt") as folder:
        (folder / "c").touch()
    assert not of_another.exists()


@pytest.mark.parametrize("write", ["json", "checkpoint", "safetensors", "folder"])
def test_a_full_disk_is_named(tmp_path: Path, write: str) -> None:
    path, large = tmp_path / "a", torch.zeros(10**5)
    writers: dict[str, Callable[[], None]] = {
        "json": lambda: write_json(path, {"a": "x" * 400_000}),
        "checkpoint": lambda: AtomicCheckpointIO().save_checkpoint({"a": large}, path),
        "safetensors": lambda: write_safetensors(path, {"a": large}, {}),
        "folder": lambda: _write_in_folder(path),
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OSError, match=rf"cannot write {path}: File too large \(\d+ MiB are free on the disk at /"):
            writers[write]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def _write_in_folder(path: Path) -> None:
    with creating_folder(path) as folder:
        (folder / "a").write_bytes(bytes(400_000))

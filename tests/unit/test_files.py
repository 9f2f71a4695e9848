from __future__ import annotations

from pathlib import Path

import pytest

from lightning_action.files import creating_folder, replacing, require_new_folder, write_json


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

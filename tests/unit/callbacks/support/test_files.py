"""Files that take another's place."""

from __future__ import annotations

from pathlib import Path

from lightning_action.callbacks.support.files import replacing


def test_replacing_keeps_the_kind_of_file_and_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with replacing(tmp_path / "a.mp4") as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".mp4")
        temporary.touch()
        assert not (tmp_path / "a.mp4").exists()
    assert (tmp_path / "a.mp4").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "usual"}

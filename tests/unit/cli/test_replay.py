"""The verb that plays a recorded session again; a whole way is tested beside `play`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_action.cli.replay import format_replayed, run_replay
from lightning_action.play.recording import RecordedEpisode, RecordedSession
from lightning_action.play.replaying import Replayed

SESSION = RecordedSession([RecordedEpisode(0, "", {}, ["a", "b"], [torch.zeros(4, 2)])], {}, "")


def test_a_folder_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which session. Name its folder first"):
        run_replay([])
    with pytest.raises(ValueError, match="which session"):
        run_replay(["--device=cpu"])
    with pytest.raises(FileNotFoundError, match="is no recorded session"):
        run_replay([str(tmp_path)])


def test_it_says_what_was_reproduced() -> None:
    assert format_replayed(SESSION, Replayed(5, 20, None, {})) == (
        "reproduced bit for bit: 5 blocks, 20 frames of 1 world"
    )
    moved = Replayed(5, 20, None, {"ckpt_path": ("a", "b"), "device": ("cuda:0", "cpu")})
    assert "  device     cuda:0   cpu\n" in format_replayed(SESSION, moved)
    assert "ckpt_path" not in format_replayed(SESSION, moved)


def test_it_names_what_differs() -> None:
    changes = {"generator": ("a" * 64, "b" * 64), "version of torch": ("2.8.0", None)}
    text = format_replayed(SESSION, Replayed(2, 8, "block 3 of world 0", changes))
    assert text.startswith("NOT THE SAME from block 3 of world 0 on; equal before: 2 blocks, 8 frames")
    assert "version of torch" in text and "2.8.0" in text and f"{'a' * 28} ... {'a' * 28}" in text
    unknown = format_replayed(SESSION, Replayed(2, 8, "block 3 of world 0", {}))
    assert "nothing that is known has changed" in unknown

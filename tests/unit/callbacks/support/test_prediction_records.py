"""What is known of written predictions."""

import os
from pathlib import Path
from typing import Any

import torch

from lightning_action.callbacks.support.prediction_records import (
    as_json,
    identify_checkpoint,
    read_record,
    whole_records,
    write_record,
)

SAMPLE: dict[str, Any] = {"sample_id": 3, "action": torch.arange(6.0).reshape(2, 3), "prompt": "größer"}


def test_a_checkpoint_is_a_file_or_a_folder(tmp_path: Path) -> None:
    assert identify_checkpoint(None) is None and identify_checkpoint(tmp_path / "none") is None
    (tmp_path / "sharded" / "part").mkdir(parents=True)
    for name, size in (("a", 3), ("part/b", 4)):
        (tmp_path / "sharded" / name).write_bytes(b"0" * size)
    later = 2**62  # ns since 1970
    os.utime(tmp_path / "sharded" / "part" / "b", ns=(later, later))
    expected = {"path": str((tmp_path / "sharded").resolve()), "bytes": 7, "modified": later}
    assert identify_checkpoint(tmp_path / "sharded") == expected
    assert identify_checkpoint(str(tmp_path / "sharded" / "a"))["bytes"] == 3  # type: ignore[index]


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    record = as_json({**SAMPLE, "generation": {"steps": (1, 2)}, "seed": None})
    assert record["action"] == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] and record["generation"] == {"steps": [1, 2]}
    write_record(tmp_path / "000003.json", record)
    assert read_record(tmp_path / "000003.json") == record
    assert len((tmp_path / "000003.json").read_text().splitlines()) == len(record) + 2


def test_records_of_files_that_are_not_as_they_were_do_not_count(tmp_path: Path) -> None:
    for index, size in enumerate((5, 4, None)):
        files = {"pt": f"{index:06d}.pt"}
        write_record(tmp_path / f"{index:06d}.json", {"sample_id": index, "files": files, "sizes": {"pt": 5}})
        if size is not None:
            (tmp_path / files["pt"]).write_bytes(b"0" * size)
    # An earlier version wrote no sizes.
    write_record(tmp_path / "000003.json", {"sample_id": 3, "files": {"pt": "000000.pt"}})
    assert [record["sample_id"] for record in whole_records(tmp_path)] == [0]

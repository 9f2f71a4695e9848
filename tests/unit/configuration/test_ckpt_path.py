"""What `--ckpt_path` may name; all else is named, and nothing is loaded from it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch

from lightning_action.configuration.ckpt_path import choose_checkpoint, require_checkpoint
from lightning_action.weights.safetensors_files import write_safetensors

RUN = {"state_dict": {"x": torch.zeros(2, 3)}, "pytorch-lightning_version": "2.6.6"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With files and folders that are checkpoints of a run and that are none."""
    torch.save(RUN, tmp_path / "whole.ckpt")
    torch.save(RUN["state_dict"], tmp_path / "bare.ckpt")
    torch.save({"state_dict": RUN["state_dict"]}, tmp_path / "joined.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({**RUN, "callbacks": os.system}, tmp_path / "code.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:-50])
    write_safetensors(tmp_path / "weights.safetensors", {"x": torch.zeros(2)}, {})
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / "renamed.ckpt").write_bytes((tmp_path / "weights.safetensors").read_bytes())
    for name in ("empty", "shards", "run", "run/checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "shards" / ".metadata").touch()
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / ".killed.ckpt-old").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bare.ckpt", "is no checkpoint of a run .it holds x, no state_dict.*--model.pretrained"),
        ("joined.ckpt", "holds a state_dict, but not what Lightning writes besides.*configs/fsdp.yaml.*`export`"),
        ("list.ckpt", "is no checkpoint of a run .it holds a list"),
        ("code.ckpt", "cannot be read as tensors and plain values alone, it asks for posix.system"),
        ("cut.ckpt", "is not a whole checkpoint"),
        ("weights.safetensors", "is a safetensors file.*--model.pretrained.*--model.adapter"),
        ("renamed.ckpt", "is a safetensors file"),
        ("index.json", "is a JSON file.*--model.pretrained"),
        ("empty", "is a folder, and not one of shards.*name a checkpoint"),
        ("run", "is a folder, and not one of shards.*did you mean '.*run/checkpoints/last.ckpt'"),
        ("run/checkpoints/lost.ckpt", "no checkpoint at .*there is last.ckpt"),
        ("nowhere/last.ckpt", "no checkpoint at .*there is no folder"),
        ("killed.ckpt", "was killed while it replaced it.*give it its name back"),
    ],
)
def test_what_is_no_checkpoint_is_named(name: str, message: str, folder: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        require_checkpoint("fit", str(folder / name))


def test_a_fit_does_not_go_on_from_weights_alone(folder: Path) -> None:
    """Lightning's consolidate_checkpoint and `save_weights_only` write such files, which can be predicted with."""
    torch.save({**RUN, "optimizer_states": []}, folder / "all.ckpt")
    require_checkpoint("fit", str(folder / "all.ckpt"))
    torch.save({name: value for name, value in RUN.items() if name != "optimizer_states"}, folder / "weights.ckpt")
    require_checkpoint("predict", str(folder / "weights.ckpt"))
    with pytest.raises(ValueError, match="weights.ckpt' holds weights and no states of optimizers"):
        require_checkpoint("fit", str(folder / "weights.ckpt"))


@pytest.mark.parametrize("verb", ["fit", "load_run"])
def test_what_was_put_together_from_shards_is_told(verb: str, folder: Path) -> None:
    with pytest.raises(ValueError, match="Name the folder of shards itself"):
        require_checkpoint(verb, str(folder / "joined.ckpt"))


def test_what_is_one_passes(folder: Path) -> None:
    torch.save(RUN, folder / "older.ckpt", _use_new_zipfile_serialization=False)
    for name in ("whole.ckpt", "older.ckpt", "shards"):
        require_checkpoint("predict", str(folder / name))
    torch.save({"state_dict": RUN["state_dict"], "action_schema": {}}, folder / "joined.ckpt")
    require_checkpoint("load_run", str(folder / "joined.ckpt"))


@pytest.mark.parametrize(
    ("ckpt_path", "message"),
    [
        (None, "predict needs trained weights: name them with --ckpt_path"),
        ("", "--ckpt_path is empty"),
        ("  ", "--ckpt_path is empty"),
        *[
            (path, "is not on this machine: download it")
            for path in ("registry", "REGISTRY:model:1", "http://localhost:9/last.ckpt", "s3://b/x", "memory://x")
        ],
    ],
)
def test_places_that_are_none(ckpt_path: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_checkpoint("predict", ckpt_path)


def test_words_stand_for_files(tmp_path: Path) -> None:
    """`last` is the newest of its names, `hpc` the one of the highest number."""
    for age, name in enumerate(("last.ckpt", "last-v1.ckpt", "lasting.ckpt", ".last.ckpt-old", "step=3.ckpt")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    for number in (2, 10):
        (tmp_path / f"hpc_ckpt_{number}.ckpt").touch()
    root = tmp_path
    assert choose_checkpoint("predict", "last", tmp_path, root) == str(tmp_path / "last-v1.ckpt")
    assert choose_checkpoint("fit", "hpc", tmp_path / "checkpoints", root) == str(tmp_path / "hpc_ckpt_10.ckpt")
    for path in (None, "a/last.ckpt"):
        assert choose_checkpoint("fit", path, tmp_path, root) == path


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_words_without_a_file(verb: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with pytest.raises(ValueError, match="only the process that trained knows.*checkpoints' there is no"):
        choose_checkpoint(verb, "best", folder, tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no hpc_ckpt_<number>.ckpt in '{tmp_path}'"):
        choose_checkpoint(verb, "hpc", folder, tmp_path)
    if verb == "fit":
        with pytest.warns(UserWarning, match=f"no last.ckpt in '{folder}' to go on from: the fit begins"):
            assert choose_checkpoint(verb, "last", folder, tmp_path) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if verb == "fit":
            folder.mkdir()
            (folder / ".last.ckpt-old").touch()
        with pytest.raises(FileNotFoundError, match="no checkpoint at '.*checkpoints/last.ckpt'"):
            require_checkpoint(verb, choose_checkpoint(verb, "last", folder, tmp_path))

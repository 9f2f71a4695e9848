"""Checkpoints that `--ckpt_path` may name: of a run, there, whole, and on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from lightning_action.atomic import set_aside
from lightning_action.weights.file_kinds import FileKind, kind_of
from lightning_action.weights.tensor_files import load_pickle

_LAST, _SUFFIX = ModelCheckpoint.CHECKPOINT_NAME_LAST, ModelCheckpoint.FILE_EXTENSION
_NUMBERED_LAST = re.compile(rf"{_LAST}(-v?\d+)?{re.escape(_SUFFIX)}")
_HPC = re.compile(r"hpc_ckpt_(\d+)\.ckpt")
# Beside the shards of a folder.
_INDEX_OF_SHARDS = ".metadata"
_ITS_WEIGHTS = "give weights alone as --model.pretrained, or those of an action adapter as --model.adapter"


def choose_checkpoint(verb: str, ckpt_path: str | None, folder: Path, default_root_dir: Path) -> str | None:
    """Find the path that one of Lightning's words stands for; other paths stay as they are.

    Args:
        verb: Verb that is run.
        ckpt_path: Path, None, or `last`, `best`, `hpc`.
        folder: Folder where the run keeps its checkpoints.
        default_root_dir: Folder of the run.

    Returns:
        None where a `fit` was asked to go on from a `last` that is not there: it begins.

    Raises:
        ValueError: The word is `best`, which only the process that trained knows.
        FileNotFoundError: The word is `hpc`, and no such checkpoint was saved.
    """
    if ckpt_path == "best":
        raise ValueError(f"only the process that trained knows which checkpoint is best: name it; {_there_is(folder)}")
    if ckpt_path == "hpc":
        found = {int(m[1]): path for path in default_root_dir.glob("*") if (m := _HPC.fullmatch(path.name))}
        if not found:
            raise FileNotFoundError(f"no hpc_ckpt_<number>.ckpt in {str(default_root_dir)!r}: name a checkpoint")
        return str(found[max(found)])
    if ckpt_path != "last":
        return ckpt_path
    last = [path for path in folder.glob(f"{_LAST}*{_SUFFIX}") if _NUMBERED_LAST.fullmatch(path.name)]
    if last:
        return str(max(last, key=lambda path: path.stat().st_mtime))
    wanted = folder / f"{_LAST}{_SUFFIX}"
    if verb == "fit" and not set_aside(wanted).exists():
        rank_zero_warn(f"There is no {wanted.name} in {str(folder)!r} to go on from: the fit begins.")
        return None
    return str(wanted)


def require_checkpoint(verb: str, ckpt_path: str | None) -> None:
    """Refuse to measure or generate with untrained weights, and what is not a checkpoint of a run.

    Raises:
        ValueError: No checkpoint was named, it is not on this machine, or not a whole one of a run.
        FileNotFoundError: The path names no checkpoint.
    """
    if ckpt_path is None:
        raise ValueError(
            f"{verb} needs trained weights: name them with --ckpt_path, for example runs/demo/checkpoints/last.ckpt, "
            "or with --model.pretrained and --model.adapter"
        )
    if not ckpt_path.strip():
        raise ValueError("--ckpt_path is empty: name a checkpoint, for example runs/demo/checkpoints/last.ckpt")
    if "://" in ckpt_path or ckpt_path.partition(":")[0].lower() == "registry":
        raise ValueError(f"{ckpt_path!r} is not on this machine: download it, and give the path of the file")
    path = Path(ckpt_path)
    if not path.exists():
        _raise_missing(path)
    if path.is_dir():
        _require_shards(path)
    else:
        _require_file_of_a_run(verb, path)


def _raise_missing(path: Path) -> None:
    if (left := set_aside(path)).exists():
        raise FileNotFoundError(
            f"no checkpoint at {str(path)!r}: a run that was killed while it replaced it left it as {str(left)!r}; "
            "give it its name back"
        )
    there = _there_is(path.parent) if path.parent.is_dir() else f"there is no folder {str(path.parent)!r}"
    raise FileNotFoundError(f"no checkpoint at {str(path)!r}: {there}; train one with `fit`, or correct --ckpt_path")


def _require_shards(folder: Path) -> None:
    if (folder / _INDEX_OF_SHARDS).is_file():
        return
    inside = [path for place in (folder, folder / "checkpoints") for path in sorted(place.glob(f"*{_SUFFIX}"))]
    meant = f": did you mean {str(inside[-1])!r}?" if inside else ": name a checkpoint of the run"
    raise ValueError(f"{str(folder)!r} is a folder, and not one of shards, which hold {_INDEX_OF_SHARDS}{meant}")


def _require_file_of_a_run(verb: str, path: Path) -> None:
    kind = kind_of(path)
    if kind is not FileKind.PICKLE:
        raise ValueError(f"{str(path)!r} is {kind.value}, which is no checkpoint of a run: {_ITS_WEIGHTS}")
    held = load_pickle(path)
    if not isinstance(held, dict) or "state_dict" not in held:
        found = ", ".join(map(str, list(held)[:3])) if isinstance(held, dict) else f"a {type(held).__name__}"
        raise ValueError(f"{str(path)!r} is no checkpoint of a run (it holds {found}, no state_dict): {_ITS_WEIGHTS}")
    if "pytorch-lightning_version" not in held and (verb != "load_run" or "action_schema" not in held):
        raise ValueError(
            f"{str(path)!r} holds a state_dict, but not what Lightning writes besides: was it put together from shards "
            "by another program? Name the folder of shards itself (fit and its like with configs/fsdp.yaml), or make a "
            f"file of it with `export`, for --model.pretrained; {_ITS_WEIGHTS}"
        )
    if verb == "fit" and "optimizer_states" not in held:
        raise ValueError(
            f"{str(path)!r} holds weights and no states of optimizers, so that no fit can go on from it: name the "
            "checkpoint or the folder of shards that it was made from, or begin a new fit from its weights, which "
            "`export` makes a file of, with --model.pretrained"
        )


def _there_is(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob(f"*{_SUFFIX}") if not path.name.startswith("."))
    return f"in {str(folder)!r} there is {', '.join(names) or f'no *{_SUFFIX}'}"

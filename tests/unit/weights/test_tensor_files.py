"""Every kind of file gives the same tensors, and what is not whole is refused."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_action.weights import tensor_files
from lightning_action.weights.safetensors_files import write_safetensors
from lightning_action.weights.tensor_files import LazyTensors, read_tensors

TENSORS = {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.ones(5).bfloat16(), "step": torch.tensor(7)}


def write_shards(folder: Path, shards: dict[str, dict[str, Tensor]], metadata: dict[str, str] | None = None) -> Path:
    for file, tensors in shards.items():
        write_safetensors(folder / file, tensors, metadata or {"format": "pt"})
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, names in shards.items() for name in names}}))
    return index


def two_shards() -> dict[str, dict[str, Tensor]]:
    names = list(TENSORS)
    return {
        "model-00001-of-00002.safetensors": {name: TENSORS[name] for name in names[:1]},
        "model-00002-of-00002.safetensors": {name: TENSORS[name] for name in names[1:]},
    }


def safetensors(folder: Path) -> Path:
    write_safetensors(folder / "x.safetensors", TENSORS, {})
    return folder / "x.safetensors"


def shards(folder: Path) -> Path:
    return write_shards(folder, two_shards())


def pickled(folder: Path) -> Path:
    torch.save(TENSORS, folder / "model.pt")
    return folder / "model.pt"


def old_pickled(folder: Path) -> Path:
    torch.save(TENSORS, folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


def same(one: LazyTensors, other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in other
    )


@pytest.mark.parametrize("write", [safetensors, shards, pickled, old_pickled])
def test_every_kind_gives_the_same_tensors_from_the_file_and_from_its_folder(
    tmp_path: Path, write: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    for remap_bytes in (2**28, 0):
        monkeypatch.setattr(tensor_files, "_REMAP_BYTES", remap_bytes)
        for source in (path, str(path), tmp_path):
            assert same(read_tensors(source), TENSORS)


def test_files_are_mapped_anew_after_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    (tmp_path / "x").touch()

    def counting(path: Path) -> dict[str, Tensor]:
        opened.append(path)
        return {"a": torch.zeros(25), "b": torch.zeros(25)}

    monkeypatch.setattr(tensor_files, "_REMAP_BYTES", 399)
    entries = tensor_files._MappedFile(tmp_path / "x", counting).entries
    for _ in range(4):
        entries["a"].read()
    assert len(opened) == 1
    entries["b"].read()
    assert len(opened) == 2


@pytest.mark.parametrize("write", [safetensors, pickled])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, write: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "_REMAP_BYTES", 0)
    path = write(tmp_path)
    tensors = read_tensors(path)
    assert tensors["step"] == 7
    os.utime(path, ns=(0, 1))
    with pytest.raises(RuntimeError, match=f"{path} changed while it was read"):
        tensors["step"]


def test_nested_dictionaries_become_dotted_names(tmp_path: Path) -> None:
    content = {
        "generator": {"model.a": torch.zeros(2)},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "step": 3,
    }
    torch.save(content, tmp_path / "model.pt")
    assert same(
        read_tensors(tmp_path), {"generator.model.a": torch.zeros(2), "optimizer.state.0.exp_avg": torch.ones(3)}
    )


def test_a_transformer_folder_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    shards(tmp_path / "transformer")
    assert same(read_tensors(tmp_path), TENSORS)


def test_nothing_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no weights at {tmp_path}/none: give the path"):
        read_tensors(tmp_path / "none")
    (tmp_path / "vae").mkdir()
    with pytest.raises(FileNotFoundError, match=f"no checkpoint in {tmp_path}: expected .*; it holds vae"):
        read_tensors(tmp_path)


def test_a_folder_with_several_checkpoints_is_refused(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.safetensors"):
        write_safetensors(tmp_path / name, TENSORS, {})
    with pytest.raises(ValueError, match=r"holds 2 checkpoints \(a.safetensors, b.safetensors\) and no single index"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("write", [safetensors, pickled, old_pickled])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, write: Callable[[Path], Path], kept: float) -> None:
    path = write(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=f"{path} (is not a whole|cannot be read)"):
        read_tensors(path)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_garbage_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bytes(range(256)) * 10)
    with pytest.raises(ValueError, match=f"{name} (is not a whole|cannot be read)"):
        read_tensors(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("write", [pickled, old_pickled, safetensors])
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    whole, draw = path.read_bytes(), random.Random(0)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(whole[: draw.randint(1, len(whole))])
        for _ in range(draw.randint(0, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            dict(read_tensors(path))
            outcomes.add("read")
        except ValueError as error:
            assert str(path) in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, new_format: bool) -> None:
    trace = tmp_path / "trace"
    torch.save({"a": torch.zeros(2), "b": Evil(trace)}, tmp_path / "x.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(
        ValueError, match=r"plain values alone, it asks for \w+\.mkdir: .*save its state dict"
    ) as refusal:
        read_tensors(tmp_path / "x.pt")
    assert "weights_only" not in str(refusal.value), "no advice to turn the protection off"
    assert not trace.exists()
    pickle.loads(pickle.dumps(Evil(trace)))
    assert trace.exists()


def test_a_sharded_training_checkpoint_is_pointed_to_the_tool_that_joins_it(tmp_path: Path) -> None:
    for name in ("meta.pt", "__0_0.distcp"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="is a sharded checkpoint: .*main.py export .* --format wan"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), {}, {"step": 3}])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (lambda tensor: tensor.to("meta"), "state_dict.b in .*x.pt is a tensor without values, on the meta device"),
        (lambda tensor: tensor.to_sparse(), "state_dict.b in .*x.pt is a tensor sparse or nested"),
        # From torch 2.15 on, nested ones are no plain values.
        (
            lambda tensor: torch.nested.nested_tensor([tensor], layout=torch.jagged),
            "x.pt (is a tensor sparse or nested|cannot be read as tensors and plain values alone)",
        ),
    ],
)
def test_a_tensor_that_is_no_ordinary_one_is_refused(
    tmp_path: Path, odd: Callable[[torch.Tensor], torch.Tensor], told: str
) -> None:
    torch.save({"state_dict": {"a": torch.ones(2, 2), "b": odd(torch.ones(2, 2))}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=told):
        read_tensors(tmp_path / "x.pt")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    for path in (index, tmp_path):
        with pytest.raises(FileNotFoundError, match="shard model-00002-of-00002.safetensors of .* is missing"):
            read_tensors(path)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path)
    path = tmp_path / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors is not a whole"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("change", ["a tensor in two shards", "a tensor in none"])
def test_shards_that_do_not_hold_what_the_index_lists_are_refused(tmp_path: Path, change: str) -> None:
    index = shards(tmp_path)
    first = dict(two_shards()["model-00001-of-00002.safetensors"])
    if change == "a tensor in two shards":
        first["head.bias"] = TENSORS["head.bias"]
    else:
        del first["head.weight"]
        first["other"] = torch.zeros(1)
    write_safetensors(tmp_path / "model-00001-of-00002.safetensors", first, {"format": "pt"})
    with pytest.raises(ValueError, match=r"shard model-00001-of-00002.safetensors holds other tensors than .* lists"):
        read_tensors(index)


def test_shards_of_two_checkpoints_are_refused(tmp_path: Path) -> None:
    index = shards(tmp_path)
    path = tmp_path / "model-00002-of-00002.safetensors"
    write_safetensors(path, two_shards()[path.name], {"format": "pt", "fingerprint": "another"})
    with pytest.raises(
        ValueError, match=r"several checkpoints: model-00001-of-00002\.safetensors say .* says .*another"
    ):
        read_tensors(index)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"x.safetensors.index.json (is no index of shards|lists no tensors)"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "a/../../x.safetensors",
        "/etc/x.safetensors",
        "..\\x.safetensors",
        "C:\\x",
        "",
        "..",
        3,
        None,
    ],
)
def test_an_index_that_points_outside_its_folder_is_refused(tmp_path: Path, shard: object) -> None:
    folder = tmp_path / "model"
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(2)}, {})
    write_safetensors(folder / "y.safetensors", {"b": torch.ones(2)}, {})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"b": "y.safetensors", "a": shard}}))
    for path in (folder, index):
        with pytest.raises(ValueError, match="index.json points to .*: expected the names of files in its own folder"):
            read_tensors(path)


def test_a_shard_may_be_a_link_only_where_its_index_is_one_to_the_same_folder(tmp_path: Path) -> None:
    write_shards(tmp_path / "blobs", two_shards())
    for folder, linked in (("snapshot", "*"), ("model", "*.safetensors")):
        (tmp_path / folder).mkdir()
        for file in (tmp_path / "blobs").glob("*"):
            if file.match(linked):
                (tmp_path / folder / file.name).symlink_to(file)
            else:
                (tmp_path / folder / file.name).write_bytes(file.read_bytes())
    assert same(read_tensors(tmp_path / "snapshot"), TENSORS)
    with pytest.raises(ValueError, match="is a link to .*blobs/.*, out of the folder of the index"):
        read_tensors(tmp_path / "model")


@pytest.mark.parametrize(
    "index",
    [
        "pytorch_model.bin.index.json",
        "pytorch_model.bin.index.fp16.json",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "Model.SAFETENSORS.index.json",
    ],
)
def test_every_name_of_an_index_is_known(tmp_path: Path, index: str) -> None:
    suffix = ".bin" if ".bin" in index else ".safetensors"
    weight_map = {name: f"model-{number}{suffix}" for number, name in enumerate(TENSORS)}
    for name, file in weight_map.items():
        if suffix == ".bin":
            torch.save({name: TENSORS[name]}, tmp_path / file)
        else:
            write_safetensors(tmp_path / file, {name: TENSORS[name]}, {})
    (tmp_path / index).write_text(json.dumps({"weight_map": weight_map}))
    for path in (tmp_path, tmp_path / index):
        assert same(read_tensors(path), TENSORS)


@pytest.mark.parametrize("plain", ["model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize("variant", ["model.fp16.safetensors", "model.safetensors.index.fp16.json"])
def test_of_two_variants_the_plain_one_is_read(tmp_path: Path, plain: str, variant: str) -> None:
    for name, value in ((plain, 1.0), (variant, 2.0)):
        tensors = {"a": torch.full((2,), value)}
        if name.endswith(".json"):
            write_safetensors(tmp_path / f"shard-{value}.safetensors", tensors, {})
            (tmp_path / name).write_text(json.dumps({"weight_map": {"a": f"shard-{value}.safetensors"}}))
        else:
            write_safetensors(tmp_path / name, tensors, {})
    assert read_tensors(tmp_path)["a"][0] == 1.0
    (tmp_path / plain).unlink()
    (tmp_path / "shard-1.0.safetensors").unlink(missing_ok=True)
    assert read_tensors(tmp_path)["a"][0] == 2.0


@pytest.mark.parametrize("pair", [("transformer", "transformer_2"), ("high_noise_model", "low_noise_model")])
def test_of_two_experts_one_has_to_be_chosen(tmp_path: Path, pair: tuple[str, str]) -> None:
    for number, name in enumerate(pair):
        write_safetensors(tmp_path / name / "model.safetensors", {"a": torch.full((2,), float(number))}, {})
    with pytest.raises(ValueError, match=rf"holds 2 generators \({', '.join(pair)}\).*the path of its folder"):
        read_tensors(tmp_path)
    for number, name in enumerate(pair):
        assert read_tensors(tmp_path / name)["a"][0] == number

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_action.data.action_file import ActionFileDataModule, read_actions, read_image


@pytest.mark.parametrize(
    "text",
    ["0.5,-1\n2,3\n", "dx,dy\n0.5,-1\n2,3\n", "\ufeff0.5,-1\n\n2,3\n", "time,1st\n0.5,-1\n2,3\n"],
    ids=["numbers", "header", "byte_order_mark", "odd_header"],
)
def test_csv(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert read_actions(path).tolist() == [[0.5, -1.0], [2.0, 3.0]]


@pytest.mark.parametrize("dtype", ["float64", "int32", "bool"])
def test_npy(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.array([[0, 1, 1], [1, 0, 1]], dtype))
    actions = read_actions(tmp_path / "a.npy")
    assert actions.dtype == torch.float32 and actions.tolist() == [[0, 1, 1], [1, 0, 1]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "1,2\n", "read from .npy or .csv files, got a.txt"),
        ("a.csv", "1,2\n3\n", r"lines of \[1, 2\] values"),
        ("a.csv", "1,2\n3,x\n", "not a number"),
        ("a.csv", "", "holds no action rows"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_actions(tmp_path / name)


def test_arrays_of_another_shape_or_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3, 1)))
    with pytest.raises(ValueError, match=r"numbers \[rows, columns\], got float64 of shape \[2, 3, 1\]"):
        read_actions(path)
    np.save(path, np.array([["a", "b"]]))
    with pytest.raises(ValueError, match=r"must hold numbers"):
        read_actions(path)
    with pytest.raises(FileNotFoundError, match="no actions at"):
        read_actions(tmp_path / "nothing.csv")


def test_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    image = read_image(path, None)
    assert image.shape == (3, 5, 7)
    assert torch.equal(((image + 1) * 127.5).round().byte().permute(1, 2, 0), torch.from_numpy(pixels))
    with pytest.raises(ValueError, match="is 5 x 7, expected 7 x 5"):
        read_image(path, (7, 5))
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(ValueError, match="not a picture"):
        read_image(tmp_path / "b.png", None)
    with pytest.raises(FileNotFoundError, match="no image at"):
        read_image(tmp_path / "c.png", None)


def test_batch(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((8, 2)))
    Image.new("RGB", (7, 5)).save(tmp_path / "a.png")
    with_image = ActionFileDataModule(str(tmp_path / "a.npy"), str(tmp_path / "a.png"), "a red disc", sample_id=3)
    with_image.setup("predict")
    (batch,) = with_image.predict_dataloader()
    assert batch["video"].shape == (1, 1, 3, 5, 7) and batch["action"].shape == (1, 8, 2)
    assert batch["prompt"] == ["a red disc"] and batch["sample_id"].tolist() == [3]
    without_image = ActionFileDataModule(str(tmp_path / "a.npy"), frame_size=(16, 24))
    without_image.setup("predict")
    (batch,) = without_image.predict_dataloader()
    assert batch["frame_size"].tolist() == [[16, 24]] and "video" not in batch
    with pytest.raises(ValueError, match="start image .* or the size"):
        ActionFileDataModule(str(tmp_path / "a.npy")).setup("predict")
    with pytest.raises(ValueError, match="for predict only, not for test"):
        with_image.setup("test")

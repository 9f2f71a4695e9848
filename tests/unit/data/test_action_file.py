from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_action.data.action_file import ActionFileDataModule


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

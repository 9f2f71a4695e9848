from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch

from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld
from lightning_action.play.starts import starts_of_data, starts_of_frames
from lightning_action.run import build_datamodule

CONFIG = """
data:
  class_path: lightning_action.SpriteDataModule
  init_args:
    world: {class_path: lightning_action.MovingSpriteWorld, init_args: {image_size: 16, sprite_radius: 3.0}}
    num_latents: 4
    test_size: 3
"""


def set_up(folder: Path, config: str) -> L.LightningDataModule:
    (folder / "config.yaml").write_text(config)
    data = build_datamodule(folder / "config.yaml")
    data.setup("test")
    return data


def test_given_frames_come_round_again() -> None:
    frames = torch.rand(3, 5, 3, 8, 6)
    starts = starts_of_frames(frames)
    assert torch.equal(starts(7)[0], frames[1]) and starts(7)[1] == ""
    with pytest.raises(ValueError, match="\\[N, T, 3, H, W\\]"):
        starts_of_frames(frames[0])


def test_worlds_begin_at_the_samples_of_a_run(tmp_path: Path) -> None:
    starts = starts_of_data(set_up(tmp_path, CONFIG), "test", 2, 4)
    data = SpriteDataModule(MovingSpriteWorld(image_size=16, sprite_radius=3.0), num_latents=4, test_size=3)
    batch = data.dataset("test").batch([0, 1, 2])
    for number, index in ((0, 0), (5, 2)):
        frames, prompt = starts(number)
        assert torch.equal(frames, batch["video"][index, :5] * 0.5 + 0.5) and prompt == batch["prompt"][index]


def test_data_without_clips_is_refused(tmp_path: Path) -> None:
    data = set_up(tmp_path, "data: {class_path: lightning.pytorch.LightningDataModule}")
    with pytest.raises(ValueError, match="LightningDataModule has no clips"):
        starts_of_data(data, "test", 1, 4)

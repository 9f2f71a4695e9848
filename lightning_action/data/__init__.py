"""DataModules and the simulators."""

from lightning_action.data.action_file import ActionFileDataModule
from lightning_action.data.panning_world import PanningCameraWorld
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld

__all__ = ["ActionFileDataModule", "MovingSpriteWorld", "PanningCameraWorld", "SpriteDataModule"]

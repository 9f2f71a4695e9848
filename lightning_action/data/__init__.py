"""DataModules and the simulator."""

from lightning_action.data.action_file import ActionFileDataModule
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld

__all__ = ["ActionFileDataModule", "MovingSpriteWorld", "SpriteDataModule"]

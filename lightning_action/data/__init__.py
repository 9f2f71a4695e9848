"""DataModules and the simulators.

Other rooms export nothing. These names had their class paths here before `lightning_action` exported them, and keep
them for whoever types such a path behind `--data` or `--data.help`: saved configurations are brought up to date.
"""

from lightning_action.data.action_file import ActionFileDataModule
from lightning_action.data.panning_world import PanningCameraWorld
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld

__all__ = ["ActionFileDataModule", "MovingSpriteWorld", "PanningCameraWorld", "SpriteDataModule"]

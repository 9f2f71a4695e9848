"""Weights in and out of files: every format that checkpoints of this family come in."""

from lightning_action.weights.fit import check_fits, load_strictly
from lightning_action.weights.names import from_diffusers_name, to_diffusers_name
from lightning_action.weights.release import find_release_file
from lightning_action.weights.safetensors_files import read_metadata, read_safetensors, write_safetensors
from lightning_action.weights.tensor_files import LazyTensors, read_tensors

__all__ = [
    "LazyTensors",
    "check_fits",
    "find_release_file",
    "from_diffusers_name",
    "load_strictly",
    "read_metadata",
    "read_safetensors",
    "read_tensors",
    "to_diffusers_name",
    "write_safetensors",
]

"""Weights in and out of files: every format that checkpoints of this family come in."""

from lightning_action.weights.checkpoint import GeneratorCheckpoint, read_action_projection, read_generator
from lightning_action.weights.fingerprint import fingerprint, identity, require_fingerprint
from lightning_action.weights.fit import check_fits, copy_all, copy_into, load_strictly, require_same, require_weights
from lightning_action.weights.low_rank import (
    add_changes,
    is_low_rank,
    low_rank_changes,
    read_low_rank,
    require_numbers,
    scales,
)
from lightning_action.weights.names import few, from_diffusers_name, inside, to_diffusers_name
from lightning_action.weights.release import find_release_file
from lightning_action.weights.safetensors_files import read_metadata, read_safetensors, write_safetensors
from lightning_action.weights.shards import write_shards
from lightning_action.weights.size import detect_size, generator_arguments, require_num_heads
from lightning_action.weights.tensor_files import (
    LazyTensor,
    LazyTensors,
    as_lazy,
    checkpoints_in,
    find_weights,
    load_pickle,
    read_header,
    read_tensors,
)
from lightning_action.weights.values import is_finite, require_finite

__all__ = [
    "GeneratorCheckpoint",
    "LazyTensor",
    "LazyTensors",
    "add_changes",
    "as_lazy",
    "check_fits",
    "checkpoints_in",
    "copy_all",
    "copy_into",
    "detect_size",
    "few",
    "find_release_file",
    "find_weights",
    "fingerprint",
    "from_diffusers_name",
    "generator_arguments",
    "identity",
    "inside",
    "is_finite",
    "is_low_rank",
    "load_pickle",
    "load_strictly",
    "low_rank_changes",
    "read_action_projection",
    "read_generator",
    "read_header",
    "read_low_rank",
    "read_metadata",
    "read_safetensors",
    "read_tensors",
    "require_fingerprint",
    "require_finite",
    "require_num_heads",
    "require_numbers",
    "require_same",
    "require_weights",
    "scales",
    "to_diffusers_name",
    "write_safetensors",
    "write_shards",
]

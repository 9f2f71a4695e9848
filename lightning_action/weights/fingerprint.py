"""What tells one base model from another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and values of a generator's tensors, rounded to bfloat16.

    It covers every value of every tensor, so that one changed weight changes it, up to what bfloat16 can tell apart: a
    model in float32 and its copy in bfloat16 are the same base. The order of the tensors, the device and the files they
    come from do not matter. It takes about 2 s for a billion parameters, and the memory of one tensor.

    Args:
        tensors: in the original Wan names, as `read_generator` and `CausalWanModel.state_dict` give them.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().to(torch.bfloat16).contiguous()
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

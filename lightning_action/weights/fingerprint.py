"""What tells one base model from another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


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
        tensor = tensors[name].detach()
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        values = whole.cpu().to(torch.bfloat16).contiguous()
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_fingerprint(tensors: Mapping[str, Tensor], header: Mapping[str, str], source: str) -> None:
    """Refuse a file that does not hold what was written into it, as far as its header says what that was.

    Raises:
        ValueError: `tensors` have another fingerprint than the header says.
    """
    expected = header.get("fingerprint")
    if expected is not None and fingerprint(tensors) != expected:
        raise ValueError(
            f"{source} does not hold the weights that were written into it (their fingerprint is {expected[:12]}...): "
            "it was damaged or changed since; copy or export it again"
        )

"""Fingerprints that tell one base model from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Compute SHA-256 over the names, shapes and values of a generator's tensors, rounded to bfloat16.

    It covers every value of every tensor, so that one changed weight changes it, up to what bfloat16 can tell apart: a
    model in float32 and its copy in bfloat16 are the same base. The order of the tensors, the device and the files they
    come from do not matter. It takes about 2 s for a billion parameters, and the memory of one tensor.

    Args:
        tensors: Tensors in the original Wan names, as `read_generator` and `CausalWanModel.state_dict` give them.
    """
    digest = hashlib.sha256()
    for name, values in _whole(tensors):
        _add(digest, f"{name} {list(values.shape)}", values.to(torch.bfloat16))
    return digest.hexdigest()


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Compute SHA-256 over names, types, shapes and every bit of the values, which tells a damaged copy of a file."""
    digest = hashlib.sha256()
    for name, values in _whole(tensors):
        _add(digest, f"{name} {values.dtype} {list(values.shape)}", values)
    return digest.hexdigest()


def identity(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Describe the tensors of a file in its header, which `require_fingerprint` looks at when they are loaded."""
    return {"fingerprint": fingerprint(tensors), "checksum": checksum(tensors)}


def _whole(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if isinstance(tensor, DTensor):
            yield name, tensor.full_tensor().cpu()
        elif hasattr(tensor, "__tensor_flatten__"):  # several tensors in one, as torchao quantizes
            parts, _ = tensor.__tensor_flatten__()
            yield from _whole({f"{name}.{part}": getattr(tensor, part) for part in parts})
        else:
            yield name, tensor.cpu()


def _add(digest: hashlib._Hash, head: str, values: Tensor) -> None:
    digest.update(f"{head}\n".encode())
    digest.update(values.contiguous().flatten().view(torch.uint8).numpy().data)


def require_fingerprint(tensors: Mapping[str, Tensor], header: Mapping[str, str], source: str) -> None:
    """Refuse a file that does not hold what was written into it, as far as its header says what that was.

    Raises:
        ValueError: `tensors` have another checksum than the header says, or, in older files, another fingerprint.
    """
    compute = checksum if "checksum" in header else fingerprint
    expected = header.get(compute.__name__)
    if expected is not None and compute(tensors) != expected:
        raise ValueError(
            f"{source} does not hold the weights that were written into it (their {compute.__name__} is "
            f"{expected[:12]}...): it was damaged or changed since; copy or export it again"
        )

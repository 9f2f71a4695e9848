"""Kinds of files by their first bytes: suffixes are wrong too often."""

from __future__ import annotations

from enum import Enum
from pathlib import Path


class FileKind(Enum):
    """The kinds of file that weights are read from."""

    SAFETENSORS = "a safetensors file"
    PICKLE = "a file of torch.save"
    INDEX = "a JSON file, as an index of shards is"


_AGAIN = "it is the answer of a server and not the file: fetch the file again"
_UNPACK = "unpack it, and give the file inside"
# How files begin that are taken for weights, what they are, and what to do.
_OTHERS = (
    (
        b"GGUF",
        "a GGUF file, whose weights are packed for another program: take the safetensors file of the same model in "
        "bf16, fp16 or fp32",
    ),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, which stands for the file: fetch the file itself with `git lfs pull`",
    ),
    (b"<", f"a web page or XML: {_AGAIN}"),
    (b"\x1f\x8b", f"a gzip archive: {_UNPACK}"),
    (b"BZh", f"a bzip2 archive: {_UNPACK}"),
    (b"\xfd7zXZ", f"an xz archive: {_UNPACK}"),
    (b"7z\xbc\xaf", f"a 7z archive: {_UNPACK}"),
    (b"Rar!", f"a RAR archive: {_UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"a zstd archive: {_UNPACK}"),
    (b"\x89HDF", "an HDF5 file: save the tensors as safetensors"),
    (b"\x93NUMPY", "a numpy array without names: save the tensors as safetensors"),
)
# The longest header that safetensors itself reads.
_MOST_HEADER_BYTES = 100_000_000


def kind_of(path: Path) -> FileKind:
    """Tell the kind of a file of weights.

    Raises:
        ValueError: The file is empty, cut off in its first bytes, or of another kind; the message says what to do.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise ValueError(f"{path} is not a whole checkpoint (it is empty): fetch or write it again")
    # A header's length may begin as a pickle or a zip archive does, so this comes first.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _MOST_HEADER_BYTES:
        return FileKind.SAFETENSORS
    if start.startswith(b"PK\x03\x04") or (start[0] == 0x80 and start[1:2] in b"\x02\x03\x04\x05"):
        return FileKind.PICKLE
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith((b"{", b"[")):
        return FileKind.INDEX
    for beginning, told in _OTHERS:
        if text.startswith(beginning):
            raise ValueError(f"{path} is {told}")
    if start[257:262] == b"ustar":
        raise ValueError(f"{path} is a tar archive: {_UNPACK}")
    raise ValueError(
        f"{path} is not a whole checkpoint, or none at all: expected safetensors or a file of torch.save, it begins "
        f"with {start[:12]!r}: fetch or write it again"
    )

"""The one door for tables of numbers that a user gives."""

from __future__ import annotations

import codecs
import csv
import io
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NUMBER = re.compile(r"[+-]?([0-9]+[.,]?[0-9]*|[.,][0-9]+)([eE][+-]?[0-9]+)?")
# Words that programs write where a value is missing or is no name.
_NO_NAME = re.compile(
    r"[+-]?(nan|inf|infinity|na|n/a|null|none|true|false|0x[0-9a-f]+|[.,]?[0-9][0-9._,e+-]*)", re.IGNORECASE
)
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NPY, _ZIP = b"\x93NUMPY", b"PK"

_Row = tuple[int, list[str]]


def read_actions(path: str | Path) -> Tensor:
    """Read action rows `[rows, columns]`, float32 and finite, from `.npy` or `.csv`.

    A csv has one row a line, separated by commas, semicolons or tabs; beside the latter two, decimals may have a comma.
    Its first line is names if every cell of it has letters.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is of another kind, or not a table of finite numbers; the message has line and column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no actions at {path}: give the path of a .npy or .csv file")
    readers = {".npy": _read_npy, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise ValueError(f"actions are read from .npy or .csv files, got {path.name}")
    return torch.from_numpy(readers[path.suffix.lower()](path))


def _read_npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        start = file.read(len(_NPY))
        if start != _NPY:
            kind = "an .npz archive" if start.startswith(_ZIP) else "empty" if not start else "another kind of file"
            raise ValueError(f"{path} is no .npy file but {kind}: save the rows with numpy.save")
        file.seek(0)
        try:
            table = np.load(file, allow_pickle=False)
        except Exception as error:  # broken headers raise whatever their parser meets
            raise ValueError(f"{path} is cut off, broken, or holds objects ({error}): save numbers again") from error
    if table.ndim != 2 or not table.size or table.dtype.kind not in "fiub":
        raise ValueError(f"{path} must hold numbers [rows, columns], got {table.dtype} of shape {list(table.shape)}")
    with np.errstate(over="ignore"):
        numbers: np.ndarray = table.astype(np.float32)
    for row, column in np.argwhere(~np.isfinite(numbers))[:1]:
        raise ValueError(f"{path}, row {row}, column {column} (from 0 on): {table[row, column]} is no finite float32")
    return numbers


def _read_csv(path: Path) -> np.ndarray:
    rows, separator = _split(path)
    named = bool(rows) and all(map(_is_name, rows[0][1]))
    if not rows[named:]:
        raise ValueError(f"{path} holds no action rows")
    width = len(rows[0][1])
    for line, cells in rows:
        if len(cells) != width:
            raise ValueError(f"{path}, line {line}: {len(cells)} values, expected {width} as on line {rows[0][0]}")
    if named:
        rows = rows[1:]
    else:
        _refuse_numbered_names(path, rows)
    numbers = [[_number(path, line, i, cell, separator) for i, cell in enumerate(cells, 1)] for line, cells in rows]
    marks = {mark for _, cells in rows for cell in cells for mark in ".," if mark in cell}
    if len(marks) > 1:
        raise ValueError(f"{path} has decimals with a point and decimals with a comma: write all with a point")
    return np.array(numbers, np.float32)


def _split(path: Path) -> tuple[list[_Row], str]:
    """Split a text into lines that are not blank, with their numbers from 1 on, and what separates their cells."""
    content = path.read_bytes()
    if content.startswith((_NPY, _ZIP)):
        raise ValueError(f"{path} is no text but an .npy, .npz or other packed file: give it its own suffix")
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in {encoding} ({error}): save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{path} holds zero bytes, as UTF-16 without its mark does: save it as UTF-8")
    separator = next((mark for mark in ";\t" if mark in text), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    return [(line, cells) for line, cells in rows if cells not in ([], [""])], separator


def _is_name(cell: str) -> bool:
    return any(map(str.isalpha, cell)) and not _NO_NAME.fullmatch(cell)


def _refuse_numbered_names(path: Path, rows: list[_Row]) -> None:
    """Refuse a first line of column numbers, as pandas writes them: nothing tells it from a first action.

    One column of whole numbers that begins with 0 is taken as it is: classes look like that.
    """
    (line, first), others = rows[0], [cell for _, cells in rows[1:] for cell in cells]
    numbered = bool(others) and first == [str(index) for index in range(len(first))]
    if numbered and (len(first) > 1 or not all(map(_WHOLE.fullmatch, others))):
        raise ValueError(
            f"{path}, line {line}: {','.join(first)} may be numbers of columns or an action: leave out the former "
            "(pandas: to_csv(header=False, index=False)), or write the latter with decimals (0.0)"
        )


def _number(path: Path, line: int, column: int, cell: str, separator: str) -> float:
    where = f"{path}, line {line}, column {column}"
    if not cell:
        raise ValueError(f"{where}: empty, expected a number (a separator too many?)")
    if not _NUMBER.fullmatch(cell) or (separator == "," and "," in cell):
        raise ValueError(f"{where}: {cell!r} is not a number; a first line of names has letters in every cell")
    value = float(cell.replace(",", "."))
    if abs(value) > torch.finfo(torch.float32).max:
        raise ValueError(f"{where}: {cell} is no finite float32")
    return value

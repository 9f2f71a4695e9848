"""The one door for tables of numbers that a user gives."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

TABLES = (".npy", ".npz", ".csv", ".json", ".parquet")

_Row = tuple[int, list[str]]


@dataclass(frozen=True)
class Table:
    """Numbers of a file.

    Args:
        rows: Finite numbers, `[rows, columns]`, float32.
        names: Names of the columns, if the file has any.
        is_whole: True if the file has them as whole numbers, not as decimals.
    """

    rows: np.ndarray
    names: list[str] | None = None
    is_whole: bool = False


def read_actions(path: str | Path) -> Tensor:
    """Read action rows `[rows, columns]`, float32 and finite, as `read_table` does."""
    return torch.from_numpy(read_table(path).rows)


def read_table(path: str | Path) -> Table:
    """Read a table of numbers from `.npy`, `.npz`, `.csv`, `.json` or `.parquet`.

    A csv has one row a line, separated by commas, semicolons or tabs; beside the latter two, decimals may have a comma.
    Its first line is names if every cell of it has letters. An npz, JSON object or parquet holds the rows under
    `action` or `actions`, or holds nothing else; a JSON list may have objects for rows, and a parquet a column for each
    number.

    Raises:
        FileNotFoundError: The path names no file.
        ValueError: The file is of another kind, or not a table of finite numbers; the message has line and column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no actions at {path}: give the path of a {' or '.join(TABLES)} file")
    readers = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv, ".json": _read_json, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise ValueError(f"actions are read from {', '.join(TABLES)} files, got {path.name}")
    return readers[path.suffix.lower()](path)


def read_named_actions(path: Path) -> dict[str, Tensor]:
    """Read action rows `[rows, columns]`, float32, of several videos: an `.npz` file with an array for each.

    Raises:
        ValueError: The file is no archive of tables of finite numbers.
    """
    return {name: torch.from_numpy(_finite(f"{path}, {name}", rows)) for name, rows in _arrays_of(path).items()}


def _read_npz(path: Path) -> Table:
    rows = _of_actions(path, _arrays_of(path))
    return Table(_finite(path, rows), is_whole=rows.dtype.kind in "iu")


def _arrays_of(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # broken archives raise whatever their parser meets
        raise ValueError(f"{path} is cut off, broken, or holds objects ({error}): save numbers again") from error


def _read_json(path: Path) -> Table:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    rows = _of_actions(path, content) if isinstance(content, dict) else content
    names = None
    if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
        names = list(rows[0])
        if any(list(row) != names for row in rows):
            raise ValueError(f"{path}: rows have different names, expected {names} in all")
        rows = [list(row.values()) for row in rows]
    try:
        table = np.array(rows, np.float64)
        is_whole = np.array(rows).dtype.kind in "iu"
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no rows of numbers, all of one length ({error})") from error
    return Table(_finite(path, table), names, is_whole)


def _read_parquet(path: Path) -> Table:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        columns = parquet.read_table(path).to_pydict()
    except arrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read as parquet ({error}): it is cut off or broken") from error
    lists = [name for name in ("action", "actions") if name in columns]
    names = None if lists else list(columns)
    values = columns[lists[0]] if lists else list(zip(*columns.values(), strict=True))
    try:
        table = np.array(values, np.float64)
        is_whole = np.array(values).dtype.kind in "iu"
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds more than numbers ({error}): put the rows into a column `action`") from error
    return Table(_finite(path, table), names, is_whole)


def _of_actions(path: Path, found: Mapping[str, Any]) -> Any:
    """Choose what holds the rows out of several things by their names."""
    names = [name for name in ("action", "actions") if name in found] or list(found)
    if len(names) != 1:
        raise ValueError(f"{path} holds {', '.join(found) or 'nothing'}, expected the rows under `action`")
    return found[names[0]]


def _finite(path: Path | str, table: Any) -> np.ndarray:
    """Bring a table to float32, with one column for a plain list of numbers."""
    table = np.asarray(table)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or not table.size or table.dtype.kind not in "fiub":
        raise ValueError(f"{path} must hold numbers [rows, columns], got {table.dtype} of shape {list(table.shape)}")
    with np.errstate(over="ignore"):
        numbers: np.ndarray = table.astype(np.float32)
    for row, column in np.argwhere(~np.isfinite(numbers))[:1]:
        raise ValueError(f"{path}, row {row}, column {column} (from 0 on): {table[row, column]} is no finite float32")
    return numbers


def _read_npy(path: Path) -> Table:
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
    if table.ndim != 2:
        raise ValueError(f"{path} must hold numbers [rows, columns], got {table.dtype} of shape {list(table.shape)}")
    return Table(_finite(path, table), is_whole=table.dtype.kind in "iu")


def _read_csv(path: Path) -> Table:
    rows, separator = _split(path)
    named = bool(rows) and all(map(_is_name, rows[0][1]))
    if not rows[named:]:
        raise ValueError(f"{path} holds no action rows")
    width = len(rows[0][1])
    for line, cells in rows:
        if len(cells) != width:
            raise ValueError(f"{path}, line {line}: {len(cells)} values, expected {width} as on line {rows[0][0]}")
    first = rows[0][1]
    if named:
        rows = rows[1:]
    else:
        _refuse_numbered_names(path, rows)
    numbers = [[_number(path, line, i, cell, separator) for i, cell in enumerate(cells, 1)] for line, cells in rows]
    marks = {mark for _, cells in rows for cell in cells for mark in ".," if mark in cell}
    if len(marks) > 1:
        raise ValueError(f"{path} has decimals with a point and decimals with a comma: write all with a point")
    is_whole = all(map(_WHOLE.fullmatch, (cell for _, cells in rows for cell in cells)))
    return Table(np.array(numbers, np.float32), first if named else None, is_whole)


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


def read_records(path: Path) -> list[dict[str, str]]:
    """Read a table of texts with named columns from `.csv`, `.json` or `.jsonl`; whole numbers become texts.

    Raises:
        ValueError: The file is of another kind, or a row is no record of texts.
    """
    if path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            names = next(reader, [])
            rows = [(reader.line_num, cells) for cells in reader if any(cells)]
        for line, cells in rows:
            if len(cells) != len(names):
                raise ValueError(f"{path}, line {line}: {len(cells)} cells, expected {len(names)} as in {names}")
        return [dict(zip(names, cells, strict=True)) for _, cells in rows]
    if path.suffix.lower() not in (".json", ".jsonl"):
        raise ValueError(f"a manifest is a .csv, .json or .jsonl file, got {path.name}")
    text = path.read_text(encoding="utf-8-sig")
    try:
        lines = [line for line in text.splitlines() if line.strip()]
        found = json.loads(text) if path.suffix.lower() == ".json" else [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    records = found if isinstance(found, list) else [found]
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or not all(isinstance(value, str | int | None) for value in record.values()):
            raise ValueError(f"{path}, entry {number}: expected an object of texts, got {record!r}")
    return [{name: str(value) if isinstance(value, int) else value for name, value in each.items()} for each in records]

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_action.recordings.tables import read_actions


@pytest.mark.parametrize(
    "text",
    ["0.5,-1\n2,3\n", "dx,dy\n0.5,-1\n2,3\n", "\ufeff0.5,-1\n\n2,3\n", "time,1st\n0.5,-1\n2,3\n"],
    ids=["numbers", "header", "byte_order_mark", "odd_header"],
)
def test_csv(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert read_actions(path).tolist() == [[0.5, -1.0], [2.0, 3.0]]


@pytest.mark.parametrize("dtype", ["float64", "int32", "bool"])
def test_npy(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.array([[0, 1, 1], [1, 0, 1]], dtype))
    actions = read_actions(tmp_path / "a.npy")
    assert actions.dtype == torch.float32 and actions.tolist() == [[0, 1, 1], [1, 0, 1]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "1,2\n", r"read from .npy, .npz, .csv, .json, .parquet files, got a.txt"),
        ("a.csv", "1,2\n3\n", r"a.csv, line 2: 1 values, expected 2"),
        ("a.csv", "1,2\n3,x\n", "not a number"),
        ("a.csv", "", "holds no action rows"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_actions(tmp_path / name)


def test_arrays_of_another_shape_or_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3, 1)))
    with pytest.raises(ValueError, match=r"numbers \[rows, columns\], got float64 of shape \[2, 3, 1\]"):
        read_actions(path)
    np.save(path, np.array([["a", "b"]]))
    with pytest.raises(ValueError, match=r"must hold numbers"):
        read_actions(path)
    with pytest.raises(FileNotFoundError, match="no actions at"):
        read_actions(tmp_path / "nothing.csv")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("0.5;-1\n2;3\n", "utf-8"),
        ("dx;dy\n0,5;-1\n2;3\n", "utf-8"),
        ("0,5\t-1\n2\t3", "utf-16"),
        ('"0.5" , "-1"\r\n\r\n" 2",3.\r\n'.replace(" , ", ","), "utf-32"),
    ],
)
def test_what_spreadsheets_write(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "a.CSV"
    path.write_bytes(text.encode(encoding))
    assert read_actions(path).tolist() == [[0.5, -1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",\n1,2\n", "line 1, column 1: empty"),
        ("a,b,c\n1,2\n3,4\n", "line 2: 2 values, expected 3"),
        ("x;y,z\n1,2\n3,4\n", "line 2: 1 values, expected 2"),
        (",dx\n0,2\n", "line 1, column 1: empty"),
        ("x,1\n1,2\n", "line 1, column 1: 'x' is not a number"),
        ("nan,NaN\n1,2\n", "line 1, column 1: 'nan' is not"),
        ("True,False\n1,2\n", "line 1, column 1: 'True' is not"),
        ("0xA,0x1\n1,2\n", "line 1, column 1: '0xA' is not"),
        ("a,b\n\n1,-inf\n", "line 3, column 2: '-inf' is not"),
        ("1,1_0\n", "line 1, column 2: '1_0' is not"),
        ("1,1e39\n", "line 1, column 2: 1e39 is no finite"),
        ("1,2,\n3,4,\n", "line 1, column 3: empty"),
        ("0.1;0,2\n", "decimals with a point and decimals with a comma"),
        ("1;1,000.5\n", "line 1, column 2: '1,000.5' is not"),
        ('1,"0,5"\n', "line 1, column 2: '0,5' is not"),
        ('1,2\n1,"2\n', "line 2: "),
        ("0,1\n0.1,0.2\n", "line 1: 0,1 may be numbers of columns"),
        ("0\n0.1\n", "line 1: 0 may be numbers of columns"),
        ("\0001,2\n", "holds zero bytes"),
        ("a,b\n", "holds no action rows"),
    ],
)
def test_cells_are_refused_where_they_stand(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        read_actions(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("0\n1\n2\n", [[0], [1], [2]]),
        ("0\n-1\n1\n", [[0], [-1], [1]]),
        ("dx,dy\n0,1\n0.5,2\n", [[0, 1], [0.5, 2]]),
        ("n,e1\n0,1\n", [[0, 1]]),
    ],
    ids=["classes", "signed", "after_names", "odd_names"],
)
def test_a_first_action_may_count_from_zero(tmp_path: Path, text: str, rows: list[list[float]]) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert read_actions(tmp_path / "a.csv").tolist() == rows


@pytest.mark.parametrize("dtype", [">f8", ">i2", "<f2"])
def test_arrays_in_any_order(tmp_path: Path, dtype: str) -> None:
    rows = np.asfortranarray(np.arange(6).reshape(3, 2).astype(dtype))
    with (tmp_path / "a.NPY").open("wb") as file:
        np.save(file, rows)
    assert read_actions(tmp_path / "a.NPY").tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[None, 1]]), "holds objects"),
        (np.array([[1j, 2]]), "got complex128"),
        (np.zeros(3), r"shape \[3\]"),
        (np.array(1.0), r"shape \[\]"),
        (np.zeros((2, 3), [("x", "f4")]), "must hold numbers"),
        (np.zeros((0, 2)), r"shape \[0, 2\]"),
        (np.array([[0, 1], [2, np.nan]]), r"row 1, column 1 .*nan is no finite"),
        (np.array([[0, 1e39]]), "row 0, column 1 .*is no finite"),
    ],
)
def test_arrays_that_are_no_table(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=rf"a\.npy.*{message}"):
        read_actions(tmp_path / "a.npy")


def test_cut_and_renamed_files(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", np.ones((3, 2)))
    np.savez(tmp_path / "many.npz", a=np.ones((3, 2)))
    whole, many = (tmp_path / "whole.npy").read_bytes(), (tmp_path / "many.npz").read_bytes()
    files = {
        "empty.npy": (b"", "empty"),
        "cut.npy": (whole[:-5], "cut off"),
        "header.npy": (whole[:20], "cut off"),
        "bracket.npy": (whole.replace(b"}", b" ", 1), "broken"),
        "many.npy": (many, "npz archive"),
        "text.npy": (b"1,2\n", "another kind"),
        "array.csv": (whole, "is no text"),
        "latin.csv": ("\u00e4,b\n1,2\n".encode("latin-1"), "not text in utf-8"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} .*{message}"):
            read_actions(tmp_path / name)

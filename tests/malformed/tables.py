"""Tables: values, headers, quotes, encodings, damaged bytes, types and options at random."""

import bz2
import csv
import datetime
import decimal
import gzip
import io
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedjax_sim.data.datasets import from_table
from malformed import Case

_NAMES = ["x", "k", "y", "id", "", "y ", "Y", "x,1", '"', "Unnamed: 0", "x" * 5000, "\x1b[31m", "ü"]
_VALUES = [
    *("1", "2", "0", "-1", "1.0", "01", "1,5", "1.5", "1,037", "1.037,5", "5%", "$5", "5 kg"),
    *(
        "nan",
        "inf",
        "-inf",
        "1e999",
        "1e-999",
        "1e38",
        "4e38",
        "0x1F",
        "1_0",
        "\uff19",
        "\u22125",
        "(5)",
    ),
    *("", " ", "?", "NA", "NULL", "none", "true", "FALSE", "yes", "No", "t", "f", "a", "b", "A"),
    *("2024-05-31", "2024-02-30", "31.5.2024", "5/31/24", "20240531", "7:30", "25:99", "May 5"),
    *("2024-05-31T12:00Z", "9999-12-31", "0000-01-01", '"', '""', "a\nb", "a,b", "a;b", "\x00"),
    *("\x1b[31m", "\u202e", "[/red]", "x" * 300, "x" * 140_000, "9" * 400, "=1+1", "{}", "\\N"),
]
_COLUMNS: list[list[Any]] = [
    *([1, 2], [1.5, None], [float("nan"), float("inf")], [True, False], ["a", "b"], ["1", "x"]),
    *([2**63 - 1, -(2**63)], [None, None], [b"a", b"\xff"], [[1], [2]], [{"a": 1}, {"a": 2}]),
    *([datetime.date.max, datetime.date.min], [datetime.datetime.max, None]),
    *(
        [datetime.time.max, datetime.time.min],
        [datetime.timedelta(99_999_999), datetime.timedelta(0)],
    ),
    *([decimal.Decimal("1e20"), decimal.Decimal("1.5")], ["x" * 10_000, ""]),
]
_OPTIONS: dict[str, list[Any]] = {
    "feature_columns": [["x"], ["k", "x"], [], "x", ["nowhere"], ["y"], [1], ["x", "x"]],
    "categorical_columns": [["x"], ["k"], ["y"], ["x", "x"], "k", [None]],
    "numeric_columns": [["x"], ["k"], ["y"], ["x", "k"], 3],
    "group_columns": [["k"], ["x"], ["y"], ["k", "k"]],
    "ignore_columns": [["k"], ["x"], ["y"], [""], ["nowhere"]],
    "task": ["classification", "regression", "auto", "multilabel", None],
    "scaling": ["minmax", "standard", "none", "max", 3],
    "fill": ["refuse", "drop", "mean", "median", "", 0],
    "missing": [[], ["NA"], [""], "NA", [3], ["1", "2", "a", "b"]],
    "decimal": [",", ".", ";", "", 3],
    "thousands": [",", ".", " ", "'", "", "1", "ab", 3],
    "date_format": ["%d.%m.%Y", "%Y%m%d", "%", "%Q", "", "%d.%m.%Y %H:%M %z", 3],
    "delimiter": [",", ";", "\t", "\\t", "", '"', "\n", "ü", "ab", 3],
    "encoding": ["latin-1", "utf-16", "utf-7", "idna", "unicode_escape", "rot13", "", "x", 3],
    "test_fraction": [0.5, 0, 1, -1, float("nan"), "0.5", None],
    "seed": [1, -1, 1.5, "0", None],
    "name": ["mine", "", 3],
    "label_column": ["x", "nowhere", "", 3, None],
}
_ENCODINGS = ["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252", "utf-32"]


def cases(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """Text files, Parquet files and tables in memory; what is accepted is finite and complete."""
    while True:
        options = _options(rng)
        if rng.random() < 0.7:
            name, content = _file(rng, _damaged(rng, _text(rng)))
            path = folder / name
        elif rng.random() < 0.5:
            path, content = folder / "table.parquet", _damaged(rng, _parquet(rng))
        else:
            table = _table(rng)
            yield Case(
                f"{table.schema.types} {options}",
                lambda table=table, options=options: _check(table, options),
            )
            continue
        yield Case(
            f"{path.name} {content[:200]!r} {options}",
            lambda path=path, content=content, options=options: _read(path, content, options),
        )


def _options(rng: np.random.Generator) -> dict[str, Any]:
    number = rng.choice([0, 1, 2, 3], p=[0.5, 0.3, 0.1, 0.1])
    names = rng.choice([*_OPTIONS], number, replace=False).tolist()
    picked = {name: _OPTIONS[name][rng.integers(len(_OPTIONS[name]))] for name in names}
    return {"label_column": "y", **picked}


def _file(rng: np.random.Generator, content: bytes) -> tuple[str, bytes]:
    """A name, and what the file holds: mostly as the name says."""
    endings: dict[str, Any] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    ending = str(rng.choice(["", "", "", *endings]))
    if rng.random() < 0.9:
        content = endings.get(ending, bytes)(content)
    return str(
        rng.choice(["t.csv", "t.tsv", "t.dat", "t.zst"], p=[0.8, 0.1, 0.05, 0.05])
    ) + ending, content


def _text(rng: np.random.Generator) -> bytes:
    columns = rng.choice([1, 2, 3, 4], p=[0.05, 0.45, 0.25, 0.25])
    names = ["y", "x", "k", "z"][:columns]
    if rng.random() < 0.2:
        names[rng.integers(columns)] = str(rng.choice(_NAMES))
    kinds = [_kind(rng) for _ in names]
    rows = [[str(rng.choice(kind)) for kind in kinds] for _ in range(rng.integers(0, 12))]
    for row in rows:
        if rng.random() < 0.02:
            row[rng.integers(len(row)) :] = rng.choice(_VALUES, rng.integers(0, 3)).tolist()
    file = io.StringIO()
    mark, end = str(rng.choice([*",,,;\t|:"])), str(rng.choice(["\n", "\r\n", "\r"]))
    csv.writer(file, delimiter=mark, lineterminator=end).writerows([names, *rows])
    return file.getvalue().encode(str(rng.choice(_ENCODINGS)), "replace")


def _kind(rng: np.random.Generator) -> list[str]:
    """Values that a column holds: those of one form, with another at times."""
    forms = [["1", "2.0", "-3"], ["a", "b"], ["no", "Yes"], ["2024-05-31", "2024-06-01"], ["5%"]]
    usual = forms[rng.integers(len(forms))] * int(rng.random() < 0.8)
    return usual + rng.choice(_VALUES, rng.choice([0, 1], p=[0.7, 0.3]) if usual else 2).tolist()


def _damaged(rng: np.random.Generator, content: bytes) -> bytes:
    damaged = bytearray(content)
    while damaged and rng.random() < 0.2:
        damaged[rng.integers(len(damaged))] = rng.integers(256)
    if rng.random() < 0.1:
        del damaged[rng.integers(len(damaged) + 1) :]
    return bytes(damaged)


def _table(rng: np.random.Generator) -> pa.Table:
    columns = {}
    for name in ["y", "x", "k"][: rng.integers(2, 4)]:
        values = _COLUMNS[rng.integers(len(_COLUMNS))]
        column = pa.array([values[i] for i in rng.integers(0, 2, 12)])
        if pa.types.is_string(column.type) and rng.random() < 0.3:
            column = column.dictionary_encode()
        columns[name] = column
    return pa.table(columns)


def _parquet(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    pq.write_table(_table(rng), file)
    return file.getvalue()


def _read(path: Path, content: bytes, options: dict[str, Any]) -> None:
    path.write_bytes(content)
    _check(path, options)


def _check(source: Any, options: dict[str, Any]) -> None:
    data = from_table(source, **options)
    for examples in (data.train, data.test):
        assert np.isfinite(examples["x"]).all() and np.isfinite(examples["y"]).all()
        assert examples["x"].shape == (len(examples["y"]), len(data.feature_names))
        assert data.task == "regression" or examples["y"].max() < len(data.class_names)

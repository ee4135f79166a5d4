"""Data with a folder or a file for each client."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.data._files import StrPath, existing, read_bytes, read_npy, read_npz, reading
from fedjax_sim.data.datasets.by_client import divided, fields, gather, label_field
from fedjax_sim.data.datasets.dataset import Dataset

_SPLITS = ("train", "test")
Arrays = dict[str, np.ndarray]


def from_folders(
    folder: StrPath,
    *,
    x: str | None = None,
    y: str | None = None,
    name: str | None = None,
    **options: Any,
) -> Dataset:
    """Read a folder that holds a folder, or a file, for each client.

    A client's folder holds train.npz and perhaps test.npz, with arrays x and y each; or train.csv
    and perhaps test.csv; or single arrays: x.npy and y.npy, or x_train.npy, y_train.npy, x_test.npy
    and y_test.npy. A client's file, such as anna.npz or anna.csv, is read like its train.npz or
    train.csv; the arrays of an .npz may also be called x_train, y_train, x_test and y_test. If no
    client has test examples, a part of each client's is kept for the test.

    Args:
        folder: its folders and files are the clients, and name them.
        x, y: the arrays with inputs [n, ...] and labels [n], by default as in `from_hdf5`. Of a CSV
            file, whose first line names the columns, y is the column with the labels; all others
            must be numbers and are the inputs, as they are.
        name: by default the folder's name.
        **options: as `from_clients`.

    Returns:
        A Dataset with the group "client", in the order of the names.

    Raises:
        FileNotFoundError: no such folder, or no clients in it.
        ValueError: a damaged file, a client without data, columns that differ among clients, hold
            text or lack values; and as `from_clients`. Names the file.
    """
    source = existing("folder", folder)
    places = sorted(
        place
        for place in (source.iterdir() if source.is_dir() else ())
        if not place.name.startswith(".") and (place.is_dir() or place.suffix in (".npz", ".csv"))
    )
    if not places:
        raise FileNotFoundError(
            f"folder: {source} holds no clients; they are folders, .npz files or .csv files"
        )
    columns: list[str] = []
    clients: dict[str, dict[str, Arrays]] = {}
    for place in places:
        client = place.name if place.is_dir() else place.stem
        if client in clients:
            raise ValueError(f"{source} has two clients {client!r}, {place} is one; rename it")
        clients[client] = _read(place, x, y, columns)
    if columns:
        options = {"feature_names": columns} | options

    def of(split: str) -> dict[str, Arrays]:
        return {client: splits[split] for client, splits in clients.items() if split in splits}

    return divided(
        gather(source, of("train")),
        gather(source, of("test"), may_be_empty=True) if of("test") else None,
        name=name or source.resolve().name,
        **options,
    )


def _read(place: Path, x: str | None, y: str | None, columns: list[str]) -> dict[str, Arrays]:
    """The inputs and labels of a client by split; `columns` are those of all CSV files."""
    if place.suffix == ".csv" and place.is_file():
        return {"train": _read_csv(place, y, columns)}
    found: dict[str, Arrays] = {}
    tables = [place / f"{split}.csv" for split in _SPLITS if (place / f"{split}.csv").exists()]
    if tables:
        return {table.stem: _read_csv(table, y, columns) for table in tables}
    if place.is_file():
        found = _by_split(read_npz(read_bytes(place), place))
    else:
        for split in _SPLITS:
            file = place / f"{split}.npz"
            if file.exists():
                found[split] = read_npz(read_bytes(file), file)
        if not found:
            single = {file.stem: file for file in sorted(place.glob("*.npy"))}
            found = _by_split({key: read_npy(read_bytes(f), f) for key, f in single.items()})
    if not found.get("train"):
        raise ValueError(
            f"{place} holds no data of a client: train.npz, train.csv, or x.npy and y.npy"
        )
    chosen = {split: fields(f"{place} ({split})", each, x, y) for split, each in found.items()}
    return {
        split: {"x": found[split][inputs], "y": found[split][labels]}
        for split, (inputs, labels) in chosen.items()
    }


def _by_split(arrays: Mapping[str, np.ndarray]) -> dict[str, Arrays]:
    """Arrays x_train, y_test ... as x and y of each split; others are of the first."""
    found: dict[str, Arrays] = {}
    for key, array in arrays.items():
        stem, _, split = key.rpartition("_")
        if split not in _SPLITS:
            stem, split = key, "train"
        found.setdefault(split, {})[stem] = array
    return found


def _read_csv(path: Path, y: str | None, columns: list[str]) -> Arrays:
    from pyarrow import BufferReader, csv, types

    content = read_bytes(path)
    with reading(path):
        table = csv.read_csv(BufferReader(content))
    names = table.column_names
    label = label_field(path, names, y)
    inputs = [name for name in names if name != label]
    columns += [] if columns else inputs
    if sorted(inputs) != sorted(columns):
        raise ValueError(
            f"{path} has the columns {inputs} beside {label!r}, but the first file {columns}"
        )
    for name in columns:
        kind = table[name].type
        if table[name].null_count or not (types.is_integer(kind) or types.is_floating(kind)):
            what = f"{table[name].null_count} missing values" if table[name].null_count else kind
            raise ValueError(
                f"{path}: column {name!r} has {what}, but all columns beside the label must be "
                "numbers. For text and gaps put all clients into one table, with a column that "
                "names the client, and use from_csv with group_columns"
            )
    if table[label].null_count:
        raise ValueError(f"{path}: column {label!r} has {table[label].null_count} missing values")
    x = [table[name].to_numpy().astype(np.float32) for name in columns]
    labels = table[label].to_pylist()
    return {"x": np.stack(x, axis=1), "y": np.array(labels)}

"""Data with a folder or a file for each client."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.data._files import StrPath, existing, read_bytes, read_npy, read_npz
from fedjax_sim.data.datasets import _table_files
from fedjax_sim.data.datasets._table_files import Table
from fedjax_sim.data.datasets.by_client import (
    client_name,
    divided,
    fields,
    gather,
    held_out,
    label_field,
)
from fedjax_sim.data.datasets.dataset import Dataset
from fedjax_sim.data.datasets.tables import from_table

_SPLITS = ("train", "test")
_TABLES = (".csv", ".tsv", ".parquet")
_CLIENT = "client"
Arrays = dict[str, np.ndarray]


def from_folders(
    folder: StrPath,
    *,
    x: str | None = None,
    y: str | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    name: str | None = None,
    **options: Any,
) -> Dataset:
    """Read a folder that holds a folder, or a file, for each client.

    A client's folder holds train.npz and perhaps test.npz, with arrays x and y each; or train.csv
    and perhaps test.csv, or .tsv or .parquet, with the same columns for all clients; or single
    arrays: x.npy and y.npy, or x_train.npy, y_train.npy, x_test.npy and y_test.npy. A client's
    file, such as anna.npz or anna.csv, is read like its train.npz or train.csv; the arrays of an
    .npz may also be called x_train, y_train, x_test and y_test.

    Args:
        folder: its folders and files are the clients, and name them.
        x, y: the arrays with inputs [n, ...] and labels [n], by default as in `from_hdf5`. Of a
            table, y is the column with the labels.
        test_fraction, seed: as in `from_clients`, if no client has test examples.
        name: by default the folder's name.
        **options: as `from_clients`; for tables as `from_table`, which reads those of all clients
            as one: categories and scales are those of all training rows.

    Returns:
        A Dataset with the group "client", in the order of the names.

    Raises:
        FileNotFoundError: no such folder, or no clients in it.
        ValueError: a damaged file, a client without data, columns that differ among clients; and
            as `from_clients` and `from_table`. Names the file.
    """
    source = existing("folder", folder)
    clients = _clients(source)
    name = name or source.resolve().name
    tables = {client: found for client, found in _table_paths(clients).items() if found}
    if tables:
        lacking = next((client for client in clients if client not in tables), None)
        if lacking is not None:
            raise ValueError(
                f"{source}: client {next(iter(tables))!r} has a table, but {lacking!r} none; give "
                "all the same kind of file"
            )
        divide = {"test_fraction": test_fraction, "seed": seed}
        return _from_tables(source, tables, y, divide, name=name, **options)
    arrays = {client: _arrays(place, x, y) for client, place in clients.items()}

    def of(split: str) -> dict[str, Arrays]:
        return {client: splits[split] for client, splits in arrays.items() if split in splits}

    return divided(
        gather(source, of("train")),
        gather(source, of("test"), may_be_empty=True) if of("test") else None,
        test_fraction=test_fraction,
        seed=seed,
        name=name,
        **options,
    )


def _clients(source: Path) -> dict[str, Path]:
    """Name -> folder or file of each client."""
    clients: dict[str, Path] = {}
    for place in sorted(source.iterdir() if source.is_dir() else ()):
        if place.name.startswith(".") or not (place.is_dir() or place.suffix in (".npz", *_TABLES)):
            continue
        client = client_name(source, place.name if place.is_dir() else place.stem)
        if client in clients:
            raise ValueError(f"{source} has two clients {client!r}: {clients[client]}, {place}")
        clients[client] = place
    if not clients:
        raise FileNotFoundError(
            f"folder: {source} holds no clients; they are folders, or files that end in .npz, "
            f"{', '.join(_TABLES)}"
        )
    return clients


def _arrays(place: Path, x: str | None, y: str | None) -> dict[str, Arrays]:
    """The inputs and labels of a client by split."""
    found: dict[str, Arrays] = {}
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


# ---------------------------------------------------------------- tables


def _table_paths(clients: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """Client -> split -> its table, where it has any."""
    return {
        client: {"train": place}
        if place.is_file() and place.suffix in _TABLES
        else {
            split: place / f"{split}{suffix}"
            for split in _SPLITS
            for suffix in _TABLES
            if (place / f"{split}{suffix}").exists()
        }
        for client, place in clients.items()
    }


def _from_tables(
    source: Path,
    tables: Mapping[str, Mapping[str, Path]],
    y: str | None,
    divide: Mapping[str, Any],
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    **options: Any,
) -> Dataset:
    read = {
        split: [
            (number, _table_files.read("folder", paths[split], delimiter, encoding))
            for number, paths in enumerate(tables.values())
            if split in paths
        ]
        for split in _SPLITS
    }
    if len(read["train"]) < len(tables):
        lacking = next(client for client, paths in tables.items() if "train" not in paths)
        raise ValueError(f"{source}: client {lacking!r} has no table for training")
    columns = read["train"][0][1].columns.column_names
    label = label_field(next(iter(tables.values()))["train"], columns, y)
    names = np.array([*tables])
    train, test = (
        _joined(source, names, split, columns) if split else None for split in read.values()
    )
    assert train is not None  # there is a client
    if test is None:
        owners = names[_numbers(train.columns[_CLIENT].to_pylist())]
        is_test = held_out(source, owners, **divide)
        train, test = train.filter(~is_test), train.filter(is_test)
    elif divide["test_fraction"] is not None:
        raise ValueError(
            f"test_fraction={divide['test_fraction']} is for data without test examples"
        )
    data = from_table(train, test, label_column=label, group_columns=[_CLIENT], **options)
    groups = (data.train_groups[_CLIENT], data.test_groups[_CLIENT])
    train_clients, test_clients = (names[_numbers(group.tolist())] for group in groups)
    return data._replace(train_groups={_CLIENT: train_clients}, test_groups={_CLIENT: test_clients})


def _joined(
    source: Path, names: np.ndarray, tables: Sequence[tuple[int, Table]], columns: Sequence[str]
) -> Table:
    """The tables of several clients as one, with a column that says whose a row is."""
    import pyarrow as pa

    parts = []
    for number, table in tables:
        own = table.columns.column_names
        if _CLIENT in own:
            raise ValueError(
                f"{source}: the table of {str(names[number])!r} has a column {_CLIENT!r}, but the "
                "files are the clients. Rename it, or put all rows into one table for from_table"
            )
        if sorted(own) != sorted(columns):
            raise ValueError(
                f"{source}: the table of {str(names[number])!r} has the columns "
                f"{_table_files.listed(own)}, but that of the first client "
                f"{_table_files.listed(columns)}"
            )
        # A name such as 007 is text here, whatever it looks like.
        owner = pa.array([f"client {number}"] * table.columns.num_rows)
        parts.append(table.columns.select(columns).append_column(_CLIENT, owner))
    try:
        whole = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"{source}: columns of one name are of unlike types: {error}") from error
    ends = np.cumsum([part.num_rows for part in parts])

    def where(row: int) -> str:
        at = int(np.searchsorted(ends, row, side="right"))
        return tables[at][1].at(row - int(ends[at]) + parts[at].num_rows)

    return Table(source.name, whole, where, np.arange(whole.num_rows))


def _numbers(owners: Sequence[str]) -> list[int]:
    return [int(owner.removeprefix("client ")) for owner in owners]

"""Data by client in SQLite databases, as FedJAX and TensorFlow Federated write them."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.data._files import StrPath, check_dtype, inflate, reading
from fedjax_sim.data.datasets._image_files import pictures
from fedjax_sim.data.datasets.by_client import client_name, divided, fields, gather, split_paths
from fedjax_sim.data.datasets.dataset import Dataset

Clients = Iterator[tuple[Any, dict[str, Any]]]


def from_sqlite(
    train_path: StrPath,
    test_path: StrPath | None = None,
    *,
    x: str | None = None,
    y: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    name: str | None = None,
    **options: Any,
) -> Dataset:
    """Read a SQLite database of FedJAX or of TensorFlow Federated, without either.

    FedJAX (`SQLiteFederatedData`) has a table `federated_data` of client_id, data (the client's
    arrays in msgpack, compressed by zlib) and num_examples, one file a split. TensorFlow Federated
    has a table `examples` of split_name, client_id and serialized_example_proto (a tf.train.Example
    each), and `client_metadata` with the number of examples of each client. Nothing is unpickled.

    Args:
        train_path: the database.
        test_path: FedJAX's for the test. By default the file beside it with "test" for "train" in
            its name, if there is one; else a part of each client's examples is kept.
        x, y: the fields with inputs and labels, by default as in `from_hdf5`.
        train_split, test_split: of TensorFlow Federated's database.
        name: by default the training file's name.
        **options: as `from_clients`. An Example holds numbers in a row: `x_shape` gives them their
            shape, and its pixels need `x_dtype="uint8"`.

    Returns:
        A Dataset with the group "client"; clients in FedJAX's order, or by name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, other tables, numbers of examples that are not those stated; and
            as `from_clients`.
    """
    train, test = split_paths(train_path, test_path)
    if test is None and test_split in _splits(train):
        test = train
    return divided(
        gather(train, _clients(train, train_split, x, y)),
        None if test is None else gather(test, _clients(test, test_split, x, y), may_be_empty=True),
        name=name or train.name.split(".")[0],
        **options,
    )


def _query(path: Path, text: str, *values: str) -> Iterator[tuple]:
    """The rows of a query, of a database that is never written to."""
    import sqlite3

    for log in (path.with_name(f"{path.name}-{kind}") for kind in ("wal", "journal")):
        if log.exists() and log.stat().st_size:
            raise ValueError(
                f"{path} is not whole: some of it is in {log.name}, as it is being written to or "
                "was not closed. Open and close it with the program that wrote it"
            )
    with reading(path):
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        with reading(path):
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            cursor = connection.execute(text, values)
        while True:
            with reading(path):
                row = cursor.fetchone()
            if row is None:
                return
            yield row
    finally:
        connection.close()


def _tables(path: Path) -> set[str]:
    """The tables of a database; a view is none, as it may compute anything."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
    return {str(name) for (name,) in _query(path, query)}


def _splits(path: Path) -> set[str]:
    """The splits of a database of TensorFlow Federated."""
    if "examples" not in _tables(path):
        return set()
    return {str(name) for (name,) in _query(path, "SELECT DISTINCT split_name FROM examples")}


def _clients(path: Path, split: str, x: str | None, y: str | None) -> Clients:
    tables = _tables(path)
    if "federated_data" in tables:
        return _of_fedjax(path, x, y)
    if "examples" in tables:
        return _of_tff(path, split, x, y, "client_metadata" in tables)
    raise ValueError(
        f"{path} has the tables {sorted(tables)}, but neither federated_data (of FedJAX) nor "
        "examples (of TensorFlow Federated)"
    )


def _check_count(where: str, stated: Any, found: int) -> None:
    if stated != found:
        raise ValueError(f"{where} has num_examples {stated!r:.50}, but {found} examples")


def _of_fedjax(path: Path, x: str | None, y: str | None) -> Clients:
    query = "SELECT client_id, data, num_examples FROM federated_data ORDER BY rowid"
    for client_id, data, stated in _query(path, query):
        where = f"{path}: client {client_name(path, client_id)!r}"
        if not isinstance(data, bytes):
            raise ValueError(f"{where} has data that are no bytes")
        arrays = _unpacked(inflate(data, where), where)
        inputs, labels = (arrays[field] for field in fields(where, arrays, x, y))
        _check_count(where, stated, len(labels))
        yield client_id, {"x": inputs, "y": labels}


def _unpacked(content: bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays of a client in FedJAX's msgpack: extension 1 is (shape, dtype, bytes)."""
    import msgpack

    def array(code: int, data: bytes) -> Any:
        if code == 4:  # (shape, list of bytes)
            shape, values = msgpack.unpackb(data, raw=True)
            return np.array(values, np.bytes_).reshape(shape)
        if code != 1:
            raise ValueError(f"no array, but extension {code}")
        shape, dtype, values = msgpack.unpackb(data, raw=True)
        kind = np.dtype(dtype.decode())
        check_dtype(kind, where)
        return np.frombuffer(values, kind).reshape(shape)

    with reading(where):
        arrays = msgpack.unpackb(content, ext_hook=array, raw=False)
    if not isinstance(arrays, dict) or not all(
        isinstance(field, str) and isinstance(values, np.ndarray) and values.ndim
        for field, values in arrays.items()
    ):
        raise ValueError(f"{where} is no dict of arrays by name")
    return arrays


def _of_tff(path: Path, split: str, x: str | None, y: str | None, has_counts: bool) -> Clients:
    stated: dict[Any, Any] = {}
    if has_counts:
        counts = "SELECT client_id, num_examples FROM client_metadata WHERE split_name = ?"
        stated = dict(_query(path, counts, split))
    query = (
        "SELECT client_id, serialized_example_proto FROM examples WHERE split_name = ? "
        "ORDER BY client_id, rowid"
    )
    for client_id, rows in itertools.groupby(_query(path, query, split), lambda row: row[0]):
        where = f"{path}: client {client_name(path, client_id)!r}"
        examples = [_example(content, where) for _, content in rows]
        if has_counts:
            _check_count(where, stated.pop(client_id, None), len(examples))
        names = fields(where, examples[0], x, y)
        for number, example in enumerate(examples):
            lacking = [name for name in names if name not in example]
            if lacking:
                raise ValueError(f"{where}: example {number} has no field {lacking[0]!r}")
        inputs, labels = ([example[name] for example in examples] for name in names)
        yield client_id, {"x": pictures(inputs, where), "y": _single(labels)}
    for client_id, count in stated.items():
        _check_count(f"{path}: client {client_name(path, client_id)!r}", count, 0)


def _example(content: Any, where: str) -> dict[str, np.ndarray]:
    """The features of a tf.train.Example, [n] each."""
    from tensorflow_datasets.proto import tf_example_pb2

    with reading(where):
        features = tf_example_pb2.Example.FromString(content).features.feature
        lists = {name: (value.WhichOneof("kind"), value) for name, value in features.items()}
        dtypes = {"int64_list": np.int64, "float_list": np.float32, "bytes_list": object}
        return {
            name: np.array(getattr(value, kind).value, dtypes[kind])
            for name, (kind, value) in lists.items()
            if kind is not None
        }


def _single(labels: list[np.ndarray]) -> list:
    """Labels that are lists of one number as numbers."""
    alone = all(len(label) == 1 for label in labels)
    return [label[0] if alone else label for label in labels]

"""A population in every format of federated files, written by other means than ours."""

import json
import sqlite3
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from fedjax_sim.data import datasets

Split = Mapping[str, Mapping[str, np.ndarray]]

NAMES = ("zoë 雪", "b/2", "a", "10", "9")  # neither in order nor plain


def population(sizes: tuple[int, ...] = (3, 1, 5, 2, 4), seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    return {
        name: {
            "x": rng.integers(-8, 9, (size, 6)).astype(np.float32) / 4,
            "y": rng.integers(0, 3, size),
        }
        for name, size in zip(NAMES, sizes, strict=True)
    }


TRAIN = population()
TEST = {name: rows for name, rows in population(seed=1).items() if name != "a"}  # a has no test


def plain(name: str) -> str:
    return name.replace("/", "_")  # HDF5's and a folder's names have no slash


# ---------------------------------------------------------------- writers of each format


def leaf_content(split: Split, **changes: Any) -> dict[str, Any]:
    return {
        "users": [*split],
        "num_samples": [len(rows["y"]) for rows in split.values()],
        "user_data": {
            name: {field: values.tolist() for field, values in rows.items()}
            for name, rows in split.items()
        },
    } | changes


def write_leaf(folder: Path, train: Split, test: Split) -> Path:
    for part, split in (("train", train), ("test", test)):
        (folder / part).mkdir(parents=True)
        names = [*split]
        for number, own in enumerate((names[:2], names[2:])):
            content = leaf_content({name: split[name] for name in own})
            (folder / part / f"all_data_{number}_{part}_9.json").write_text(json.dumps(content))
    return folder


def write_hdf5(folder: Path, train: Split, test: Split) -> Path:
    for part, split in (("train", train), ("test", test)):
        with h5py.File(folder / f"mine_{part}.h5", "w") as file:
            for name, rows in split.items():
                for field, values in rows.items():
                    file[f"examples/{name}/{field}"] = values
    return folder / "mine_train.h5"


def ndarray(array: Any) -> msgpack.ExtType:
    """FedJAX's msgpack extension for arrays."""
    content = (array.shape, array.dtype.name, array.tobytes())
    return msgpack.ExtType(1, msgpack.packb(content))


def fedjax_row(name: str, rows: Mapping[str, np.ndarray]) -> tuple[bytes, bytes, int]:
    content = zlib.compress(msgpack.packb(dict(rows), default=ndarray))
    return name.encode(), content, len(rows["y"])


def write_fedjax(folder: Path, train: Split, test: Split) -> Path:
    for part, split in (("train", train), ("test", test)):
        with sqlite3.connect(folder / f"mine_{part}.sqlite") as connection:
            connection.execute(
                "CREATE TABLE federated_data (client_id BLOB NOT NULL PRIMARY KEY, "
                "data BLOB NOT NULL, num_examples INTEGER NOT NULL)"
            )
            rows = [fedjax_row(name, rows) for name, rows in split.items()]
            connection.executemany("INSERT INTO federated_data VALUES (?, ?, ?)", rows)
        connection.close()
    return folder / "mine_train.sqlite"


def example(x: np.ndarray, y: int) -> bytes:
    message = tf_example_pb2.Example()
    message.features.feature["x"].float_list.value.extend(x.tolist())
    message.features.feature["y"].int64_list.value.append(int(y))
    return message.SerializeToString()


def write_tff(folder: Path, train: Split, test: Split) -> Path:
    path = folder / "tff.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT NULL, "
            "serialized_example_proto BLOB NOT NULL)"
        )
        connection.execute(
            "CREATE TABLE client_metadata (client_id TEXT NOT NULL, split_name TEXT NOT NULL, "
            "num_examples INTEGER NOT NULL)"
        )
        for part, split in (("train", train), ("test", test)):
            for name, rows in split.items():
                size = len(rows["y"])
                connection.execute(
                    "INSERT INTO client_metadata VALUES (?, ?, ?)", (name, part, size)
                )
                connection.executemany(
                    "INSERT INTO examples VALUES (?, ?, ?)",
                    [(part, name, example(rows["x"][i], rows["y"][i])) for i in range(size)],
                )
    connection.close()
    return path


def columns(split: Split) -> dict[str, list]:
    """Rows of the clients in turn, as they come from a stream of examples."""
    rows = [
        (i, name, x, y)
        for name, own in split.items()
        for i, (x, y) in enumerate(zip(own["x"].tolist(), own["y"].tolist(), strict=True))
    ]
    rows.sort(key=lambda row: row[0])
    return {
        "client": [name for _, name, _, _ in rows],
        "x": [x for _, _, x, _ in rows],
        "y": [y for _, _, _, y in rows],
    }


def hf_dataset(split: Split) -> Any:
    huggingface = pytest.importorskip("datasets")
    features = huggingface.Features(
        {
            "client": huggingface.Value("string"),
            "x": huggingface.Sequence(huggingface.Value("float32"), length=6),
            "y": huggingface.Value("int64"),
        }
    )
    return huggingface.Dataset.from_dict(columns(split), features=features)


def write_arrow(folder: Path, train: Split, test: Split) -> Path:
    huggingface = pytest.importorskip("datasets")
    huggingface.disable_progress_bars()
    both = {"train": hf_dataset(train), "test": hf_dataset(test)}
    huggingface.DatasetDict(both).save_to_disk(folder / "saved", num_shards={"train": 2, "test": 1})
    return folder / "saved"


def write_parquet(folder: Path, train: Split, test: Split) -> Path:
    (folder / "data").mkdir(parents=True)
    for part, split in (("train", train), ("test", test)):
        table = pa.table(columns(split)).set_column(
            1, "x", pa.array(columns(split)["x"], pa.list_(pa.float32()))
        )
        half = table.num_rows // 2
        for number, rows in enumerate((table.slice(0, half), table.slice(half))):
            pq.write_table(rows, folder / "data" / f"{part}-{number:05}-of-00002.parquet")
    return folder


def write_folders(folder: Path, train: Split, test: Split) -> Path:
    for name, rows in train.items():
        (folder / name).mkdir(parents=True)
        np.savez(folder / name / "train.npz", **rows)
        if name in test:
            np.savez(folder / name / "test.npz", **test[name])
    return folder


WRITERS: dict[str, tuple[str, Callable[[Path, Split, Split], Path]]] = {
    "leaf": ("leaf", write_leaf),
    "hdf5": ("hdf5", write_hdf5),
    "fedjax": ("sqlite", write_fedjax),
    "tff": ("sqlite", write_tff),
    "arrow": ("arrow", write_arrow),
    "parquet": ("arrow", write_parquet),
    "folders": ("clients", write_folders),
}


def by_name(data: datasets.Dataset) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """split -> client -> its arrays, in order."""
    return {
        part: {
            str(name): {field: a[groups["client"] == name] for field, a in examples.items()}
            for name in np.unique(groups["client"])
        }
        for part, examples, groups in (
            ("train", data.train, data.train_groups),
            ("test", data.test, data.test_groups),
        )
    }


PLAIN = [{plain(name): rows for name, rows in split.items()} for split in (TRAIN, TEST)]
"""TRAIN and TEST with names that every format can have."""

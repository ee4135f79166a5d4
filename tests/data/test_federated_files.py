"""Federated files as people have them: written here by other means, read by ours."""

import gzip
import io
import json
import sqlite3
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import jax
import msgpack
import numpy as np
import optax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

import fedjax_sim as fs
from federated_files import (
    NAMES,
    PLAIN,
    TEST,
    TRAIN,
    WRITERS,
    by_name,
    example,
    hf_dataset,
    ndarray,
    plain,
    population,
    write_hdf5,
    write_parquet,
)
from fedjax_sim.data import datasets

MODEL = fs.models.logistic(3)
FEDAVG = fs.algorithms.fedavg(
    MODEL,
    client_optimizer=optax.sgd(0.3),
    batching=fs.Batching(2),
    sampler=fs.sampling.uniform(3),
    width=1,
)


def train(data: datasets.Dataset) -> Any:
    """Parameters and what is known of the cohorts after some rounds."""
    clients = fs.federate(data.train, fs.partition.by_group(data.train_groups["client"]))
    params = {"kernel": np.zeros((6, 3), np.float32), "bias": np.zeros(3, np.float32)}
    result = fs.run(FEDAVG, params, clients, key=jax.random.key(1), num_rounds=4)
    return result.params, result.info


def test_the_same_population_in_any_format_is_the_same_run_bit_for_bit(tmp_path: Path) -> None:
    expected = datasets.from_clients(*PLAIN)
    wanted, kept = train(expected), by_name(expected)
    assert sorted(kept["train"]) == sorted(map(plain, NAMES)) and "a" not in kept["test"]
    assert len(np.unique(wanted[1].cohort.ids)) == 5
    for name, (kind, write) in WRITERS.items():
        (tmp_path / name).mkdir()
        path = write(tmp_path / name, *PLAIN)
        data = datasets.load(f"{kind}:{path}")
        for part, clients in by_name(data).items():
            assert clients.keys() == kept[part].keys(), name
            for client, arrays in clients.items():
                for field, array in arrays.items():
                    np.testing.assert_array_equal(array, kept[part][client][field], strict=True)
        jax.tree.map(np.testing.assert_array_equal, train(data), wanted)


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_examples_are_kept_for_the_test_in_any_format(tmp_path: Path, name: str) -> None:
    big = {plain(client): rows for client, rows in population((9, 1, 12, 5, 8)).items()}
    kind, write = WRITERS[name]
    path = write(tmp_path, big, big)
    if name == "leaf":
        path = path / "train"
    elif name in ("hdf5", "fedjax"):
        path = path.rename(path.with_name("alone" + path.suffix))
    elif name == "arrow":
        path = path / "train"
    elif name == "parquet":
        [file.unlink() for file in (path / "data").glob("test*")]
    elif name == "folders":
        [file.unlink() for file in path.glob("*/test.npz")]
    options = {"test_split": "nothing"} if name == "tff" else {}
    data = datasets.load(f"{kind}:{path}", test_fraction=0.25, seed=3, **options)
    expected = by_name(datasets.from_clients(big, test_fraction=0.25, seed=3))
    for part, clients in by_name(data).items():
        sizes = {client: len(rows["y"]) for client, rows in clients.items()}
        few = {"zoë 雪": 2, "10": 1, "9": 2, "a": 3}  # a quarter, rounded to even; none of one
        if part == "test":
            assert sizes == few
        for client, arrays in clients.items():
            for field, array in arrays.items():
                np.testing.assert_array_equal(array, expected[part][client][field], strict=True)


# ---------------------------------------------------------------- own arrays by client


def test_held_out_examples_depend_on_seed_and_name_alone() -> None:
    whole = {f"client {i}": {"x": np.arange(20.0)[:, None], "y": np.arange(20) % 2} for i in "abc"}
    data = by_name(datasets.from_clients(whole, test_fraction=0.3))
    alone = by_name(datasets.from_clients({"client c": whole["client c"]}, test_fraction=0.3))
    np.testing.assert_array_equal(alone["test"]["client c"]["x"], data["test"]["client c"]["x"])
    assert not np.array_equal(data["test"]["client a"]["x"], data["test"]["client b"]["x"])
    other = by_name(datasets.from_clients(whole, test_fraction=0.3, seed=1))
    assert not np.array_equal(other["test"]["client a"]["x"], data["test"]["client a"]["x"])
    for client in whole:
        both = np.concatenate([data[part][client]["x"] for part in ("train", "test")])
        assert sorted(both.ravel()) == list(range(20)) and len(data["test"][client]["x"]) == 6


def test_clients_come_from_an_iterator_and_labels_may_be_text() -> None:
    pairs = ((i, {"x": np.full((2, 1), i), "y": ["ape", "bee"][: i + 1] * (2 - i)}) for i in (0, 1))
    test = {"1": {"x": [[5.0]], "y": ["ape"]}, "0": {"x": [], "y": []}}
    data = datasets.from_clients(pairs, test, x_dtype="float32")
    assert data.class_names == ("ape", "bee") and data.train["y"].tolist() == [0, 0, 0, 1]
    assert data.train_groups["client"].tolist() == ["0", "0", "1", "1"]
    assert data.test_groups["client"].tolist() == ["1"]


def test_inputs_get_the_shape_and_type_that_are_asked_for() -> None:
    clients = {"a": {"x": np.arange(12).reshape(3, 4), "y": [0, 1, 1]}}
    data = datasets.from_clients(clients, clients, x_shape=(2, 2, 1), x_dtype="uint8")
    assert data.train["x"].dtype == np.uint8 and data.train["x"].shape == (3, 2, 2, 1)
    assert datasets.from_clients(clients, clients, tokens=True).train["x"].dtype == np.int32


ONE = {"x": np.eye(2), "y": [0, 1]}


@pytest.mark.parametrize(
    ("train", "options", "error", "message"),
    [
        ([1, 2], {}, TypeError, r"train must give pairs of a name and its arrays, got int 1"),
        (3, {}, TypeError, r"train must be arrays by client, for example \{\"anna\""),
        ("folder", {}, TypeError, r"train must be arrays by client"),
        ({}, {}, ValueError, r"train holds no examples; it needs clients, for example"),
        ({"a": np.eye(2)}, {}, TypeError, r"train: client 'a' needs inputs and labels alone, f"),
        ({"a": ONE | {"w": [1, 2]}}, {}, TypeError, r"labels alone, .*got \['x', 'y', 'w'\]"),
        ({"a": ONE}, {"x_dtype": "int8"}, ValueError, r"unknown x_dtype 'int8'"),
        ({"a": {"x": np.eye(2)}}, {}, TypeError, r"client 'a' needs inputs .*got \['x'\]"),
        ({"a": ONE | {"y": [1]}}, {}, ValueError, r"client 'a' has 2 inputs \(x\) but 1 labels"),
        ({"a": {"x": [[1], [1, 2]], "y": [0, 1]}}, {}, ValueError, r"'a' has x whose rows differ"),
        ({"a": {"x": [["1"]], "y": [0]}}, {}, ValueError, r"'a' has x of shape .* type <U1"),
        ({"a": {"x": [[10**30]], "y": [0]}}, {}, ValueError, r"'a' has x of .* type object"),
        ({"a": {"x": [[None]], "y": [0]}}, {}, ValueError, r"'a' has x of .* type object"),
        ({"a": {"x": [[np.nan]], "y": [0]}}, {}, ValueError, r"'a' has x .*not finite in row 0"),
        ({"a": ONE | {"y": [0, np.nan]}}, {}, ValueError, r"'a' has y .*not finite in row 1"),
        ({"a": {"x": [], "y": []}}, {}, ValueError, r"train: client 'a' has no examples; leave"),
        ({"a": ONE, "b": {"x": np.eye(3), "y": [0, 1, 1]}}, {}, ValueError, r"'b' has x of shape"),
        ({"a": ONE, "b": ONE | {"x": np.eye(2, dtype="uint8")}}, {}, ValueError, r"type uint8"),
        ({"a": ONE, b"a": ONE}, {}, ValueError, r"there are two clients 'a'"),
        ({"1": ONE, 1: ONE}, {}, ValueError, r"there are two clients '1'"),
        ({1.5: ONE}, {}, TypeError, r"names of clients must be text, got 1.5"),
        ({"a\0": ONE}, {}, ValueError, r"the client name 'a\\x00' cannot be kept"),
        ({"\ud800": ONE}, {}, ValueError, r"the client name '\\ud800' cannot be kept"),
        ({"a" * 1001: ONE}, {}, ValueError, r"cannot be kept; names are text of 1000 char"),
        ({"a": ONE | {"x": np.eye(2, dtype=int)}}, {}, TypeError, r"int64 and .*x_dtype='float32'"),
        ({"a": ONE | {"x": np.eye(2, dtype="uint8")}}, {}, TypeError, r"and x_shape=\(height"),
        ({"a": ONE}, {"x_shape": (3, 1)}, ValueError, r"shape \(2,\), which cannot .*\(3, 1\)"),
        ({"a": {"x": [[256]] * 2, "y": [0, 1]}}, {"x_dtype": "uint8"}, ValueError, r"from 256 to"),
        (
            {"a": {"x": [[0.5]] * 2, "y": [0, 1]}},
            {"x_dtype": "uint8"},
            ValueError,
            r"all integers",
        ),
        ({"a": ONE}, {"test": {"b": ONE}, "test_fraction": 0.5}, ValueError, r"test_fraction=0.5"),
        ({"a": ONE}, {"test": {"b": ONE | {"y": ["p", "q"]}}}, TypeError, r"must both be text"),
        ({"a": ONE}, {"test_fraction": 1.5}, ValueError, r"test_fraction must lie in"),
        ({"a": ONE}, {"test_fraction": 0.1}, ValueError, r"leaves no client an example .*has 2"),
        ({"a": ONE}, {"seed": -1}, ValueError, r"seed must be >= 0"),
    ],
)
def test_from_clients_refuses(
    train: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    options = options if "test" in options else {"test_fraction": 0.5} | options
    with pytest.raises(error, match=f"(?s){message}"):
        datasets.from_clients(train, **options)


# ---------------------------------------------------------------- LEAF


def leaf_folder(folder: Path, train: Any, test: Any = None) -> Path:
    for part, content in (("train", train), ("test", train if test is None else test)):
        (folder / part).mkdir(parents=True)
        (folder / part / "all_data.json").write_text(json.dumps(content))
    return folder


def leaf_users(data: Mapping[str, tuple[list, list]], **changes: Any) -> dict[str, Any]:
    return {
        "users": [*data],
        "num_samples": [len(y) for _, y in data.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in data.items()},
    } | changes


def test_leaf_synthetic_and_femnist_are_numbers(tmp_path: Path) -> None:
    train = {"f0_1": ([[0.5, 1, 0, 0.25]] * 2, [3, 1]), "f0_2": ([[0, 1, 1, 0]], [0])}
    path = leaf_folder(tmp_path, leaf_users(train, hierarchies=["x"]))
    data = datasets.from_leaf(path, x_shape=(2, 2, 1), num_classes=62)
    assert data.train["x"].dtype == np.float32 and data.train["x"].shape == (3, 2, 2, 1)
    assert data.train["y"].tolist() == [3, 1, 0] and data.num_classes == 62
    assert data.train_groups["client"].tolist() == ["f0_1", "f0_1", "f0_2"]
    whole = {"a": ([[1, 2], [3, 4]], [0, 1])}
    path = leaf_folder(tmp_path / "tokens", leaf_users(whole))
    assert datasets.from_leaf(path).train["x"].dtype == np.float32
    assert datasets.from_leaf(path, tokens=True).train["x"].dtype == np.int32


def test_leaf_shakespeare_predicts_the_character_after_the_text(tmp_path: Path) -> None:
    train = {"HAMLET": (["  To", "é be"], ["b", "!"])}
    data = datasets.from_leaf(leaf_folder(tmp_path, leaf_users(train)))
    symbols = datasets.SHAKESPEARE_SYMBOLS
    assert data.num_classes == 90 and data.ignore_label == -1
    assert [[symbols[i] for i in row] for row in data.train["x"].tolist()] == [
        [" ", " ", "T", "o"],
        ["<oov>", " ", "b", "e"],
    ]
    b, mark = symbols.index("b"), symbols.index("!")
    assert data.train["y"].tolist() == [[-1, -1, -1, b], [-1, -1, -1, mark]]


def test_leaf_sent140_is_words_of_the_last_column(tmp_path: Path) -> None:
    def row(text: str) -> list[str]:
        return ["1467810369", "Mon Apr 06", "NO_QUERY", "ann", text]

    train = {"ann": ([row("Good good day, it's"), row("day")], [1, 0]), "ben": ([row("bad")], [0])}
    test = {"ann": ([row("a good one two three four five")], [1])}
    path = leaf_folder(tmp_path, leaf_users(train), leaf_users(test))
    data = datasets.from_leaf(path, sequence_length=5, vocabulary_size=5)
    # 0 padding, 1 unknown; the most frequent: day, good (2 each, in order), then "," (1)
    assert data.train["x"].tolist() == [[3, 3, 2, 4, 1], [2, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert data.test["x"].tolist() == [[1, 3, 1, 1, 1]]
    assert data.train["y"].tolist() == [1, 0, 0] and data.num_classes == 2


def test_leaf_reddit_is_sequences_and_what_follows(tmp_path: Path) -> None:
    def comment(*sequences: tuple[str, str, list[float]]) -> tuple[list, dict]:
        x = [words.split() for words, _, _ in sequences]
        y = {"subreddit": "a", "target_tokens": [after.split() for _, after, _ in sequences]}
        return x, y | {"count_tokens": [counts for _, _, counts in sequences]}

    first = comment(
        ("<BOS> a b", "a b c", [1.0, 1.0, 1.0]), ("c <EOS> <PAD>", "<EOS> <PAD> <PAD>", [1, 0, 0])
    )
    second = comment(("<BOS> a <EOS>", "a <EOS> <PAD>", [1, 1, 0]))
    train = leaf_users({"1": ([first[0], second[0]], [first[1], second[1]])}, num_samples=[9])
    data = datasets.from_leaf(leaf_folder(tmp_path, train), vocabulary_size=6)
    assert data.class_names == ("<PAD>", "<UNK>", "<BOS>", "<EOS>", "a", "b")
    assert data.train["x"].tolist() == [[2, 4, 5], [1, 3, 0], [2, 4, 3]]
    assert data.train["y"].tolist() == [[4, 5, 1], [3, -1, -1], [4, 3, -1]]


GOOD = {"a": ([[0.5, 1.0]], [0]), "b": ([[1.5, 1.0]], [1])}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"all_data.json is no file of LEAF: it needs users .*has 'list'"),
        ({"users": []}, r"is no file of LEAF: .*has \['users'\]"),
        (leaf_users(GOOD, num_samples=[1]), r"has 2 users, but 1 num_samples"),
        (leaf_users(GOOD, num_samples=[1, 2]), r"user 'b' has num_samples 2, but 1 examples"),
        (leaf_users(GOOD, users=["a", "c"]), r"has user_data of 'b', who is not in users"),
        (leaf_users(GOOD, users=["a", "b", "c"], num_samples=[1] * 3), r"user 'c' has no \{"),
        (leaf_users(GOOD, users=["a", "a"], user_data={"a": {"x": [[1]], "y": [0]}}), "second"),
        (leaf_users(GOOD, users=["a", None]), r"names of clients must be text, got None"),
        (leaf_users({"a": ([[1]], [])}, num_samples=[0]), r"'a' has 1 inputs \(x\) but 0 labels"),
        (leaf_users({"a": ([[1], [1, 2]], [0, 1])}), r"user 'a' has x whose rows differ"),
        (leaf_users({"a": ([[1]], [0]), "b": ([[1, 2]], [0])}), r"'b' has x of shape \(1, 2\)"),
        (leaf_users({"a": ([], [])}), r"client 'a' has no examples"),
        (leaf_users({"a": ([["1", 2]], [0])}), r"'a' has x of shape .* type <U"),
        (leaf_users({"a": ([[float("nan")]], [0])}), r"'a' has x that is not finite in row 0"),
        (leaf_users({"a": ([[1e300]], [0])}), r"'a' has x that is not finite in row 0"),
        (leaf_users({"a": ([[10**400]], [0])}), r"'a' has x of shape .* type object"),
        (leaf_users({"a": ([[1.0]] * 2, [-1, 1])}), r"label -1 in row 0"),
        (leaf_users({"a": (["000001.jpg"], [0])}), r"names of pictures such as '000001.jpg'"),
        (leaf_users({"a": (["hi", 3], [0, 1])}), r"user 'a' has 3 where others have a text"),
        (leaf_users({"a": (["hi", "ho"], ["a", "bc"])}), r"'ho' and 'bc', not a text and a char"),
        (leaf_users({"a": ([["hi"]], [{"target_tokens": []}])}), r"comment whose words \(x\)"),
        (
            leaf_users({"a": ([[1.0]], [0]), "b": (["hi"], [1])}),
            r"one kind, but .*'a' has numbers; .*'b' has texts and labels",
        ),
    ],
)
def test_leaf_refuses(tmp_path: Path, content: Any, message: str) -> None:
    path = leaf_folder(tmp_path, content)
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}") as caught:
        datasets.from_leaf(path)
    assert str(tmp_path) in str(caught.value) or "label -1" in message


def test_leaf_finds_its_files(tmp_path: Path) -> None:
    path = leaf_folder(tmp_path / "femnist" / "data", leaf_users(GOOD))
    data = datasets.load("leaf:femnist", tmp_path)
    assert data.name == "femnist" and len(data.train["y"]) == len(data.test["y"]) == 2
    alone = tmp_path / "alone.json.gz"
    content = json.dumps(leaf_users({"a": ([[1.0]] * 5, [0] * 5)}))
    alone.write_bytes(gzip.compress(content.encode()))
    assert len(datasets.from_leaf(alone).test["y"]) == 1
    (path / "train" / "more.json").write_text(json.dumps(leaf_users(GOOD)))
    with pytest.raises(ValueError, match=r"more.json: user 'a' is there a second time: .*all_data"):
        datasets.from_leaf(path)
    with pytest.raises(FileNotFoundError, match=r"folder: .*nowhere does not exist"):
        datasets.from_leaf(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no .json files. LEAF's files lie in"):
        datasets.from_leaf(tmp_path / "empty")


# ---------------------------------------------------------------- arrow and parquet


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


PICTURES = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)


def test_pictures_and_class_labels_of_hugging_face(tmp_path: Path) -> None:
    huggingface = pytest.importorskip("datasets")
    huggingface.disable_progress_bars()
    features = huggingface.Features(
        {
            "writer": huggingface.Value("int32"),
            "image": huggingface.Image(),
            "label": huggingface.ClassLabel(names=["no", "yes", "perhaps"]),
        }
    )
    rows = {
        "writer": [7, 3, 7, 7, 3, 3],
        "image": [Image.fromarray(image) for image in PICTURES],
        "label": [0, 1, 0, 1, 1, 0],
    }
    whole = huggingface.Dataset.from_dict(rows, features=features)
    whole.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    whole.to_parquet(tmp_path / "parquet" / "train.parquet")
    both = huggingface.DatasetDict({"train": whole.select([5, 1, 0]), "test": whole.select([2])})
    read = datasets.from_huggingface(both, client_column="writer")
    np.testing.assert_array_equal(read.train["x"], PICTURES[[5, 1, 0]])
    np.testing.assert_array_equal(read.test["x"], PICTURES[[2]])
    assert read.train_groups["client"].tolist() == ["3", "3", "7"]
    assert read.class_names == ("no", "yes", "perhaps") and read.train["y"].tolist() == [0, 1, 0]
    for source in (whole, tmp_path / "saved", tmp_path / "parquet"):
        data = datasets.from_huggingface(source, client_column="writer", test_fraction=0.34)
        assert data.class_names == read.class_names and len(data.test["y"]) == 2
        order = np.concatenate([data.train["x"], data.test["x"]])
        assert sorted(map(np.ndarray.tobytes, order)) == sorted(map(np.ndarray.tobytes, PICTURES))


def test_columns_of_numbers_are_features_and_nested_lists_arrays(tmp_path: Path) -> None:
    table = pa.table(
        {
            "client": pa.array(["b", "a", "b"]).dictionary_encode(),
            "age": [1, 2, 3],
            "height": [0.5, 1.5, 2.5],
            "grid": [[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]],
            "label": ["no", "yes", "no"],
        }
    )
    path = tmp_path / "one.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    data = datasets.from_huggingface(path, x=["age", "height"], test_fraction=0.5)
    assert data.feature_names == ("age", "height") and data.class_names == ("no", "yes")
    assert sorted(np.concatenate([data.train["x"], data.test["x"]]).tolist()) == [
        [1, 0.5],
        [2, 1.5],
        [3, 2.5],
    ]
    data = datasets.from_huggingface(path, x="grid", test_fraction=0.5)
    assert data.train["x"].shape[1:] == (1, 2)


def parquet(folder: Path, **changes: Any) -> Path:
    path = folder / "mine.parquet"
    columns = {"client": ["a", "a", "b"], "x": [[1.0], [2.0], [3.0]], "y": [0, 1, 1]} | changes
    pq.write_table(pa.table({k: v for k, v in columns.items() if v is not None}), path)
    return path


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"client": None}, {}, r"which names the client\? Say it with client_column="),
        ({}, {"client_column": "user"}, r"mine.parquet has no column 'user', but \['client', 'x'"),
        ({}, {"y": "z"}, r"has no field 'z', but \['x', 'y'\]; name the fields with y="),
        ({"z": [1, 2, 3], "x": None, "w": [1, 2, 3]}, {}, r"which are the inputs\? Name them with"),
        ({"y": None}, {}, r"which are the labels\? Name them with y="),
        ({"client": ["a", None, "b"]}, {}, r"column 'client' has 1 missing values"),
        ({"y": [0, None, 1]}, {}, r"column 'y' has 1 missing values"),
        ({"x": [[1.0], [None], [2.0]]}, {}, r"column 'x' has 1 missing values"),
        ({"x": [[1.0], [1.0, 2.0], [2.0]]}, {}, r"column 'x' has lists of unequal length"),
        ({"x": [[], [], []]}, {}, r"column 'x' has lists of unequal length or none|type null"),
        ({"client": [1.5, 1.5, 2]}, {}, r"names of clients must be text, got 1.5"),
        ({"x": [b"no", b"picture", b"here"]}, {}, r"'x', row 0: truncated, corrupt"),
        ({"x": [[float("inf")]] * 3}, {}, r"client 'a' has x that is not finite"),
        ({"x": [[1], [2], [3]]}, {}, r"inputs of int64 and .*x_dtype='float32'"),
        ({"y": np.array(["2020-01-01"] * 3, "M8[D]")}, {}, r"column 'y' is of the type date32"),
        ({"client": ["a", "b" * 2000, "b"]}, {}, r"'client' has a text of 2000 characters"),
    ],
)
def test_parquet_refuses(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    path = parquet(tmp_path, **changes)
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        datasets.from_huggingface(path, test_fraction=0.5, **options)
    assert str(path) in str(caught.value)


def test_hugging_face_refuses(tmp_path: Path) -> None:
    huggingface = pytest.importorskip("datasets")
    whole = hf_dataset(TRAIN)
    with pytest.raises(TypeError, match=r"source is streamed.*without streaming=True"):
        datasets.from_huggingface(whole.to_iterable_dataset())
    with pytest.raises(TypeError, match=r"source must be a folder, a datasets.Dataset .* got list"):
        datasets.from_huggingface([1])
    with pytest.raises(ValueError, match=r"has the splits \['test'\], but no 'train'"):
        datasets.from_huggingface(huggingface.DatasetDict({"test": whole}))
    with pytest.raises(FileNotFoundError, match=r"holds no .arrow or .parquet files"):
        datasets.from_huggingface(tmp_path)
    path = write_parquet(tmp_path / "p", TRAIN, TEST)
    with pytest.raises(ValueError, match=r"p has the split 'test', but no 'dev'; name it with"):
        datasets.from_huggingface(path, train_split="dev")
    (path / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds 1 of the 2 files train-\.\.\.-of-00002"):
        datasets.from_huggingface(path)


# ---------------------------------------------------------------- HDF5 and SQLite


def test_hdf5_finds_its_fields_and_its_test_file(tmp_path: Path) -> None:
    rows = {"a": {"image": np.full((2, 2, 2), 9, np.uint8), "target": [1, 0], "coarse": [5, 6]}}
    write_hdf5(tmp_path, {k: {f: np.asarray(a) for f, a in v.items()} for k, v in rows.items()}, {})
    with pytest.raises(ValueError, match=r"which are the inputs\? Name them with x="):
        datasets.from_hdf5(tmp_path / "mine_train.h5")
    with pytest.raises(ValueError, match=r"mine_test.h5 has no clients under 'examples'"):
        datasets.from_hdf5(tmp_path / "mine_train.h5", x="image")
    (tmp_path / "mine_test.h5").unlink()
    data = datasets.from_hdf5(tmp_path / "mine_train.h5", x="image", test_fraction=0.5)
    assert len(data.train["y"]) == len(data.test["y"]) == 1 and data.train["x"].dtype == np.uint8


def test_hdf5_follows_no_links(tmp_path: Path) -> None:
    write_hdf5(tmp_path, TRAIN, TEST)
    secret = tmp_path / "mine_test.h5"
    for number, link in enumerate(
        [h5py.ExternalLink(secret, "/examples/9/x"), h5py.SoftLink("/examples/9/x")]
    ):
        path = tmp_path / f"linked_{number}.h5"
        with h5py.File(path, "w") as file:
            file["examples/a/x"], file["examples/a/y"] = link, [0, 1]
        with pytest.raises(ValueError, match=r"linked_.*: 'x' is a link to '.*x', which is not"):
            datasets.from_hdf5(path)
    with h5py.File(path, "w") as file:
        file["examples"] = h5py.ExternalLink(secret, "/examples")
    with pytest.raises(ValueError, match=r"'examples' is a link to .*mine_test.h5"):
        datasets.from_hdf5(path)
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((4, 6), "f4")
        layout[:] = h5py.VirtualSource(secret, "examples/9/x", (4, 6))
        file.create_virtual_dataset("examples/a/x", layout)
        file["examples/a/y"] = [0] * 4
    with pytest.raises(ValueError, match=r"/examples/a/x has its values in another file"):
        datasets.from_hdf5(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("examples/a/x", (2, 2), "f4", external=[(str(secret), 0, 16)])
        file["examples/a/y"] = [0] * 2
    with pytest.raises(ValueError, match=r"/examples/a/x has its values in another file"):
        datasets.from_hdf5(path)


def database(path: Path, *statements: str | tuple[str, tuple]) -> Path:
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(*((statement,) if isinstance(statement, str) else statement))
    connection.close()
    return path


FEDERATED = "CREATE TABLE federated_data (client_id BLOB, data BLOB, num_examples INTEGER)"
EXAMPLES = "CREATE TABLE examples (split_name TEXT, client_id TEXT, serialized_example_proto BLOB)"
COUNTS = "CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER)"


def packed(content: Any) -> bytes:
    return zlib.compress(msgpack.packb(content, default=ndarray))


ARRAYS = {"x": np.eye(2, dtype=np.float32), "y": np.array([0, 1])}


def fedjax(*rows: tuple) -> list:
    return [FEDERATED, *(("INSERT INTO federated_data VALUES (?, ?, ?)", row) for row in rows)]


def tff(*rows: tuple, counts: tuple = ()) -> list:
    return [
        EXAMPLES,
        COUNTS,
        *(("INSERT INTO examples VALUES (?, ?, ?)", row) for row in rows),
        *(("INSERT INTO client_metadata VALUES (?, ?, ?)", row) for row in counts),
    ]


OBJECT = msgpack.ExtType(1, msgpack.packb(((1,), "object", b"12345678")))


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["CREATE TABLE other (a)"], r"has the tables \['other'\], but neither federated_data"),
        (
            [
                "CREATE VIEW federated_data AS WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL "
                "SELECT n FROM c) SELECT n AS client_id, n AS data, n AS num_examples FROM c"
            ],
            r"has the tables \[\], but neither",
        ),
        (["CREATE TABLE federated_data (a)"], r"cannot read .*no such column: client_id"),
        (fedjax(), r"mine.sqlite holds no examples"),
        (fedjax((b"a", packed(ARRAYS), 3)), r"client 'a' has num_examples 3, but 2 examples"),
        (fedjax((b"a", packed(ARRAYS), 2), (b"a", packed(ARRAYS), 2)), r"two clients 'a'"),
        (fedjax((b"a", "text", 2)), r"client 'a' has data that are no bytes"),
        (fedjax((b"a", b"noise", 2)), r"cannot read .*client 'a': .*zlib|Error -3"),
        (fedjax((b"a", packed(ARRAYS)[:-4], 2)), r"client 'a': its compressed data end too early"),
        (fedjax((b"a", zlib.compress(b"\xc1"), 2)), r"cannot read .*client 'a'"),
        (fedjax((b"a", packed([1, 2]), 2)), r"client 'a' is no dict of arrays by name"),
        (fedjax((b"a", packed({"x": 1, "y": 2}), 2)), r"client 'a' is no dict of arrays by name"),
        (fedjax((b"a", packed({"x": OBJECT, "y": OBJECT}), 1)), r"client 'a'.*array of object"),
        (fedjax((b"a", packed(ARRAYS | {"y": np.arange(3)}), 3)), r"2 inputs \(x\) but 3 labels"),
        (fedjax((b"a", packed({"x": ARRAYS["x"]}), 2)), r"which are the labels\? Name them with"),
        (fedjax((1.5, packed(ARRAYS), 2)), r"names of clients must be text, got 1.5"),
        (tff(("train", "a", b"noise")), r"cannot read .*client 'a'.*DecodeError|parsing"),
        (tff(("train", "a", "text")), r"cannot read .*client 'a'"),
        (
            tff(("train", "a", example(np.ones(2), 1)), counts=[("a", "train", 2)]),
            r"client 'a' has num_examples 2, but 1 examples",
        ),
        (
            tff(("train", "a", example(np.ones(2), 1)), counts=[("b", "train", 2)]),
            r"client 'a' has num_examples None, but 1 examples",
        ),
        (
            tff(
                ("train", "a", example(np.ones(2), 1)),
                counts=[("a", "train", 1), ("b", "train", 2)],
            ),
            r"client 'b' has num_examples 2, but 0 examples",
        ),
        (
            [EXAMPLES, ("INSERT INTO examples VALUES ('train', 'a', ?)", (b"",))],
            r"client 'a' has the fields \[\]: which are the labels",
        ),
    ],
)
def test_sqlite_refuses(tmp_path: Path, statements: list, message: str) -> None:
    path = database(tmp_path / "mine.sqlite", *statements)
    before = path.read_bytes()
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        datasets.from_sqlite(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


def test_sqlite_that_is_being_written_to_is_refused(tmp_path: Path) -> None:
    path = database(tmp_path / "mine.sqlite", *fedjax((b"a", packed(ARRAYS), 2)))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("INSERT INTO federated_data VALUES (?, ?, ?)", (b"b", packed(ARRAYS), 2))
    connection.commit()
    with pytest.raises(
        ValueError, match=r"mine.sqlite is not whole: some of it is in mine.sqlite-"
    ):
        datasets.from_sqlite(path)
    connection.close()
    data = datasets.from_sqlite(path, test_fraction=0.5)
    assert np.unique(data.train_groups["client"]).tolist() == ["a", "b"]


def test_sqlite_has_odd_names_pictures_and_text(tmp_path: Path) -> None:
    message = tf_example_pb2.Example()
    message.features.feature["image"].bytes_list.value.append(png(PICTURES[0]))
    message.features.feature["label"].bytes_list.value.append(b"cat")
    content = message.SerializeToString()
    path = tmp_path / "a #1?%20.sqlite"
    rows = [(part, "a", content) for part in ("train", "test")]
    database(path, *tff(*rows, counts=[("a", "train", 1), ("a", "test", 1)]))
    data = datasets.from_sqlite(path)
    np.testing.assert_array_equal(data.train["x"], PICTURES[:1])
    assert data.class_names == ("cat",)


# ---------------------------------------------------------------- a folder a client


def test_folders_of_csv_files_and_of_single_arrays(tmp_path: Path) -> None:
    for client, header, last in (("1", "age,drug,label", "1,b,yes"), ("01", "drug,age,label", 0)):
        (tmp_path / "csv" / client).mkdir(parents=True)
        for split in ("train", "test"):
            text = f"{header}\n3,a,no\n{last}\n" if last else f"{header}\na,7,no\n"
            (tmp_path / "csv" / client / f"{split}.csv").write_text(text)
    data = datasets.load("clients:csv", tmp_path, scaling="none")
    assert data.feature_names == ("drug=a", "drug=b", "age") and data.class_names == ("no", "yes")
    assert data.train["x"].tolist() == [[1, 0, 7], [1, 0, 3], [0, 1, 1]]
    assert data.test["y"].tolist() == [0, 0, 1]
    assert data.train_groups["client"].tolist() == ["01", "1", "1"]
    for split in ("01", "1"):
        (tmp_path / "csv" / split / "test.csv").unlink()
    rows = "".join(f"{i},{'ab'[i % 2]},{('no', 'yes')[i % 2]}\n" for i in range(20))
    (tmp_path / "csv" / "1" / "train.csv").write_text(f"age,drug,label\n{rows}")
    data = datasets.from_folders(tmp_path / "csv", test_fraction=0.3, scaling="none")
    held = {"1": {"x": np.arange(20.0)[:, None], "y": np.arange(20) % 2}}
    expected = datasets.from_clients(held, test_fraction=0.3).test["x"].ravel()
    assert data.test["x"][:, -1].tolist() == expected.tolist()
    assert data.test_groups["client"].tolist() == ["1"] * 6 and len(data.train["y"]) == 15
    for client in ("a", "b"):
        (tmp_path / "npy" / client).mkdir(parents=True)
        for part in ("train", "test"):
            np.save(tmp_path / "npy" / client / f"x_{part}.npy", np.eye(2))
            np.save(tmp_path / "npy" / client / f"y_{part}.npy", np.arange(2))
    assert datasets.from_folders(tmp_path / "npy").test["y"].tolist() == [0, 1, 0, 1]
    (tmp_path / "files").mkdir()
    np.savez(
        tmp_path / "files" / "a.npz",
        x_train=np.eye(2),
        y_train=[0, 1],
        x_test=[[1.0, 2]],
        y_test=[1],
    )
    np.savez(tmp_path / "files" / "b.npz", x=np.eye(2), y=[0, 1])
    data = datasets.from_folders(tmp_path / "files")
    assert data.test_groups["client"].tolist() == ["a"] and len(data.train["y"]) == 4


def folder(path: Path, **files: str) -> Path:
    for name, text in files.items():
        file = path / name.replace("__", "/").replace("_csv", ".csv")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"holds no clients; they are folders, or files that end in .npz"),
        ({"a__notes.txt": ""}, r"a holds no data of a client: train.npz, train.csv, or x.npy"),
        ({"a_csv": "u,v\n1,2\n"}, r"a.csv has the fields \['u', 'v'\]: which are the labels"),
        ({"a_csv": "u,y\n1,2\n", "b_csv": "v,y\n1,2\n"}, r"table of 'b' has the columns 'v', 'y'"),
        ({"a_csv": "u,y\nhi,2\n3,2\n4,2\n5,2\n"}, r"a.csv, line 2.*column 'u'"),
        (
            {"a_csv": "u,y\n1,2\n2,2\n", "b_csv": "u,y\n3,2\n,2\n4,2\n5,2\n"},
            r"b.csv, line 3.*column 'u'",
        ),
        ({"a_csv": "u,y\n1,2\n1,2,3\n"}, r"a.csv, line 3"),
        ({"a_csv": ""}, r"a.csv"),
        ({"a_csv": "u,client,y\n1,a,2\n"}, r"table of 'a' has a column 'client', but the"),
        ({"a_csv": "u,y\n1,2\n", "b__notes.txt": ""}, r"client 'a' has a table, but 'b' none"),
        ({"a__test_csv": "u,y\n1,2\n"}, r"client 'a' has no table for training"),
        ({"a_csv": "u,y\n1,2\n", "a__train_csv": "u,y\n1,2\n"}, r"has two clients 'a'"),
    ],
)
def test_folders_refuse(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        datasets.from_folders(folder(tmp_path, **files), test_fraction=0.3, seed=1)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("leave:x", r"unknown data set 'leave:x'.*leaf:PATH, hdf5:PATH, sqlite:PATH, arrow:PATH"),
        ("leaf:nowhere", r"folder: nowhere does not exist"),
        ("hdf5:nowhere", r"train_path: nowhere does not exist"),
    ],
)
def test_load_says_what_there_is(name: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        datasets.load(name)
    with pytest.raises(ValueError, match=r"unknown option of leaf:x 'sead'.*Did you mean 'seed'"):
        datasets.load("leaf:x", sead=1)

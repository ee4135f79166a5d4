"""Data with natural clients: the HDF5 files of TensorFlow Federated and LEAF."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.data._files import StrPath, existing, read_bytes, reading
from fedjax_sim.data.datasets.dataset import Dataset, from_arrays
from fedjax_sim.ops import checks

_CHARACTERS = (
    "dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"
)
_PAD, _BOS, _EOS, _FIRST = 0, 1, 2, 3
_OOV = _FIRST + len(_CHARACTERS)
SHAKESPEARE_SYMBOLS = ("<pad>", "<bos>", "<eos>", *_CHARACTERS, "<oov>")
"""The 90 symbols of `shakespeare`, by their ids."""


def tff_hdf5(
    train_path: StrPath,
    test_path: StrPath,
    *,
    x: str = "pixels",
    y: str = "label",
    name: str | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    tokens: bool = False,
) -> Dataset:
    """Read HDF5 files laid out as `examples/<client>/<field>`, as TensorFlow Federated writes them.

    Fits federated EMNIST (fields "pixels", "label"), CIFAR-100 ("image", "label") and files of your
    own of that layout. The clients are in the groups, under "client".

    Args:
        train_path, test_path: .h5 files, or the same compressed as .h5.xz or .h5.gz.
        x, y: the fields with the inputs [n, ...] and the integer labels [n] of each client.
        name: by default the training file's name.
        num_classes, class_names, tokens: as in `from_arrays`.

    Returns:
        A Dataset; the examples of a client lie side by side, clients in the file's order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, another layout, a client without one of the fields, or with
            inputs and labels of unequal number.

    Cost: all examples are held in memory: 2.1 GB for the inputs of federated EMNIST.
    """

    def pairs(client: str, fields: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if len(fields[x]) != len(fields[y]):
            raise ValueError(f"client {client!r} has {len(fields[x])} {x} but {len(fields[y])} {y}")
        return fields[x], fields[y]

    x_train, y_train, train_clients = _gather(existing("train_path", train_path), (x, y), pairs)
    x_test, y_test, test_clients = _gather(existing("test_path", test_path), (x, y), pairs)
    return from_arrays(
        x_train,
        y_train,
        x_test,
        y_test,
        name=name or Path(train_path).name.split(".")[0],
        num_classes=num_classes,
        class_names=class_names,
        tokens=tokens,
        train_groups={"client": train_clients},
        test_groups={"client": test_clients},
    )


def federated_emnist(folder: StrPath = ".", *, only_digits: bool = False) -> Dataset:
    """Federated EMNIST: handwritten characters of 3,400 writers (3,383 with digits only).

    Args:
        folder: holds fed_emnist_train.h5 and fed_emnist_test.h5, or with `only_digits`
            fed_emnist_digitsonly_train.h5 and fed_emnist_digitsonly_test.h5; .xz and .gz are read.
        only_digits: 10 classes instead of 62.

    Returns:
        A Dataset of float32 inputs [M, 28, 28, 1], 1 for white paper, the writers under "client".

    Raises:
        FileNotFoundError: no such files.
        ValueError: a damaged file or another layout.

    References:
        Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018. Cohen et al., "EMNIST: an
        extension of MNIST to handwritten letters", IJCNN 2017.
    """
    stem = "fed_emnist_digitsonly" if only_digits else "fed_emnist"
    data = tff_hdf5(
        _split_file(folder, f"{stem}_train"),
        _split_file(folder, f"{stem}_test"),
        name="federated_emnist",
        num_classes=10 if only_digits else 62,
    )
    train = data.train | {"x": data.train["x"][..., None]}
    return data._replace(train=train, test=data.test | {"x": data.test["x"][..., None]})


def shakespeare(folder: StrPath = ".", *, sequence_length: int = 80) -> Dataset:
    """Federated Shakespeare: the next character in the lines of 715 roles, one client each.

    All lines of a client are joined, each between <bos> and <eos>, and cut into sequences; y is x
    moved by one. The end of the last sequence is padded with 0 in x and with -1, which does not
    count, in y. Characters are numbered as in FedJAX: <pad> 0, <bos> 1, <eos> 2, then the 86
    characters of TensorFlow Federated's text generation tutorial, in its order, and <oov> 89; so 90
    classes. (TensorFlow Federated's own baseline puts oov, bos and eos last, and pads every line.)

    Args:
        folder: holds shakespeare_train.h5 and shakespeare_test.h5, or the same as .h5.xz or .h5.gz.
        sequence_length: T, characters in a sequence.

    Returns:
        A Dataset of x [M, T] int32 and y [M, T] int32 with `ignore_label` -1, the roles under
        "client". With T = 80: 30,249 training and 4,657 test sequences.

    Raises:
        FileNotFoundError: no such files.
        ValueError: a damaged file or another layout.

    References:
        McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
        AISTATS 2017. Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018.
    """
    checks.positive_int("sequence_length", sequence_length)
    table = np.full(256, _OOV, np.int32)
    table[np.frombuffer(_CHARACTERS.encode(), np.uint8)] = np.arange(_FIRST, _OOV)

    def sequences(client: str, fields: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        ids = [
            np.concatenate(([_BOS], table[np.frombuffer(line, np.uint8)], [_EOS]))
            for line in fields["snippets"].tolist()
        ]
        text = np.concatenate(ids) if ids else np.zeros(1, np.int32)
        padding = -(len(text) - 1) % sequence_length
        x = np.pad(text[:-1], (0, padding), constant_values=_PAD)
        y = np.pad(text[1:], (0, padding), constant_values=-1)
        return x.reshape(-1, sequence_length), y.reshape(-1, sequence_length)

    x_train, y_train, train_clients = _gather(
        _split_file(folder, "shakespeare_train"), ("snippets",), sequences
    )
    x_test, y_test, test_clients = _gather(
        _split_file(folder, "shakespeare_test"), ("snippets",), sequences
    )
    return from_arrays(
        x_train,
        y_train,
        x_test,
        y_test,
        name="shakespeare",
        class_names=SHAKESPEARE_SYMBOLS,
        tokens=True,
        ignore_label=-1,
        train_groups={"client": train_clients},
        test_groups={"client": test_clients},
    )


def _split_file(folder: StrPath, stem: str) -> Path:
    wanted = [f"{stem}.h5{suffix}" for suffix in ("", ".xz", ".gz")]
    for file in wanted:
        path = Path(folder).expanduser() / file
        if path.exists():
            return path
    raise FileNotFoundError(
        f"folder: {folder} holds none of {', '.join(wanted)}. Put the file of TensorFlow Federated "
        f"({stem}.h5) there"
    )


def _gather(
    path: Path,
    fields: Sequence[str],
    prepare: Callable[[str, dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, labels and client of all examples of a file; `prepare` sees one client."""
    inputs, labels, names, counts = [], [], [], []
    for client, arrays in _clients(path, fields):
        try:
            x, y = prepare(client, arrays)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        inputs.append(x)
        labels.append(y)
        names.append(client)
        counts.append(len(x))
    return np.concatenate(inputs), np.concatenate(labels), np.repeat(np.array(names), counts)


def _clients(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    import h5py

    compressed = path.suffix in (".xz", ".gz")
    source: Any = io.BytesIO(read_bytes(path)) if compressed else path
    with reading(path):
        file = h5py.File(source, "r")
    with file:
        if "examples" not in file or not len(file["examples"]):
            raise ValueError(
                f"{path} has no clients under 'examples', only {[*file]}; the layout must be "
                "examples/<client>/<field>"
            )
        for client, group in file["examples"].items():
            lacking = [field for field in fields if field not in group]
            if lacking:
                raise ValueError(
                    f"{path}: client {client!r} has no field {lacking[0]!r}, but {[*group]}; name "
                    "the fields with x= and y="
                )
            with reading(path):
                arrays = {field: group[field][:] for field in fields}
            yield client, arrays

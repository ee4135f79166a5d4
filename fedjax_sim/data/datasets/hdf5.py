"""Data with natural clients: the HDF5 files of TensorFlow Federated and LEAF."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.data._files import StrPath, check_expansion, read_bytes, reading
from fedjax_sim.data.datasets.by_client import divided, fields, gather, split_paths
from fedjax_sim.data.datasets.dataset import Dataset
from fedjax_sim.ops import checks

_CHARACTERS = (
    "dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"
)
_PAD, _BOS, _EOS, _FIRST = 0, 1, 2, 3
_OOV = _FIRST + len(_CHARACTERS)
SHAKESPEARE_SYMBOLS = ("<pad>", "<bos>", "<eos>", *_CHARACTERS, "<oov>")
"""The 90 symbols of `shakespeare`, by their ids."""
_CHARACTER_IDS = np.full(256, _OOV, np.int32)
_CHARACTER_IDS[np.frombuffer(_CHARACTERS.encode(), np.uint8)] = np.arange(_FIRST, _OOV)


def from_hdf5(
    train_path: StrPath,
    test_path: StrPath | None = None,
    *,
    x: str | None = None,
    y: str | None = None,
    name: str | None = None,
    **options: Any,
) -> Dataset:
    """Read HDF5 files laid out as `examples/<client>/<field>`, as TensorFlow Federated writes them.

    Fits federated EMNIST (fields "pixels", "label"), CIFAR-100 ("image", "label") and files of your
    own of that layout. Links to other files are refused.

    Args:
        train_path: an .h5 file, or the same compressed as .h5.xz or .h5.gz.
        test_path: the same for the test. By default the file beside it with "test" for "train" in
            its name, if there is one; else a part of each client's examples is kept.
        x, y: the fields with the inputs [n, ...] and the labels [n] of each client; by default
            those of the first client, if they are called y, label, labels or target, and x or
            whatever is left alone.
        name: by default the training file's name.
        **options: as `from_clients`.

    Returns:
        A Dataset with the group "client"; the examples of a client lie side by side, clients in
        the file's order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, another layout, a client without one of the fields; and as
            `from_clients`.

    Cost: all examples are held in memory: 2.1 GB for the inputs of federated EMNIST.
    """
    train, test = split_paths(train_path, test_path)
    return divided(
        gather(train, _examples(train, x, y)),
        None if test is None else gather(test, _examples(test, x, y), may_be_empty=True),
        name=name or train.name.split(".")[0],
        **options,
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
    return from_hdf5(
        _split_file(folder, f"{stem}_train"),
        _split_file(folder, f"{stem}_test"),
        name="federated_emnist",
        num_classes=10 if only_digits else 62,
        x_shape=(28, 28, 1),
    )


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

    def sequences(path: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for client, arrays in _clients(path, lambda available: ("snippets",)):
            with reading(f"{path}: client {client!r}"):
                lines = [character_ids(line) for line in arrays["snippets"].tolist()]
            ids = [np.array([_BOS, *line, _EOS], np.int32) for line in lines]
            text = np.concatenate(ids) if ids else np.zeros(1, np.int32)
            padding = -(len(text) - 1) % sequence_length
            x = np.pad(text[:-1], (0, padding), constant_values=_PAD)
            y = np.pad(text[1:], (0, padding), constant_values=-1)
            yield (
                client,
                {"x": x.reshape(-1, sequence_length), "y": y.reshape(-1, sequence_length)},
            )

    train = _split_file(folder, "shakespeare_train")
    test = _split_file(folder, "shakespeare_test")
    return divided(
        gather(train, sequences(train)),
        gather(test, sequences(test), may_be_empty=True),
        name="shakespeare",
        class_names=SHAKESPEARE_SYMBOLS,
        tokens=True,
        ignore_label=-1,
    )


def character_ids(text: str | bytes) -> np.ndarray:
    """The number in `SHAKESPEARE_SYMBOLS` of each character of a text."""
    if isinstance(text, bytes):
        codes = np.frombuffer(text, np.uint8)
    else:
        wide = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        codes = np.minimum(wide, 255)  # which is no character of theirs
    return _CHARACTER_IDS[codes]


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


def _examples(
    path: Path, x: str | None, y: str | None
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    chosen: tuple[str, ...] = ()

    def choose(available: Sequence[str]) -> tuple[str, ...]:
        nonlocal chosen
        chosen = chosen or fields(path, available, x, y)
        return chosen

    for client, arrays in _clients(path, choose):
        yield client, {"x": arrays[chosen[0]], "y": arrays[chosen[1]]}


def _clients(
    path: Path, choose: Callable[[Sequence[str]], Sequence[str]]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Client and arrays of the fields that `choose` takes of those that are there."""
    import h5py

    compressed = path.suffix in (".xz", ".gz")
    source: Any = io.BytesIO(read_bytes(path)) if compressed else path
    stored = len(source.getbuffer()) if compressed else path.stat().st_size
    with reading(path):
        file = h5py.File(source, "r")
    with file:
        names = _names(file, path)
        clients = _member(file, "examples", path) if "examples" in names else None
        found = _names(clients, path) if isinstance(clients, h5py.Group) else []
        if not found:
            raise ValueError(
                f"{path} has no clients under 'examples', only {names}; the layout must be "
                "examples/<client>/<field>"
            )
        for client in found:
            group = _member(clients, client, path)
            if not isinstance(group, h5py.Group):
                raise ValueError(f"{path}: client {client!r} is no group of fields")
            available = _names(group, path)
            wanted = choose(available)
            lacking = [field for field in wanted if field not in available]
            if lacking:
                raise ValueError(
                    f"{path}: client {client!r} has no field {lacking[0]!r}, but {available}; name "
                    "the fields with x= and y="
                )
            yield client, {field: _read(group, field, path, stored) for field in wanted}


def _names(group: Any, path: Path) -> list[str]:
    with reading(path):
        return [*group]


def _member(group: Any, name: str, path: Path) -> Any:
    """What a group holds by this name; links are not followed: they lead anywhere."""
    import h5py

    with reading(path):
        link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        target = f"{getattr(link, 'filename', '')} {getattr(link, 'path', '')}"
        raise ValueError(
            f"{path}: {name!r} is a link to {target.strip()!r:.100}, which is not followed. Copy "
            "what it leads to into the file"
        )
    with reading(path):
        return group[name]


def _read(group: Any, field: str, path: Path, stored: int) -> np.ndarray:
    import h5py

    dataset = _member(group, field, path)
    where = f"{path}: {group.name}/{field}"
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{where} is no array")
    with reading(where):
        elsewhere = bool(dataset.external) or dataset.is_virtual
        num_bytes = math.prod(dataset.shape) * dataset.dtype.itemsize
    if elsewhere:
        raise ValueError(f"{where} has its values in another file, which is not read. Copy them")
    check_expansion(where, num_bytes, stored)
    with reading(where):
        return dataset[()]

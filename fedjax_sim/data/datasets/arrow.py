"""Hugging Face's data sets: objects, folders of arrow files and of parquet files, by client."""

import collections
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.data._files import check_expansion, existing, read_parquet, reading
from fedjax_sim.data.datasets._image_files import pictures
from fedjax_sim.data.datasets.by_client import divided, fields, gather
from fedjax_sim.data.datasets.dataset import Dataset

_FILES = (".arrow", ".parquet")
_CLIENTS = ("client", "client_id")
_LONGEST_TEXT = 1_000


def from_huggingface(
    source: Any,
    *,
    client_column: str | None = None,
    x: str | Sequence[str] | None = None,
    y: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    name: str | None = None,
    **options: Any,
) -> Dataset:
    """Read a data set of Hugging Face, one of whose columns names the client.

    The library `datasets` is not needed for files.

    Args:
        source: one of

            - a `datasets.Dataset`, or a `DatasetDict` or other dict of them by split;
            - a folder that `save_to_disk` has made, or one of .arrow or .parquet files: in folders
              train and test (`train_split`, `test_split`), or with those words in their names, in
              the folder or in its folder data; without such words, all are training examples;
            - one .arrow or .parquet file.

        client_column: by default "client" or "client_id".
        x, y: the columns with inputs and labels, by default as in `from_hdf5`. Inputs are numbers,
            lists of one length (also nested), or pictures of one size; several columns of numbers
            become the features. Labels may be a ClassLabel, whose names become the class names.
        train_split, test_split: names of the splits. Without the second, a part of each client's
            examples is kept.
        name: by default the folder's name.
        **options: as `from_clients`.

    Returns:
        A Dataset with the group "client", in the order of the names; pictures are uint8 [M, height,
        width, channels].

    Raises:
        FileNotFoundError: no such file; a file of several that belong together is not there.
        TypeError: a data set that is streamed.
        ValueError: a damaged file, no such column, missing values, rows of unequal length, columns
            of another kind, such as dates; and as `from_clients`.
    """
    if isinstance(source, str | os.PathLike):
        path = existing("source", source)
        tables = {split: _read(files) for split, files in _splits(path, train_split, test_split)}
        where: dict[str, object] = {train_split: path, test_split: path}
        name = name or path.resolve().name.split(".")[0]
    else:
        splits = source if isinstance(source, Mapping) else {train_split: source}
        used = [split for split in (train_split, test_split) if split in splits]
        tables = {split: _table(splits[split]) for split in used}
        where = {split: f"split {split!r}" for split in used}
        if train_split not in splits:
            raise ValueError(
                f"source has the splits {[*splits]}, but no {train_split!r}; name it with "
                "train_split="
            )
    if train_split not in tables:
        raise ValueError(
            f"{path} has the split {test_split!r}, but no {train_split!r}; name it with "
            "train_split="
        )
    train = tables[train_split]
    columns = _columns(where[train_split], train.column_names, client_column, x, y)
    classes = _class_names(train, columns[-1])
    if classes is not None:
        options = {"class_names": classes} | options
    if isinstance(x, Sequence) and not isinstance(x, str):
        options = {"feature_names": [*x]} | options
    test = tables.get(test_split)
    return divided(
        gather(where[train_split], _by_client(where[train_split], train, *columns)),
        None
        if test is None
        else gather(where[test_split], _by_client(where[test_split], test, *columns)),
        name=name or "huggingface",
        **options,
    )


def _splits(path: Path, train_split: str, test_split: str) -> Iterator[tuple[str, list[Path]]]:
    """The files of the splits that there are."""
    if path.is_file():
        yield train_split, [path]
        return
    found = False
    for split in (train_split, test_split):
        word = re.compile(rf"(^|[-_.]){re.escape(split)}[-_.]")
        files = _files(path / split) or [
            file
            for folder in (path, path / "data")
            for file in _files(folder)
            if word.search(file.name)
        ]
        if files:
            found = True
            yield split, files
    if not found:
        files = _files(path)
        if not files:
            raise FileNotFoundError(
                f"source: {path} holds no .arrow or .parquet files, nor do its folders "
                f"{train_split}, {test_split} and data"
            )
        yield train_split, files


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.iterdir() if file.suffix in _FILES)
    numbered = [re.fullmatch(r"(.*)-\d{5}-of-(\d{5})", file.stem) for file in files]
    counts = collections.Counter(match.groups() for match in numbered if match)
    for (stem, total), count in counts.items():
        if count != int(total):
            raise FileNotFoundError(
                f"source: {folder} holds {count} of the {int(total)} files {stem}-...-of-{total}. "
                "Get those that are missing"
            )
    return files


def _read(files: Sequence[Path]) -> Any:
    """The rows of several files as a table."""
    import pyarrow

    tables = []
    for file in files:
        tables.append(read_parquet(file) if file.suffix == ".parquet" else _read_arrow(file))
        if tables[-1].schema.names != tables[0].schema.names:
            raise ValueError(
                f"{file} has the columns {tables[-1].schema.names}, but {files[0]} "
                f"{tables[0].schema.names}"
            )
    with reading(files[0].parent):
        return pyarrow.concat_tables(tables)


def _read_arrow(path: Path) -> Any:
    import pyarrow

    with reading(path):
        content = pyarrow.memory_map(str(path))
        is_file = content.read(6) == b"ARROW1"
        content.seek(0)
        reader = pyarrow.ipc.open_file(content) if is_file else pyarrow.ipc.open_stream(content)
        table = reader.read_all()
        table.validate(full=True)
    check_expansion(path, table.get_total_buffer_size(), path.stat().st_size)
    return table


def _table(data: Any) -> Any:
    """The rows of a Dataset of Hugging Face, in its own order."""
    if not hasattr(data, "with_format") or not hasattr(data, "features"):
        raise TypeError(
            "source must be a folder, a datasets.Dataset or a dict of them, got "
            f"{type(data).__name__}"
        )
    if not hasattr(data, "__len__"):
        raise TypeError(
            "source is streamed, and its size unknown. Load it without streaming=True, or make a "
            "Dataset of a part: datasets.Dataset.from_list(list(data.take(1000)))"
        )
    return data.with_format("arrow")[:]


def _columns(
    where: object,
    names: list[str],
    client: str | None,
    x: str | Sequence[str] | None,
    y: str | None,
) -> tuple[str, list[str], str]:
    """The columns with the client, the inputs and the labels."""
    if client is None:
        found = [name for name in _CLIENTS if name in names]
        if len(found) != 1:
            raise ValueError(
                f"{where} has the columns {names}: which names the client? Say it with "
                "client_column="
            )
        client = found[0]
    several = [x] if isinstance(x, str) or x is None else [*x]
    rest = [name for name in names if name != client]
    if client not in names:
        raise ValueError(f"{where} has no column {client!r}, but {names}")
    pairs = [fields(where, rest, column, y) for column in several]
    return client, [column for column, _ in pairs], pairs[0][1]


def _class_names(table: Any, column: str) -> list[str] | None:
    """The names of a ClassLabel, as they stand in the metadata of the table."""
    metadata = (table.schema.metadata or {}).get(b"huggingface", b"")
    try:
        feature = json.loads(metadata)["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (TypeError, ValueError, KeyError, RecursionError):  # none there, or none of theirs
        return None
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else None


def _by_client(
    where: object, table: Any, client: str, inputs: Sequence[str], labels: str
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    for column in (client, *inputs, labels):
        if column not in table.column_names:
            raise ValueError(f"{where} has no column {column!r}, but {table.column_names}")
    columns = [_values(table.column(column), f"{where}: column {column!r}") for column in inputs]
    x = columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
    y = _values(table.column(labels), f"{where}: column {labels!r}")
    names, owner = np.unique(
        _values(table.column(client), f"{where}: column {client!r}"), return_inverse=True
    )
    rows = np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner))[:-1])
    for name, own in zip(names.tolist(), rows, strict=True):
        yield name, {"x": x[own], "y": y[own]}


def _values(column: Any, where: str) -> np.ndarray:
    """A column as an array [n, ...]."""
    chunks = [_chunk(chunk, where) for chunk in column.chunks if len(chunk)]
    if not chunks:
        raise ValueError(f"{where} has no rows")
    if len({chunk.shape[1:] for chunk in chunks}) > 1:
        raise ValueError(f"{where} has rows of unequal length; bring them to one")
    return np.concatenate(chunks)


def _chunk(array: Any, where: str) -> np.ndarray:
    import pyarrow.compute as pc
    from pyarrow import types

    kind = array.type
    if array.null_count:
        raise ValueError(f"{where} has {array.null_count} missing values; fill or remove them")
    if hasattr(array, "storage"):  # of an extension, such as Hugging Face's Array2D
        return _chunk(array.storage, where)
    if types.is_dictionary(kind):
        return _chunk(array.dictionary_decode(), where)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        lengths = pc.unique(pc.list_value_length(array)).to_pylist()
        if len(lengths) > 1 or lengths == [0]:
            raise ValueError(f"{where} has lists of unequal length or none; bring them to one")
        inner = _chunk(array.flatten(), where)
        return inner.reshape(len(array), lengths[0], *inner.shape[1:])
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return _chunk(pc.struct_field(array, "bytes"), where)
    if types.is_binary(kind) or types.is_large_binary(kind):
        return _pictures(array.to_pylist(), where)
    if types.is_string(kind) or types.is_large_string(kind):
        longest = pc.max(pc.utf8_length(array)).as_py()
        if longest > _LONGEST_TEXT:
            raise ValueError(
                f"{where} has a text of {longest} characters; names of clients and labels have "
                f"{_LONGEST_TEXT} at most. Texts that are inputs must be made numbers first"
            )
        return np.array(array.to_pylist())
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return array.to_numpy(zero_copy_only=False)
    raise ValueError(
        f"{where} is of the type {kind}; needed are numbers, lists of them, pictures, or text for "
        "clients and labels"
    )


def _pictures(rows: list[bytes], where: str) -> np.ndarray:
    decoded = pictures(rows, where)
    for row, picture in enumerate(decoded):
        if picture.shape != decoded[0].shape:
            raise ValueError(
                f"{where} has a picture of {picture.shape} in row {row}, but of "
                f"{decoded[0].shape} in row 0; bring all to one size"
            )
    return np.stack(decoded)

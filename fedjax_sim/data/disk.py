"""Populations larger than memory: clients on disk, of which a run loads those that take part.

`write` makes a folder once, client by client:

    clients.array_record    one record a client: its arrays' bytes, one array after the other
    sizes.npy               [N] the number of examples of each client
    population.json         names, dtypes and shapes of the arrays; written last

`Population` opens it. `simulate.run` takes a Population wherever it takes a `FederatedData`: it
draws the cohorts of a segment of rounds ahead, with the keys that the rounds will use, and loads
their clients while the segment before is running. Results are those of the population in memory.
"""

import concurrent.futures
import itertools
import json
import math
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_sim.base import Examples, outline, screen
from fedjax_sim.data._files import check_dtype, existing, read_bytes, read_json, read_npy, reading
from fedjax_sim.data.federated_data import FederatedData, Ranges, checked, ranges_of, size_facts
from fedjax_sim.ops import devices

_RECORDS, _SIZES, _INDEX = "clients.array_record", "sizes.npy", "population.json"
_FORMAT = 1
_BLOCK_BYTES = 64 * 2**20
_READ_AT_ONCE = 32


class Population:
    """The clients of a folder that `write` made. Opening it reads the index alone.

    Args:
        path: the folder.
        mesh: the mesh of the algorithm, if it has one: what is loaded is copied to its devices.

    Attributes:
        sizes: [N] int64 NumPy array, the examples of each client.
        num_clients, num_examples: N, and the examples of all of them.

    Raises:
        FileNotFoundError: there is no whole population in the folder.
        ValueError: a file of the folder is damaged, or they do not belong together. A client's
            record is checked when it is loaded.

    Example:
        >>> import tempfile
        >>> rows = [{"x": np.eye(3)[:n], "y": np.arange(n)} for n in (2, 1, 3)]
        >>> population = write(tempfile.mkdtemp(), rows)
        >>> population.num_clients, population.sizes.tolist(), population.client(2)["y"].tolist()
        (3, [2, 1, 3], [0, 1, 2])
        >>> population.load([0, 2]).examples["x"].shape
        (5, 3)
    """

    def __init__(self, path: str | os.PathLike[str], *, mesh: Mesh | None = None) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.path = Path(path).expanduser()
        self._arrays, ranges = _read_index(self.path)
        self._row_bytes = sum(_row_bytes(*spec) for spec in self._arrays.values())
        self._mesh = mesh
        self.sizes = _read_sizes(self.path / _SIZES)
        records = existing("path", self.path / _RECORDS, "Write the population again.")
        with reading(records):
            self._records = ArrayRecordDataSource(str(records))
            num_records = len(self._records)
        if len(self.sizes) != num_records:
            raise ValueError(
                f"{self.path} is damaged: {_SIZES} has {len(self.sizes)} clients and {_RECORDS} "
                f"{num_records}. Write the population again."
            )
        if int(self.sizes.sum()) * self._row_bytes > records.stat().st_size:
            raise ValueError(
                f"{self.path} is damaged: {int(self.sizes.sum())} examples ({_SIZES}) of "
                f"{self._row_bytes} bytes ({_INDEX}) are more than {_RECORDS} has. Write the "
                "population again."
            )
        self._device_sizes = jnp.asarray(self.sizes, jnp.int32)
        self._facts = size_facts(self.sizes) | {"ranges": ranges}
        if mesh is not None:
            self._device_sizes = devices.replicate(self._device_sizes, mesh)

    def __repr__(self) -> str:
        arrays = {
            name: jax.ShapeDtypeStruct((self.num_examples, *shape), dtype)
            for name, (dtype, shape) in self._arrays.items()
        }
        return screen(
            self,
            path=str(self.path),
            clients=f"{self.num_clients:,} of {min(self.sizes):,} to {max(self.sizes):,} examples",
            examples=f"{self.num_examples:,}: {outline(arrays)}",
        )

    @property
    def num_clients(self) -> int:
        """N."""
        return len(self.sizes)

    @property
    def num_examples(self) -> int:
        """The examples of all clients together."""
        return int(self.sizes.sum())

    def client(self, client_id: int) -> Examples:
        """The examples of one client, as NumPy arrays [size, ...]."""
        return self._read(self._checked([client_id]), int(self.sizes[client_id])).examples

    def load(self, client_ids: Sequence[int] | np.ndarray) -> FederatedData:
        """Put some clients on the device, under the ids they have in the population.

        Args:
            client_ids: ids in [0, N), in any order.

        Returns:
            The population with the examples of these clients alone.
        """
        ids = self._checked(client_ids)
        return self._put(self._read(ids, self._num_rows(ids)))

    def stream(self, groups: Sequence[np.ndarray]) -> Iterator[FederatedData]:
        """Load one group of clients after the other; the next one is read from disk meanwhile.

        Args:
            groups: arrays of client ids.

        Yields:
            What `load` gives for each group, all of one shape, so that one program takes them all:
            filled up to the group with the most examples, and by up to an eighth more, so that the
            same program often takes other groups too.

        Cost: host memory of one group, and on the device what the caller keeps.
        """
        groups = [self._checked(group) for group in groups]
        if not groups:
            return
        num_rows = _with_room(max(map(self._num_rows, groups)))
        with concurrent.futures.ThreadPoolExecutor(1) as reader:
            pending = reader.submit(self._read, groups[0], num_rows)
            for following in [*groups[1:], None]:
                loaded = self._put(pending.result())
                if following is not None:
                    pending = reader.submit(self._read, following, num_rows)
                yield loaded

    def blocks(self) -> Iterator[FederatedData]:
        """Stream everybody once, in blocks of about 64 MiB: what an evaluation goes over."""
        most_rows = max(int(self.sizes.max()), _BLOCK_BYTES // max(self._row_bytes, 1))
        ends = np.cumsum(self.sizes)
        firsts = [0]
        while firsts[-1] < self.num_clients:
            done = ends[firsts[-1] - 1] if firsts[-1] else 0
            firsts.append(int(np.searchsorted(ends, done + most_rows, side="right")))
        return self.stream([np.arange(a, b) for a, b in itertools.pairwise(firsts)])

    def _checked(self, client_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        ids = np.unique(np.asarray(client_ids, np.int64))
        wrong = ids[(ids < 0) | (ids >= self.num_clients)]
        if len(wrong):
            raise ValueError(
                f"client ids must lie in [0, {self.num_clients}), got {wrong[:5].tolist()}."
            )
        return ids

    def _num_rows(self, ids: np.ndarray) -> int:
        num_rows = max(1, int(self.sizes[ids].sum()))
        if num_rows >= 2**31:
            raise ValueError(
                f"{len(ids)} clients have {num_rows} examples, more than fit an index of 32 bits. "
                "Load fewer at once: smaller cohorts, or a smaller segment_rounds."
            )
        return num_rows

    def _read(self, ids: np.ndarray, num_rows: int) -> FederatedData:
        """Clients (ascending ids) in host memory, filled up to `num_rows` rows."""
        sizes = self.sizes[ids]
        ends = np.cumsum(sizes)
        examples = {
            name: np.zeros((num_rows, *shape), dtype)
            for name, (dtype, shape) in self._arrays.items()
        }
        records = zip(ids, self._records_of(ids), ends, sizes, strict=True)
        for client_id, record, end, size in records:
            if len(record) != size * self._row_bytes:
                raise ValueError(
                    f"{self.path} is damaged: client {client_id} has {size} examples ({_SIZES}) of "
                    f"{self._row_bytes} bytes ({_INDEX}), but {_RECORDS} {len(record)} bytes. "
                    "Write the population again."
                )
            offset = 0
            for name, (dtype, shape) in self._arrays.items():
                count = int(size) * math.prod(shape)
                column = np.frombuffer(record, dtype, count, offset)
                examples[name][end - size : end] = column.reshape(-1, *shape)
                offset += column.nbytes
        starts: Any = np.full(self.num_clients, num_rows, np.int32)
        starts[ids] = ends - sizes
        owners: Any = np.full(num_rows, self.num_clients, np.int32)
        owners[: sizes.sum()] = np.repeat(ids, sizes)
        return FederatedData(examples, owners, starts, self._device_sizes, **self._facts)

    def _records_of(self, ids: np.ndarray) -> Iterator[bytes]:
        """Clients' records: several at once, to be read in parallel, but never all."""
        for first in range(0, len(ids), _READ_AT_ONCE):
            with reading(self.path / _RECORDS):
                records = self._records.__getitems__(ids[first : first + _READ_AT_ONCE].tolist())
            yield from records

    def _put(self, part: FederatedData) -> FederatedData:
        """A part in host memory, on the device or on all devices of the mesh."""
        return jax.device_put(part) if self._mesh is None else devices.replicate(part, self._mesh)


def _read_index(path: Path) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...]]], Ranges]:
    """Name -> dtype and shape of a row of the arrays of a population, and their ranges."""
    if not (path / _INDEX).exists():
        raise FileNotFoundError(
            f"there is no population in {path}: it has no {_INDEX}, which disk.write leaves there "
            "when it is done."
        )
    index = read_json(path / _INDEX)
    with reading(path / _INDEX):
        written = index["format"]
    if written != _FORMAT:
        raise ValueError(
            f"{path} has format {written}, but this version reads {_FORMAT}. Write the population "
            "again."
        )
    with reading(path / _INDEX):
        arrays = {
            name: (np.dtype(dtype), tuple(map(operator.index, shape)))
            for name, (dtype, shape) in index["arrays"].items()
        }
        ranges = tuple(
            (name, operator.index(low), operator.index(high))
            for name, low, high in index.get("ranges", ())
        )
    for name, (dtype, shape) in arrays.items():
        check_dtype(dtype, f"{path / _INDEX}: {name}")
        if min(shape, default=0) < 0:
            raise ValueError(f"{path / _INDEX} is damaged: rows of {name!r} have shape {shape}.")
    return arrays, ranges


def _read_sizes(path: Path) -> np.ndarray:
    sizes = read_npy(read_bytes(path), path)
    wrong = sizes.ndim != 1 or sizes.dtype.kind not in "iu" or not sizes.size
    if wrong or sizes.min() < 0 or sizes.max() >= 2**31:
        raise ValueError(
            f"{path} is damaged: it must hold the number of examples of each client, but holds "
            f"{sizes.dtype} of shape {sizes.shape}: {' '.join(str(sizes).split()):.100}. "
            "Write the population again."
        )
    return sizes.astype(np.int64)


def write(
    path: str | os.PathLike[str],
    clients: Iterable[Examples],
    *,
    num_classes: int | None = None,
    ignore_label: int | None = None,
) -> Population:
    """Write a population to disk, one client after the other.

    Args:
        path: the folder, made if missing.
        clients: one dict of arrays [size, ...] a client, best a generator, of which one client at
            a time is in memory. All have the same names, dtypes and shapes of a row. A client may
            have no examples, as in `data.federate`.
        num_classes, ignore_label: as in `data.federate`.

    Returns:
        The Population, opened.

    Raises:
        FileExistsError: the folder holds a population already.
        ValueError, TypeError: as `data.federate`, with the number of the client; or its arrays are
            not like those of the first client. What was written until then is no population.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    path = Path(path).expanduser()
    if (path / _INDEX).exists():
        raise FileExistsError(
            f"{path} already holds a population. Open it with disk.Population, or write to "
            "another folder."
        )
    path.mkdir(parents=True, exist_ok=True)
    sizes: list[int] = []
    ranges: Ranges = ()
    first: dict[str, tuple[str, tuple[int, ...]]] = {}
    # Records of their own, since clients are drawn at random; not compressed: reading is on time.
    writer = ArrayRecordWriter(str(path / _RECORDS), "group_size:1,uncompressed")
    try:
        for number, client in enumerate(clients):
            try:
                arrays = checked(client, num_classes, ignore_label)
            except (ValueError, TypeError) as error:
                error.add_note(f"This happened in client {number}.")
                raise
            kinds = {name: (a.dtype.name, a.shape[1:]) for name, a in arrays.items()}
            first = first or kinds
            if kinds != first:
                raise ValueError(
                    f"all clients must have the same arrays: client {number} has {kinds}, client "
                    f"0 {first}."
                )
            size = len(next(iter(arrays.values())))
            ranges = _merged((*ranges, *ranges_of(arrays, ignore_label)))
            writer.write(b"".join(_bytes(arrays[name]) for name in first))
            sizes.append(size)
    finally:
        writer.close()
    if not any(sizes):
        raise ValueError(
            f"clients must have at least one example, got {len(sizes)} clients and no example."
        )
    np.save(path / _SIZES, np.array(sizes))
    index = {"format": _FORMAT, "arrays": first, "ranges": ranges}
    partial = path / f".partial-{_INDEX}"
    partial.write_text(json.dumps(index), encoding="utf-8")
    partial.replace(path / _INDEX)
    return Population(path)


def _merged(ranges: Ranges) -> Ranges:
    """One range a name, of those of all clients."""
    merged: dict[str, tuple[int, int]] = {}
    for name, low, high in ranges:
        known = merged.get(name, (low, high))
        merged[name] = min(low, known[0]), max(high, known[1])
    return tuple((name, low, high) for name, (low, high) in merged.items())


def _bytes(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("="), copy=False).tobytes()


def _row_bytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(shape)


def _with_room(num_rows: int) -> int:
    """At least so many rows: one of eight sizes between a power of two and the next."""
    step = 1 << max(0, (num_rows - 1).bit_length() - 4)
    return -(-num_rows // step) * step

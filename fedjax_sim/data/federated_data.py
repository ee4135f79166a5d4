"""FederatedData: every example stored once, flat, plus which client owns it.

The examples of a client stand next to each other, so that a client is (start, size), an epoch is a
permutation of 0 ... size - 1 computed on the fly, and a pass over everybody is a pass over one
array.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Examples, outline, screen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class FederatedData:
    """The examples of N clients, on the device. Build it with `federate`.

    What `disk.Population.load` gives is a part of a population: it has everybody's size and
    the examples of some, so that a client keeps its id, and with it its randomness and its state.

    Attributes:
        examples: dict of arrays [M, ...], the rows of each client next to each other. uint8 stays
            uint8.
        owners: [M] int32, the client of each row, ascending; N for rows that only fill a part up.
        starts: [N] int32, the first row of each client; M for a client that is not loaded.
        sizes: [N] int32, >= 1, the rows of each client.
        min_size, max_size: the range of `sizes`, static.
        quantiles: sizes at equally spaced fractions from 0 to 1 of the clients, static, from which
            the engine judges how unequal a cohort will be; () if unknown.
    """

    examples: Examples
    owners: Array
    starts: Array
    sizes: Array
    min_size: int = dataclasses.field(metadata={"static": True})
    max_size: int = dataclasses.field(metadata={"static": True})
    quantiles: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})

    def __repr__(self) -> str:
        return screen(
            self,
            clients=f"{self.num_clients:,} of {self.min_size:,} to {self.max_size:,} examples",
            examples=f"{self.num_examples:,}: {outline(self.examples)}",
        )

    @property
    def num_clients(self) -> int:
        """N."""
        return self.sizes.shape[0]

    @property
    def num_examples(self) -> int:
        """M, the examples that are loaded, with what fills them up."""
        return self.owners.shape[0]

    def client(self, client_id: int) -> Examples:
        """The examples of one client, as NumPy arrays [size, ...]."""
        self._check_ids("client_id", [client_id])
        start, size = int(self.starts[client_id]), int(self.sizes[client_id])
        return {name: np.asarray(a[start : start + size]) for name, a in self.examples.items()}

    def select(self, client_ids: Sequence[int]) -> "FederatedData":
        """The population of these clients alone, renumbered 0, 1, ... in the given order."""
        self._check_ids("client_ids", client_ids)
        starts, sizes = np.asarray(self.starts), np.asarray(self.sizes)
        partition = [np.arange(starts[i], starts[i] + sizes[i]) for i in client_ids]
        examples = {name: np.asarray(a) for name, a in self.examples.items()}
        return federate(examples, partition)

    def pooled(self) -> "FederatedData":
        """All examples as one single client: centralised training with the same code."""
        return self.select(range(self.num_clients))._merged()

    def _merged(self) -> "FederatedData":
        m = self.num_examples
        zero = jnp.zeros(1, jnp.int32)
        return FederatedData(self.examples, jnp.zeros(m, jnp.int32), zero, zero + m, m, m)

    def _check_ids(self, name: str, ids: Sequence[int]) -> None:
        wrong = [i for i in ids if not 0 <= i < self.num_clients]
        if wrong or len(ids) == 0:
            what = f"got {wrong[:5]}" if wrong else "got none"
            raise ValueError(f"{name} must be ids in [0, {self.num_clients}), {what}.")
        starts = np.asarray(self.starts)
        absent = [i for i in ids if starts[i] == self.num_examples]
        if absent:
            raise ValueError(
                f"{name} must be clients that are loaded, got {absent[:5]}: this is a part of a "
                "population on disk. Ask the population."
            )


def federate(
    examples: Examples, partition: Sequence[np.ndarray], *, num_classes: int | None = None
) -> FederatedData:
    """Put examples on the device, client after client.

    Args:
        examples: dict of arrays with one leading axis [M, ...]; by convention "x" inputs and "y"
            labels, to which own columns may be added.
        partition: N arrays of row numbers, one a client (see `data.partition`). Rows that no
            client owns are left out; a row that two clients own is stored twice.
        num_classes: if given, integer labels "y" must lie in [0, num_classes), or be negative for
            positions that do not count.

    Returns:
        The data, on JAX's default device.

    Raises:
        ValueError: lengths that differ, a client without examples, row numbers out of range,
            features that are not finite, labels out of range, integers beyond 32 bits.
        TypeError: examples that are not numbers, row numbers that are not integers.

    Example:
        >>> data = federate({"x": np.eye(4), "y": np.arange(4)}, [np.array([2]), np.array([0, 3])])
        >>> data.num_clients, data.sizes.tolist(), data.client(1)["y"].tolist()
        (2, [1, 2], [0, 3])
    """
    arrays = checked(examples, num_classes)
    num_rows = len(next(iter(arrays.values())))
    if len(partition) == 0:
        raise ValueError("partition must have at least one client, got an empty list.")
    parts = [np.asarray(part) for part in partition]
    for i, part in enumerate(parts):
        if part.ndim != 1:
            raise ValueError(
                "partition must hold one 1-D array of row numbers a client, got shape "
                f"{part.shape} for client {i}."
            )
    sizes = np.array([len(part) for part in parts])
    if (sizes == 0).any():
        empty = np.flatnonzero(sizes == 0)
        raise ValueError(
            f"{len(empty)} of {len(parts)} clients have no examples, ids {empty[:5].tolist()} "
            "first. Drop them, or partition with min_size=1."
        )
    rows = np.concatenate(parts)
    if not np.issubdtype(rows.dtype, np.integer):
        raise TypeError(f"partition must hold integer row numbers, got dtype {rows.dtype}.")
    if rows.min() < 0 or rows.max() >= num_rows:
        raise ValueError(
            f"partition must hold row numbers in [0, {num_rows}), got numbers from {rows.min()} "
            f"to {rows.max()}."
        )
    return FederatedData(
        examples={name: jnp.asarray(array[rows]) for name, array in arrays.items()},
        owners=jnp.asarray(np.repeat(np.arange(len(sizes)), sizes), jnp.int32),
        starts=jnp.asarray(np.cumsum(sizes) - sizes, jnp.int32),
        sizes=jnp.asarray(sizes, jnp.int32),
        **size_facts(sizes),
    )


def size_facts(sizes: np.ndarray) -> dict[str, Any]:
    """The static facts of a FederatedData, from the sizes of all clients."""
    quantiles = np.quantile(sizes, np.linspace(0, 1, 17)).astype(int).tolist()
    return {"min_size": quantiles[0], "max_size": quantiles[-1], "quantiles": tuple(quantiles)}


def checked(examples: Examples, num_classes: int | None = None) -> dict[str, np.ndarray]:
    """Check examples as `federate` does, and bring them to the dtypes JAX computes with."""
    arrays = {name: _narrow(name, np.asarray(array)) for name, array in examples.items()}
    _check_examples(arrays, num_classes)
    return arrays


_NARROW = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32}


def _narrow(name: str, array: np.ndarray) -> np.ndarray:
    """64-bit numbers to the 32-bit ones JAX computes with."""
    if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise TypeError(f"examples[{name!r}] must hold numbers, got dtype {array.dtype}.")
    dtype = np.dtype(_NARROW.get(array.dtype.name, array.dtype))
    if dtype != array.dtype and dtype.kind in "iu" and array.size:
        low, high = array.min(), array.max()
        if low < np.iinfo(dtype).min or high > np.iinfo(dtype).max:
            raise ValueError(
                f"examples[{name!r}] must fit {dtype}, got numbers from {low} to {high}."
            )
    with np.errstate(over="ignore"):  # what overflows is reported as not finite
        return array.astype(dtype, copy=False)


def _check_examples(examples: dict[str, np.ndarray], num_classes: int | None) -> None:
    if not examples:
        raise ValueError("examples must hold at least one array, got an empty dict.")
    lengths = {name: array.shape[:1] for name, array in examples.items()}
    if len(set(lengths.values())) > 1 or () in lengths.values():
        shapes = {name: array.shape for name, array in examples.items()}
        raise ValueError(f"examples must share their leading axis, got shapes {shapes}.")
    for name, array in examples.items():
        if jnp.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            where = np.argwhere(~np.isfinite(array))[0].tolist()
            raise ValueError(
                f"examples[{name!r}] must be finite, got {array[tuple(where)]} at index {where}. "
                "Clean or impute the data first."
            )
    labels = np.asarray(examples.get("y", ()))
    if num_classes is not None and labels.size and labels.max() >= num_classes:
        row = int(np.argmax(labels.reshape(len(labels), -1).max(axis=1)))
        raise ValueError(
            f"labels must lie in [0, {num_classes}) (num_classes), got {labels.max()} in row {row}."
        )

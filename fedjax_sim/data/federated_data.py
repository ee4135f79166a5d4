"""FederatedData: every example stored once, flat, plus which client owns it.

The examples of a client stand next to each other, so that a client is (start, size), an epoch is a
permutation of 0 ... size - 1 computed on the fly, and a pass over everybody is a pass over one
array.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Examples, outline, screen
from fedjax_sim.data._arrays import as_numpy, check_ignore_label, first, is_text, missing, place
from fedjax_sim.ops import checks

Ranges = tuple[tuple[str, int, int], ...]
"""(name, lowest, highest) of arrays of integers."""


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
        sizes: [N] int32, the rows of each client; 0 for one without, which can be evaluated, but
            not trained on.
        min_size, max_size: the range of `sizes`, static.
        quantiles: sizes at equally spaced fractions from 0 to 1 of the clients, static, from which
            the engine judges how unequal a cohort will be; () if unknown.
        ranges: (name, lowest, highest) of the arrays of integers beside "x", static, so that labels
            and domains out of range are seen before a run; labels that do not count are left out.
    """

    examples: Examples
    owners: Array
    starts: Array
    sizes: Array
    min_size: int = dataclasses.field(metadata={"static": True})
    max_size: int = dataclasses.field(metadata={"static": True})
    quantiles: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    ranges: Ranges = dataclasses.field(default=(), metadata={"static": True})

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
        # Cut on the host, where it shares the memory of a CPU's arrays: cutting a device's is a
        # program for each size.
        return {name: np.asarray(a)[start : start + size] for name, a in self.examples.items()}

    def select(self, client_ids: Sequence[int]) -> "FederatedData":
        """The population of these clients alone, renumbered 0, 1, ... in the given order."""
        self._check_ids("client_ids", client_ids)
        starts, sizes = np.asarray(self.starts), np.asarray(self.sizes)
        chosen = sizes[np.asarray(client_ids)]
        if not chosen.any():
            raise ValueError(f"none of the clients {_some(client_ids)} has an example.")
        rows = np.concatenate([np.arange(starts[i], starts[i] + sizes[i]) for i in client_ids])
        examples = {name: np.asarray(a)[rows] for name, a in self.examples.items()}
        return dataclasses.replace(_stored(examples, chosen), ranges=self.ranges)

    def pooled(self) -> "FederatedData":
        """All examples as one single client: centralised training with the same code."""
        return self.select(range(self.num_clients))._merged()

    def _merged(self) -> "FederatedData":
        m = self.num_examples
        zero = jnp.zeros(1, jnp.int32)
        owners = jnp.zeros(m, jnp.int32)
        return FederatedData(self.examples, owners, zero, zero + m, m, m, ranges=self.ranges)

    def range_of(self, name: str) -> tuple[int, int] | None:
        """The lowest and the highest of an array of integers, where they are known."""
        return next(((low, high) for each, low, high in self.ranges if each == name), None)

    def _check_ids(self, name: str, ids: Sequence[int]) -> None:
        wrong = [i for i in ids if not 0 <= i < self.num_clients]
        if wrong or len(ids) == 0:
            what = f"got {wrong[:5]}" if wrong else "got none"
            raise ValueError(f"{name} must be ids in [0, {self.num_clients}), {what}.")
        starts, sizes = np.asarray(self.starts), np.asarray(self.sizes)
        absent = [i for i in ids if sizes[i] > 0 and starts[i] == self.num_examples]
        if absent:
            raise ValueError(
                f"{name} must be clients that are loaded, got {absent[:5]}: this is a part of a "
                "population on disk. Ask the population."
            )


def federate(
    examples: Examples,
    partition: Sequence[np.ndarray],
    *,
    num_classes: int | None = None,
    ignore_label: int | None = None,
) -> FederatedData:
    """Put examples on the device, client after client.

    Args:
        examples: dict of arrays with one leading axis [M, ...]; by convention "x" inputs and "y"
            labels, to which own columns may be added. 64-bit numbers become 32-bit ones; nothing
            else is changed.
        partition: N arrays of row numbers, one a client (see `data.partition`). Rows that no
            client owns are left out; a row that two clients own is stored twice. A client may have
            no rows: it keeps its id, and is evaluated with a count of 0.
        num_classes: if given, labels "y" must be integers in [0, num_classes), or `ignore_label`.
            If not, that is seen when they meet a model: see `check_fit`.
        ignore_label: a negative label that counts for nothing, e.g. -1 for padding.

    Returns:
        The data, on JAX's default device.

    Raises:
        ValueError: lengths that differ, no examples at all, row numbers out of range, features that
            are not finite, labels out of range, integers beyond 32 bits.
        TypeError: examples that are not numbers, row numbers that are not integers.

    Example:
        >>> data = federate({"x": np.eye(4), "y": np.arange(4)}, [np.array([2]), np.array([0, 3])])
        >>> data.num_clients, data.sizes.tolist(), data.client(1)["y"].tolist()
        (2, [1, 2], [0, 3])
    """
    arrays = checked(examples, num_classes, ignore_label)
    rows, sizes = _rows(partition, len(next(iter(arrays.values()))))
    owned = {name: array[rows] for name, array in arrays.items()}
    return dataclasses.replace(_stored(owned, sizes), ranges=ranges_of(owned, ignore_label))


def _rows(partition: Sequence[np.ndarray], num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of one client after the other, and the clients' sizes [N]."""
    if isinstance(partition, Mapping | str) or not hasattr(partition, "__len__"):
        raise TypeError(
            "partition must be a list with one array of row numbers a client, got "
            f"{checks.shown(partition)}. Of a dict by client pass [*partition.values()]."
        )
    if len(partition) == 0:
        raise ValueError("partition must have at least one client, got an empty list.")
    parts = [as_numpy(f"partition[{i}]", part) for i, part in enumerate(partition)]
    for i, part in enumerate(parts):
        if part.ndim != 1:
            raise ValueError(
                "partition must hold one 1-D array of row numbers a client, got shape "
                f"{part.shape} for client {i}."
            )
    sizes = np.array([len(part) for part in parts])
    if not sizes.any():
        raise ValueError(f"partition gives none of its {len(parts)} clients any example.")
    rows = np.concatenate([part for part in parts if len(part)])
    if not np.issubdtype(rows.dtype, np.integer):
        raise TypeError(
            f"partition must hold integer row numbers, got dtype {rows.dtype}. Of a mask of rows "
            "pass np.flatnonzero(mask)."
        )
    if rows.min() < 0 or rows.max() >= num_rows:
        raise ValueError(
            f"partition must hold row numbers in [0, {num_rows}), got numbers from {rows.min()} "
            f"to {rows.max()}."
        )
    return rows, sizes


def _stored(examples: dict[str, np.ndarray], sizes: np.ndarray) -> FederatedData:
    """Examples that lie client after client, on the device."""
    return FederatedData(
        examples={name: jnp.asarray(array) for name, array in examples.items()},
        owners=jnp.asarray(np.repeat(np.arange(len(sizes)), sizes), jnp.int32),
        starts=jnp.asarray(np.cumsum(sizes) - sizes, jnp.int32),
        sizes=jnp.asarray(sizes, jnp.int32),
        **size_facts(sizes),
    )


def size_facts(sizes: np.ndarray) -> dict[str, Any]:
    """The static facts of a FederatedData, from the sizes of all clients."""
    quantiles = np.quantile(sizes, np.linspace(0, 1, 17)).astype(int).tolist()
    return {"min_size": quantiles[0], "max_size": quantiles[-1], "quantiles": tuple(quantiles)}


def ranges_of(examples: Mapping[str, np.ndarray], ignore_label: int | None = None) -> Ranges:
    """`FederatedData.ranges` of checked examples."""
    found = []
    for name, array in examples.items():
        if name == "x" or array.dtype.kind not in "iu":
            continue
        counted = array if name != "y" or ignore_label is None else array[array != ignore_label]
        if counted.size:
            found.append((name, int(counted.min()), int(counted.max())))
    return tuple(found)


def checked(
    examples: Examples, num_classes: int | None = None, ignore_label: int | None = None
) -> dict[str, np.ndarray]:
    """Check examples as `federate` does, and bring them to the dtypes JAX computes with."""
    if not isinstance(examples, Mapping):
        raise TypeError(
            'examples must be a dict of arrays such as {"x": x, "y": y}, got a '
            f"{type(examples).__name__}. Of a Dataset pass dataset.train or dataset.test."
        )
    arrays = {
        name: _narrow(name, as_numpy(f"examples[{name!r}]", a)) for name, a in examples.items()
    }
    _check_examples(arrays)
    check_ignore_label(ignore_label)
    if num_classes is not None:
        checks.positive_int("num_classes", num_classes)
    if "y" in arrays and (num_classes is not None or ignore_label is not None):
        _check_labels(arrays["y"], num_classes, ignore_label)
    return arrays


_NARROW = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32, "float128": np.float32}


def _narrow(name: str, array: np.ndarray) -> np.ndarray:
    """64-bit numbers to the 32-bit ones JAX computes with."""
    if is_text(array):
        raise TypeError(
            f"examples[{name!r}] must hold numbers, got text. Number the values: "
            "np.unique(values, return_inverse=True)[1]."
        )
    if array.dtype == object:
        where = place(first(missing(array)))
        raise TypeError(
            f"examples[{name!r}] must hold numbers, got nothing in {where}. Clean or impute the "
            "data first."
        )
    dtype = np.dtype(_NARROW.get(array.dtype.name, array.dtype))
    if dtype != array.dtype and dtype.kind in "iu" and array.size:
        low, high = array.min(), array.max()
        if low < np.iinfo(dtype).min or high > np.iinfo(dtype).max:
            raise ValueError(
                f"examples[{name!r}] must fit {dtype}, got numbers from {low} to {high}."
            )
    with np.errstate(over="ignore"):  # what overflows is reported as not finite
        return array.astype(dtype, copy=False)


def _check_examples(examples: dict[str, np.ndarray]) -> None:
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


def _check_labels(labels: np.ndarray, num_classes: int | None, ignore_label: int | None) -> None:
    if labels.dtype.kind not in "biu":
        raise TypeError(
            f"labels must be integers where num_classes or ignore_label is given, got "
            f"{labels.dtype}. Use y.astype(int), or for a regression leave both out."
        )
    wrong = labels < 0
    if ignore_label is not None:
        wrong &= labels != ignore_label
    if num_classes is not None:
        wrong |= labels >= num_classes
    if wrong.any():
        at = first(wrong)
        classes = "" if num_classes is None else f" in [0, {num_classes}) (num_classes)"
        counted = " Padding needs ignore_label=-1." if ignore_label is None else ""
        raise ValueError(
            f"labels must lie{classes or ' at 0 or above'}, got {labels[at]} in {place(at)}."
            f"{counted if labels[at] < 0 else ''}"
        )


def _some(values: Sequence[Any]) -> str:
    more = " ..." if len(values) > 5 else ""
    return f"{[int(value) for value in values[:5]]}{more}"

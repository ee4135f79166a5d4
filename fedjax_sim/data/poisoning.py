"""Poisoned data: what malicious clients train on.

Host functions in NumPy, used before `data.federate`: each takes examples and a partition and
returns both with the malicious clients' rows replaced by poisoned copies. Rows that other clients
own stay as they are.

    examples, partition = poisoning.flip_labels(examples, partition, [0, 3], num_classes=10)
    data = federate(examples, partition)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedjax_sim.base import Examples
from fedjax_sim.ops import checks

Partition = Sequence[NDArray[np.int64]]
Poisoned = tuple[Examples, list[NDArray[np.int64]]]


def targets(examples: Examples, rows: Sequence[int], labels: Sequence[int]) -> Examples:
    """Choose the inputs that a targeted attack wants misclassified, and as what.

    Args:
        examples: {"x" [M, ...], "y" [M]}, test examples as a rule.
        rows: r row numbers.
        labels: [r] the attacker's labels, each other than the true one.

    Returns:
        {"x": [r, ...], "y": labels [r] int32}, for `clients.targeted_poisoning` and the like.

    Raises:
        ValueError: unequal numbers, a row out of range, a label that is the true one.

    >>> targets({"x": np.eye(3), "y": np.array([0, 1, 2])}, [1], [2])["y"].tolist()
    [2]
    """
    y = np.asarray(examples["y"])
    if len(rows) != len(labels) or len(rows) == 0:
        raise ValueError(f"labels must be one for each of rows, got {len(labels)}, {len(rows)}.")
    if min(rows) < 0 or max(rows) >= len(y):
        raise ValueError(f"rows must lie in [0, {len(y)}), got {list(rows)}.")
    same = [int(row) for row, label in zip(rows, labels, strict=True) if y[row] == label]
    if same:
        raise ValueError(f"labels must differ from the true ones; rows {same} have theirs.")
    chosen = np.asarray(rows)
    return {"x": np.asarray(examples["x"])[chosen], "y": np.asarray(labels, np.int32)}


def flip_labels(
    examples: Examples, partition: Partition, ids: Sequence[int], *, num_classes: int
) -> Poisoned:
    """Give every example of clients `ids` the label K - 1 - y.

    Args:
        examples: {"x" [M, ...], "y" [M], ...}.
        partition: N arrays of row numbers, one a client.
        ids: who flips.
        num_classes: K >= 2.

    Returns:
        (examples, partition) for `data.federate`.
    """
    checks.in_range("num_classes", num_classes, 2)

    labels = np.asarray(examples["y"])
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers to be flipped, got {labels.dtype}.")
    if labels.size and labels.max() >= num_classes:
        raise ValueError(
            f"labels must lie in [0, {num_classes}) (num_classes), got {labels.max()}."
        )

    def flip(rows: Examples, client_id: int) -> Examples:
        y = rows["y"]
        # A negative label counts for nothing, and stays.
        return rows | {"y": np.where(y < 0, y, num_classes - 1 - y).astype(y.dtype)}

    return _rewritten(examples, partition, ids, flip)


def added(
    examples: Examples,
    partition: Partition,
    ids: Sequence[int],
    extra: Examples,
    *,
    copies: int = 1,
) -> Poisoned:
    """Add examples to what clients `ids` own: the data-poisoning baseline, edge-case backdoors.

    The baseline of the adversarial lens adds copies of the target with the attacker's label and
    trains as everybody does. An edge-case backdoor adds unusual inputs of one class (from the tail
    of the distribution, or another data set) with the attacker's label.

    Args:
        examples, partition, ids: as in `flip_labels`.
        extra: {"x" [r, ...], "y" [r]}, of the shapes and columns of `examples`; see `targets`.
        copies: of each, >= 1.

    Returns:
        (examples, partition) for `data.federate`.

    References:
        Bhagoji et al., "Analyzing Federated Learning through an Adversarial Lens", ICML 2019,
        section 3.1. Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated
        Learning", NeurIPS 2020.
    """
    checks.positive_int("copies", copies)
    if sorted(extra) != sorted(examples):
        raise ValueError(f"extra must have the columns {sorted(examples)}, got {sorted(extra)}.")

    def add(rows: Examples, client_id: int) -> Examples:
        return {
            name: np.concatenate(
                [rows[name], *[np.asarray(extra[name], rows[name].dtype)] * copies]
            )
            for name in rows
        }

    return _rewritten(examples, partition, ids, add)


class Trigger(NamedTuple):
    """A pattern that is put over an input.

    mask: [...] bool of an input's shape, or one that broadcasts to it: where the pattern is.
    value: scalar or [...], what is there, in the inputs' own numbers. None is 255, white, for uint8
        images; what white is in others, say: 1.0 where they lie in [0, 1].
    """

    mask: NDArray[np.bool_]
    value: ArrayLike | None = None

    def stamp(self, inputs: ArrayLike) -> NDArray:
        """Inputs [B, ...] with the trigger, in their dtype.

        Raises:
            ValueError: a value that the dtype does not hold, or none for inputs other than uint8.
        """
        inputs = np.asarray(inputs)
        value = self.value
        if value is None:
            if inputs.dtype != np.uint8:
                raise ValueError(
                    "value must be given for a trigger on inputs that are not uint8 images: here "
                    f"they are {inputs.dtype} from {inputs.min():g} to {inputs.max():g}, of which "
                    "the largest may be white."
                )
            value = 255
        with np.errstate(invalid="ignore"):
            cast = np.asarray(value).astype(inputs.dtype)
        if inputs.dtype.kind in "iu" and not np.array_equal(cast, value):
            raise ValueError(f"value must fit inputs of dtype {inputs.dtype}, got {value}.")
        return np.where(self.mask, cast, inputs)

    def parts(self, num_parts: int) -> list["Trigger"]:
        """Split the trigger's positions, in order, into that many smaller ones."""
        positions = np.flatnonzero(self.mask)
        checks.in_range("num_parts", num_parts, 1, len(positions))
        pieces = []
        for chosen in np.array_split(positions, num_parts):
            mask = np.zeros(self.mask.size, bool)
            mask[chosen] = True
            pieces.append(Trigger(mask.reshape(self.mask.shape), self.value))
        return pieces


def corner(shape: Sequence[int], *, size: int = 3, value: float | None = None) -> Trigger:
    """A square in the bottom right corner of images of `shape` (H, W) or (H, W, channels).

    Args:
        shape: of an image.
        size: width of the square.
        value: what is there; None is white for uint8 images, see `Trigger`.
    """
    checks.in_range("size", size, 1, min(shape[:2]))
    mask = np.zeros(tuple(shape), bool)
    mask[-size:, -size:] = True
    return Trigger(mask, value)


def backdoor(
    examples: Examples,
    partition: Partition,
    ids: Sequence[int],
    trigger: Trigger | Sequence[Trigger],
    *,
    label: int,
    fraction: float = 0.5,
    seed: int,
) -> Poisoned:
    """Put a trigger on a part of what clients `ids` own and give it the attacker's label.

    A model trained on it gives `label` to any input with the trigger; test with
    `trigger.stamp(test["x"])`. With one trigger a client, `whole.parts(len(ids))`, it is the
    distributed backdoor: nobody ever trains on the whole trigger, which is what the test shows.

    Args:
        examples, partition, ids: as in `flip_labels`.
        trigger: one for all, or one for each of `ids`.
        label: of the examples with a trigger.
        fraction: fraction of each client's examples, in (0, 1], chosen at random; at least one.
        seed: of that choice.

    Returns:
        (examples, partition) for `data.federate`.

    References:
        Gu, Dolan-Gavitt, Garg, "BadNets", 2017. Xie, Huang, Chen, Li, "DBA: Distributed Backdoor
        Attacks against Federated Learning", ICLR 2020.
    """
    checks.in_range("fraction", fraction, 0.0, 1.0, open_low=True)
    checks.count("label", label)
    triggers = [trigger] * len(ids) if isinstance(trigger, Trigger) else list(trigger)
    if len(triggers) != len(ids):
        raise ValueError(
            f"trigger must be one, or one for each of {len(ids)} clients, got {len(triggers)}."
        )
    of_client = dict(zip(ids, triggers, strict=True))

    def poison(rows: Examples, client_id: int) -> Examples:
        rng = np.random.default_rng([seed, client_id])
        size = len(rows["y"])
        chosen = rng.permutation(size)[: max(1, round(fraction * size))]
        x, y = np.array(rows["x"]), np.array(rows["y"])
        x[chosen] = of_client[client_id].stamp(x[chosen])
        y[chosen] = label
        return rows | {"x": x, "y": y}

    return _rewritten(examples, partition, ids, poison)


def _rewritten(
    examples: Examples,
    partition: Partition,
    ids: Sequence[int],
    change: Callable[[Examples, int], Examples],
) -> Poisoned:
    """Replace the rows of clients `ids` by change(their rows, id), appended at the end."""
    checks.ids("ids", ids)
    wrong = [i for i in ids if i >= len(partition)]
    if wrong or len(set(ids)) != len(ids):
        raise ValueError(
            f"ids must be different clients in [0, {len(partition)}), got {list(ids)}."
        )
    columns = {name: [np.asarray(array)] for name, array in examples.items()}
    end = len(next(iter(columns.values()))[0])
    parts = [np.asarray(part) for part in partition]
    for i in ids:
        rows = change({name: array[0][parts[i]] for name, array in columns.items()}, int(i))
        size = len(next(iter(rows.values())))
        for name, array in rows.items():
            columns[name].append(array)
        parts[i] = np.arange(end, end + size)
        end += size
    return {name: np.concatenate(arrays) for name, arrays in columns.items()}, parts

"""Who owns which example: ways of dealing one data set out to N clients.

Every function returns a `Partition`: a list of N arrays of example indices in which each example
appears exactly once. All of them run on the host, are deterministic in their seed, need no retries
(so they end for any number of clients and classes) and give every client at least `min_size`
examples or raise.

    iid             the baseline: equal sizes, equal mixtures
    dirichlet       label skew of a chosen strength; the usual non-IID benchmark
    shards          every client sees only a few classes (the original FedAvg experiment)
    quantity_skew   equal mixtures, unequal sizes
    by_group        natural clients (a writer, a hospital), or any column of the data
    by_proportions  any [N, K] table of shares; also deals test data out like the training data
    target_bins     numbers targets of a regression, for those that deal out by label

To evaluate every client on test data with its own label mixture, whatever the partition was:

    partition = dirichlet(train_labels, num_clients, alpha=0.3, seed=0)
    counts = label_counts(train_labels, partition, num_classes)
    test_partition = by_proportions(test_labels, counts, seed=0)

The targets of a regression are dealt out by quantiles, which take the place of classes:

    bins = target_bins(train_targets, 10)
    partition = dirichlet(bins, num_clients, alpha=0.3, seed=0)
    test_bins = target_bins(test_targets, 10, of=train_targets)
"""

import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedjax_sim.data._arrays import as_numpy, first, missing, place
from fedjax_sim.ops import checks

Partition = list[NDArray[np.int64]]
"""The example indices of each client, ascending; together every example exactly once."""


def iid(num_examples: int, num_clients: int, *, seed: int) -> Partition:
    """Deal the examples out at random, as evenly as possible.

    Args:
        num_examples: M, at least `num_clients`.
        num_clients: N >= 1.
        seed: >= 0.

    Returns:
        A Partition whose sizes differ by at most one.

    Raises:
        ValueError: If there are more clients than examples.

    >>> [len(indices) for indices in iid(10, 4, seed=0)]
    [3, 3, 2, 2]
    """
    _check_sizes(num_examples, num_clients, 1)
    owner = np.empty(num_examples, np.int64)
    owner[_rng(seed).permutation(num_examples)] = np.arange(num_examples) % num_clients
    return _collect(owner, num_clients)


def dirichlet(
    labels: ArrayLike, num_clients: int, *, alpha: float, seed: int, min_size: int = 1
) -> Partition:
    """Split each class among the clients by shares drawn from a symmetric Dirichlet.

    The shares of every class are an independent draw p ~ Dir(alpha, ..., alpha) over the N clients.
    A share has mean 1/N and variance (1/N)(1 - 1/N) / (N alpha + 1): large alpha approaches `iid`,
    alpha = 1 is strong skew, and with alpha << 1 most clients hold a single class. Sizes are skewed
    too. With many clients and balanced classes the label mixture of a client is itself close to
    Dir(alpha) over the classes. All labels equal gives pure Dirichlet quantity skew.

    A client below `min_size` is topped up with random examples of the others, each of which gives
    in proportion to what it can spare. It gets them from one client after another, not from all at
    once, so it inherits a skewed mixture.

    Args:
        labels: [M] integers; any values, one per class.
        num_clients: N >= 1.
        alpha: concentration, in (0, 1e9].
        seed: >= 0.
        min_size: the fewest examples of a client, >= 0.

    Returns:
        A Partition.

    Raises:
        ValueError: If M < N * min_size, or an argument is out of range.

    Cost: time O(N K + M log M), memory O(N + M).

    References:
        Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, ICML 2019,
        section 4 (there drawn again until every client has 10 examples, here topped up). Hsu et
        al., Measuring the Effects of Non-Identical Data Distribution, 2019, draw the mixture of
        each client instead, with equal sizes.
    """
    classes, labels = np.unique(_labels(labels), return_inverse=True)
    _check_sizes(len(labels), num_clients, min_size)
    hint = "For even shares use iid."
    checks.in_range("alpha", alpha, 0, 1e9, open_low=True, float64=True, hint=hint)
    rng = _rng(seed)
    concentration = np.full(num_clients, float(alpha))
    shares = (rng.dirichlet(concentration) for _ in classes)
    return _deal(labels, shares, num_clients, min_size, rng)


def shards(labels: ArrayLike, num_clients: int, *, shards_per_client: int, seed: int) -> Partition:
    """Sort by label, cut into equal shards and give every client some of them.

    The "pathological" non-IID partition: equal sizes, and a client sees about `shards_per_client`
    classes.

    Args:
        labels: [M] integers.
        num_clients: N >= 1.
        shards_per_client: >= 1; 2 in the paper. There must be an example for every shard.
        seed: >= 0.

    Returns:
        A Partition; the sizes of two clients differ by at most `shards_per_client`.

    Raises:
        ValueError: If there are more shards than examples.

    References:
        McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
        AISTATS 2017, section 3.
    """
    labels = _labels(labels)
    checks.positive_int("shards_per_client", shards_per_client)
    _check_sizes(len(labels), num_clients, shards_per_client, "shards_per_client")
    rng = _rng(seed)
    num_shards = num_clients * shards_per_client
    shard_owner = rng.permutation(np.arange(num_shards) % num_clients)
    owner = np.empty(len(labels), np.int64)
    owner[_shuffled_sort(labels, rng)] = shard_owner[
        np.arange(len(labels)) * num_shards // len(labels)
    ]
    return _collect(owner, num_clients)


def quantity_skew(
    num_examples: int, num_clients: int, *, sigma: float, seed: int, min_size: int = 1
) -> Partition:
    """Deal the examples out at random with log-normal client sizes.

    Sizes are proportional to exp(sigma z), z ~ N(0, 1). For other laws pass one column of shares to
    `by_proportions` with all labels 0: `(1 + np.arange(N)[:, None]) ** -a` is a power law. For
    Dirichlet sizes pass labels that are all 0 to `dirichlet`.

    Args:
        num_examples: M.
        num_clients: N >= 1.
        sigma: in [0, 100]; 0 gives equal sizes, 1 a largest client of about 25 medians among 1,000.
        seed: >= 0.
        min_size: the fewest examples of a client, >= 0.

    Returns:
        A Partition.

    Raises:
        ValueError: If M < N * min_size, or an argument is out of range.
    """
    _check_sizes(num_examples, num_clients, min_size)
    checks.in_range("sigma", sigma, 0, 100)
    rng = _rng(seed)
    shares = [rng.lognormal(sigma=sigma, size=num_clients)]
    return _deal(np.zeros(num_examples, np.int64), shares, num_clients, min_size, rng)


def by_group(groups: ArrayLike, *, names: ArrayLike | None = None, min_size: int = 1) -> Partition:
    """Make one client of every group: client i holds the examples whose group is `names[i]`.

    For data with natural clients `groups` is the column of client ids; else any column to split by
    (a domain, a region, the label). To have the same clients in the training and the test data,
    give both calls the same `names`, and `min_size=0` where a client may have no examples.

    Args:
        groups: [M] integers, strings, booleans ...
        names: [N] the group of each client, all different; default `np.unique(groups)`.
        min_size: the fewest examples of a group. Groups are never mixed, so one that is smaller is
            an error: leave its examples out first.

    Returns:
        A Partition in the order of `names`.

    Raises:
        ValueError: If a group is missing from `names` or smaller than `min_size`.

    >>> by_group(["b", "a", "b"])
    [array([1]), array([0, 2])]
    """
    groups = _vector("groups", groups)
    if missing(groups).any():
        raise ValueError(
            f"groups has no value in {place(first(missing(groups)))}: give missing groups a value "
            "of their own."
        )
    found, owner, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if names is not None:
        listed = _vector("names", names).tolist()
        client = {name: i for i, name in enumerate(listed)}
        if len(client) < len(listed):
            twice = next(name for i, name in enumerate(listed) if client[name] != i)
            raise ValueError(f"names must all be different, got {twice!r} more than once.")
        unknown = [group for group in found.tolist() if group not in client]
        if unknown:
            raise ValueError(
                f"groups holds {_some(unknown)}, not in names. Add them to names, or leave their "
                "examples out."
            )
        owner = np.array([client[group] for group in found.tolist()])[owner]
        found, sizes = np.asarray(names), np.bincount(owner, minlength=len(listed))
    _non_negative_int("min_size", min_size)
    if sizes.min() < min_size:
        raise ValueError(
            f"groups smaller than min_size={min_size}: {_some(found[sizes < min_size].tolist())}. "
            "Lower min_size, or leave their examples out."
        )
    return _collect(owner, len(found))


def by_proportions(
    labels: ArrayLike, proportions: ArrayLike, *, seed: int, min_size: int = 0
) -> Partition:
    """Split class k among the clients in proportion to column k of a table.

    Client i gets `proportions[i, k] / proportions[:, k].sum()` of the examples of class k, rounded
    up or down at random so that its expectation is exact. Pass the `label_counts` of a training
    partition to deal test data out with the same label mixture for every client.

    Args:
        labels: [M] integers in [0, K).
        proportions: [N, K], finite and >= 0; only ratios within a column matter. A column may be
            all zero only if no example has that label.
        seed: >= 0.
        min_size: the fewest examples of a client, >= 0; topped up as in `dirichlet`.

    Returns:
        A Partition.

    Raises:
        ValueError: If M < N * min_size, or an argument is out of range.

    >>> [len(i) for i in by_proportions([0, 0, 0, 1, 1], [[2, 0], [1, 5]], seed=0)]
    [2, 3]
    """
    labels = _labels(labels)
    table = np.asarray(proportions, np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"proportions must have shape [clients, classes], got {table.shape}.")
    num_clients, num_classes = table.shape
    total = table.sum(axis=0)
    if not (np.isfinite(total).all() and (table >= 0).all()):
        raise ValueError("proportions must be finite and >= 0.")
    _check_sizes(len(labels), num_clients, min_size)
    _check_label_range(labels, num_classes, "the columns of proportions")
    unowned = np.flatnonzero((total == 0) & (np.bincount(labels, minlength=num_classes) > 0))
    if len(unowned):
        raise ValueError(
            f"proportions gives the classes {_some(unowned.tolist())} to no client, but labels "
            "holds them. Give some client a positive share, or leave their examples out."
        )
    return _deal(labels, table.T, num_clients, min_size, _rng(seed))


def label_counts(labels: ArrayLike, partition: Partition, num_classes: int) -> NDArray[np.int64]:
    """Count the examples of each class at each client.

    Args:
        labels: [M] integers in [0, num_classes).
        partition: the example indices of each client.
        num_classes: K.

    Returns:
        [N, K] counts.

    >>> label_counts([0, 1, 1, 0], [np.array([0, 3]), np.array([1, 2])], 2)
    array([[2, 0],
           [0, 2]])
    """
    labels = _labels(labels)
    checks.positive_int("num_classes", num_classes)
    _check_label_range(labels, num_classes, "num_classes")
    num_clients = len(partition)
    checks.positive_int("the number of clients in partition", num_clients)
    owner = np.repeat(np.arange(num_clients), [len(indices) for indices in partition])
    cell = (
        owner * num_classes
        + labels[np.concatenate([np.asarray(indices, np.int64) for indices in partition])]
    )
    return np.bincount(cell, minlength=num_clients * num_classes).reshape(num_clients, -1)


def target_bins(
    targets: ArrayLike, num_bins: int, *, of: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Number the targets of a regression by quantile, so that they can be partitioned like labels.

    Bin k holds the targets from the k-th to the (k+1)-th of `num_bins` + 1 equally spaced
    quantiles, so about equally many of each; `dirichlet` and `shards` then give clients unlike
    ranges of the target. Equal targets are always in one bin, and bins that they leave empty are
    not numbered.

    Args:
        targets: [M] finite numbers.
        num_bins: the most bins, >= 1.
        of: [M'] the targets whose quantiles count; by default `targets`. Give those of the training
            data to number test data alike.

    Returns:
        [M] integers in [0, num_bins).

    Raises:
        ValueError: targets that are no vector of finite numbers, or num_bins < 1.

    >>> target_bins([1.5, 99.0, 2.5, 3.5], 2)
    array([0, 1, 0, 1])
    """
    checks.positive_int("num_bins", num_bins)
    values = _finite("targets", targets)
    known = values if of is None else _finite("of", of)
    edges = np.unique(np.quantile(known, np.linspace(0, 1, num_bins + 1)))
    return np.searchsorted(edges[1:-1], values, side="right")


def _finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = _vector(name, values)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be finite numbers, got {array.dtype}: {_some(array.tolist())}."
        )
    return array.astype(np.float64)


def _deal(
    labels: NDArray[np.int64],
    shares: Iterable[NDArray[np.float64]],
    num_clients: int,
    min_size: int,
    rng: np.random.Generator,
) -> Partition:
    """Split class k among the clients by the k-th of `shares` ([N] each), then top up."""
    owner = np.empty(len(labels), np.int64)
    by_class = np.split(_shuffled_sort(labels, rng), np.cumsum(np.bincount(labels))[:-1])
    for members, share in zip(by_class, shares, strict=False):
        if len(members):
            cumulative = np.cumsum(share)
            # One random offset for all cuts: each client's number is its quota rounded up or down,
            # right on average. Plain rounding would starve every client with a quota below 1/2.
            cuts = cumulative / cumulative[-1] * len(members) + rng.random()
            cuts = np.minimum(cuts.astype(np.int64), len(members))
            owner[members] = np.repeat(np.arange(num_clients), np.diff(cuts, prepend=0))
    _top_up(owner, num_clients, min_size, rng)
    return _collect(owner, num_clients)


def _top_up(
    owner: NDArray[np.int64], num_clients: int, min_size: int, rng: np.random.Generator
) -> None:
    """Move as few examples as bring every client to `min_size`, in place."""
    sizes = np.bincount(owner, minlength=num_clients)
    missing = np.maximum(min_size - sizes, 0)
    spare = np.maximum(sizes - min_size, 0)
    if not missing.any():
        return
    # Differences of a floored cumulative sum: whole numbers that add up to missing.sum() and never
    # exceed what a client can spare.
    given = np.diff(np.cumsum(spare) * missing.sum() // spare.sum(), prepend=0)
    by_client = _shuffled_sort(owner, rng)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    moved = by_client[rank < np.repeat(given, sizes)]
    owner[moved] = np.repeat(np.arange(num_clients), missing)


def _shuffled_sort(values: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices that sort `values`, ties in random order."""
    order = rng.permutation(len(values))
    return order[np.argsort(values[order], kind="stable")]


def _collect(owner: NDArray[np.int64], num_clients: int) -> Partition:
    """The Partition in which `owner` [M] names the client of each example."""
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.cumsum(np.bincount(owner, minlength=num_clients))[:-1])


def _rng(seed: Any) -> np.random.Generator:
    _non_negative_int("seed", seed)
    return np.random.default_rng(seed)


def _vector(name: str, values: ArrayLike) -> NDArray[Any]:
    array = as_numpy(name, values)
    if array.shape[1:] == (1,):
        array = array[:, 0]
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must be a non-empty vector, got shape {array.shape}.")
    return array


def _labels(labels: ArrayLike) -> NDArray[np.int64]:
    array = _vector("labels", labels)
    if array.dtype.kind not in "iub":
        raise TypeError(
            f"labels must be integers, got {array.dtype}. Number the classes, for example with "
            "np.unique(labels, return_inverse=True)[1]; of the targets of a regression pass "
            "target_bins(targets, 10)."
        )
    return array.astype(np.int64)


def _check_label_range(labels: NDArray[np.int64], num_classes: int, source: str) -> None:
    low, high = labels.min(), labels.max()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must lie in [0, {num_classes}) ({source}), got values from {low} to {high}."
        )


def _check_sizes(
    num_examples: Any, num_clients: Any, min_size: Any, min_size_name: str = "min_size"
) -> None:
    checks.positive_int("num_examples", num_examples)
    checks.positive_int("num_clients", num_clients)
    _non_negative_int(min_size_name, min_size)
    if num_clients * min_size > num_examples:
        raise ValueError(
            f"num_examples={num_examples} are too few for num_clients={num_clients} with "
            f"{min_size_name}={min_size} each. Use fewer clients or more examples."
        )


def _non_negative_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer >= 0, got {value!r}.")
    if value < 0:
        raise ValueError(f"{name} must be >= 0, got {value}.")


def _some(values: list[Any]) -> str:
    """The first few values, for a message."""
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    return ", ".join(repr(value) for value in values[:5]) + more

"""PFNM for fully connected networks: from clients' weights to one global network.

A network is a list of layers `(kernel [in, out], bias [out])`, the last of which gives the K
outputs. Hidden layers are matched from the top down: the neurons of the last hidden layer are known
by their bias and their weights into the outputs, those of a lower one by their weights into the
neurons just matched, and those of the first by their weights from the inputs as well.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fedjax_sim.base import Array, Key, screen
from fedjax_sim.matching.neurons import MatchedLayer, Rows, match_layer
from fedjax_sim.matching.prior import LayerPrior, Prior, cap_of, check_common
from fedjax_sim.ops import checks, keys

Network = Sequence[tuple[Any, Any]]
"""Layers `(kernel [in, out], bias [out])`; stacked clients have a leading axis [J]."""

Absent = Literal["zero", "unknown"]

_HostNetwork = list[tuple[np.ndarray, np.ndarray]]

DEFAULT_BUDGET = 700
"""Neurons of a layer unless told otherwise: where the paper's code stops as well."""


class Matching(NamedTuple):
    """What matching gives.

    params: the global network. From `pfnm` in its true widths; from `pfnm_stacked` padded to the
        budgets, with all weights of dead neurons 0, so that it computes the same.
    assignments: for every hidden layer, the global neuron of each client's neuron: from `pfnm` J
        arrays [L_j]; from `pfnm_stacked` [J, L] int32, the budget for padding.
    counts: for every hidden layer, how many clients use each global neuron, [L] int32.
    num_neurons: [hidden layers] int32, global neurons.
    full: [hidden layers] bool: at some time no free neuron was left, so that the budget may have
        forced neurons together. Give more with `max_neurons`, or lower gamma.
    sigma, sigma0: [hidden layers], the variances used last: as given, or the mean of those
        estimated for every weight.
    """

    params: list[tuple[Array, Array]]
    assignments: list[Any]
    counts: list[Array]
    num_neurons: Array
    full: Array
    sigma: Array
    sigma0: Array

    def __repr__(self) -> str:
        return screen(self)


def pfnm(
    clients: Sequence[Network],
    class_counts: ArrayLike,
    *,
    prior: Prior,
    num_passes: int,
    key: Key,
    max_neurons: int | Sequence[int] | None = None,
    empirical_bayes: bool = False,
    absent: Absent = "zero",
) -> Matching:
    """Match the neurons of J trained networks and merge them into one (PFNM).

    Prefer it to averaging whenever clients trained from different initial weights: their neurons
    are then in different orders, and means of unlike neurons are no neurons. The merged network
    has as many neurons as the data asks for, between those of one client and those of all.

    Args:
        clients: J networks of equal depth, inputs and outputs; hidden widths may differ.
        class_counts: [J, K] numbers of examples: who saw a class more knows its output weights
            better.
        prior: how alike neurons must be to be merged, and how many there may be.
        num_passes: how often every client is matched again, in random order, >= 0; 5 is plenty.
        key: of those orders.
        max_neurons: budget of each hidden layer (one number for all, or one for each), at least
            its widest client; 700, or all neurons of all clients if they are fewer. `full` tells
            when it was reached.
        empirical_bayes: estimate the prior mean and both variances of every weight after each pass
            (`bias`, `sigma` and `sigma0` of the prior are then the start) and weigh by marginal
            likelihoods. A step then costs as much as the layer is wide.
        absent: of several hidden layers, what a client's neuron has towards neurons of the next
            layer that the client lacks: weights of "zero", as in the authors' code, or "unknown"
            ones. A zero counts: where m clients share a neuron but not the next layer's, each
            weight between them is about 1 / m of what it was. "unknown" leaves it as it was.

    Returns:
        A Matching in true widths.

    Raises:
        ValueError: networks of different depth or sizes, weights that are not finite, a class that
            nobody has, a hyperparameter out of range, or a budget below the widest client.

    Cost: one product of all rows with each other, then (1 + num_passes) J assignments, none of
        which depends on the number of inputs. Compiles once for each set of shapes; `pfnm_stacked`
        is the same inside jit.

    References:
        Yurochkin, Agarwal, Ghosh, Greenewald, Hoang, Khazaeni, "Bayesian Nonparametric Federated
        Learning of Neural Networks", ICML 2019, algorithms 1 and 2. With `empirical_bayes`:
        Yurochkin et al., "Statistical Model Aggregation via Parameter Matching" (SPAHM), NeurIPS
        2019: its moment estimates for every weight, an output's taken with its class shares.
    """
    counts = np.asarray(class_counts, np.float64)
    networks = [[(np.asarray(w), np.asarray(b)) for w, b in network] for network in clients]
    _check_networks(networks, counts)
    for name in ("sigma", "sigma0", "gamma"):
        for value in np.ravel(getattr(prior, name)):
            checks.in_range(name, value, 0.0, open_low=True)
    check_common(prior)
    widths = [[w.shape[1] for w, _ in network[:-1]] for network in networks]
    largest = [max(column) for column in zip(*widths, strict=True)]
    budgets = _budgets(max_neurons, [sum(c) for c in zip(*widths, strict=True)], largest)
    stacked, live = _stack(networks, largest)
    found = _compiled(
        stacked,
        counts,
        live=live,
        prior=prior._replace(
            sigma=np.asarray(prior.sigma),
            sigma0=np.asarray(prior.sigma0),
            gamma=np.asarray(prior.gamma),
            popularity_cap=cap_of(prior),
        ),
        num_passes=num_passes,
        key=key,
        max_neurons=tuple(budgets),
        empirical_bayes=empirical_bayes,
        absent=absent,
    )
    return _compact(found, widths)


def pfnm_stacked(
    params: Network,
    class_counts: Array,
    *,
    prior: Prior,
    num_passes: int,
    key: Key,
    max_neurons: int | Sequence[int] | None = None,
    empirical_bayes: bool = False,
    absent: Absent = "zero",
    live: Sequence[Array] | None = None,
    assignments: Sequence[Array] | None = None,
    orders: Sequence[Array] | None = None,
) -> Matching:
    """`pfnm` as a pure function of stacked arrays, for jit, scan and vmap.

    Args:
        params: layers `(kernel [J, in, out], bias [J, out])`, padded to the widest client.
        class_counts: [J, K]; a class that nobody has leaves its output weights at 0.
        prior: as in `pfnm`, its numbers may be traced; sigma, sigma0 and gamma are scalars or
            [hidden layers].
        num_passes, max_neurons, empirical_bayes, absent: as in `pfnm`, static.
        key: of the clients' orders.
        live: for every hidden layer [J, L] bool, False for padding; all by default.
        assignments: for every hidden layer [J, L] to start from, as a Matching holds them; by
            default clients enter one after another.
        orders: for every hidden layer [num_passes, J], the orders in which clients are visited,
            instead of `key`'s.

    Returns:
        A Matching padded to the budgets.

    Raises:
        ValueError: at trace time, for shapes that do not fit.
    """
    checks.count("num_passes", num_passes)
    checks.one_of("absent", absent, get_args(Absent))
    if len(params) < 2:
        raise ValueError(f"params must have a hidden layer to match, got {len(params)} layer(s).")
    kernels, biases = ([jnp.asarray(x) for x in column] for column in zip(*params, strict=True))
    dtype = kernels[0].dtype
    num_clients = kernels[0].shape[0]
    num_hidden = len(kernels) - 1
    widths = [kernel.shape[2] for kernel in kernels[:-1]]
    budgets = _budgets(max_neurons, [num_clients * width for width in widths], widths)
    if live is None:
        live = [jnp.ones((num_clients, width), bool) for width in widths]
    share = _class_share(jnp.asarray(class_counts, dtype), num_clients, kernels[-1].shape[2])
    priors = _by_layer(prior, num_hidden, dtype)
    bias_mean = jnp.asarray(prior.bias, dtype).reshape(1)
    layers: list[Any] = [None] * num_hidden
    for h in reversed(range(num_hidden)):
        above = (layers[h + 1].slots, budgets[h + 1]) if h < num_hidden - 1 else None
        layers[h] = match_layer(
            _rows(kernels, biases, h, jnp.asarray(live[h]), above, share, bias_mean, absent),
            priors[h],
            key=keys.fold_in(key, h),
            num_passes=num_passes,
            budget=budgets[h],
            slots=None if assignments is None else assignments[h],
            orders=None if orders is None else orders[h],
            empirical_bayes=empirical_bayes,
        )
    return Matching(
        params=_merged(layers, kernels[0].shape[1], biases[-1], share, bias_mean, absent),
        assignments=[layer.slots for layer in layers],
        counts=[layer.counts for layer in layers],
        num_neurons=jnp.stack([(layer.counts > 0).sum() for layer in layers]),
        full=jnp.stack([layer.full for layer in layers]),
        sigma=jnp.stack([layer.sigma.mean() for layer in layers]),
        sigma0=jnp.stack([layer.sigma0.mean() for layer in layers]),
    )


def _class_share(counts: Array, num_clients: int, num_classes: int) -> Array:
    """[J, K] each client's share of a class's examples; 0 of a class that nobody has."""
    if counts.shape != (num_clients, num_classes):
        raise ValueError(
            f"class_counts must have shape {(num_clients, num_classes)}, one row a client "
            f"and one column a class, got {counts.shape}."
        )
    total = counts.sum(axis=0, keepdims=True)
    return counts / jnp.where(total > 0, total, 1)


def _by_layer(prior: Prior, num_hidden: int, dtype: Any) -> list[LayerPrior]:
    """The hyperparameters of every hidden layer."""
    own = [
        _each_layer(name, jnp.asarray(getattr(prior, name), dtype), num_hidden)
        for name in ("sigma", "sigma0", "gamma")
    ]
    common = [jnp.asarray(value, dtype) for value in (prior.scale, cap_of(prior))]
    return [LayerPrior(*(values[h] for values in own), *common) for h in range(num_hidden)]


def _rows(
    kernels: list[Array],
    biases: list[Array],
    h: int,
    live: Array,
    above: tuple[Array, int] | None,
    share: Array,
    bias_mean: Array,
    absent: Absent,
) -> Rows:
    """What the neurons of hidden layer h are known by.

    above: the assignment and the budget of the next hidden layer, None for the last.
    """
    dtype, (num_clients, width) = kernels[0].dtype, live.shape
    none = jnp.zeros((num_clients, width, 0), dtype)
    incoming = kernels[0].swapaxes(1, 2) if h == 0 else none
    alike, unlike, known = none, kernels[-1], share
    if above is not None:
        outgoing = _reindexed(kernels[h + 1], *above)
        if absent == "zero":
            alike, unlike = outgoing, none
        else:
            owned = jnp.ones((num_clients, 1, kernels[h + 1].shape[2]), dtype)
            unlike, known = outgoing, _reindexed(owned, *above)[:, 0]
    mean = jnp.zeros(incoming.shape[2] + 1 + alike.shape[2], dtype)
    return Rows(
        shared=jnp.concatenate([incoming, biases[h][..., None], alike], axis=2, dtype=dtype),
        classes=unlike.astype(dtype),
        class_share=known[:, : unlike.shape[2]],
        live=live,
        mean=mean.at[incoming.shape[2]].set(bias_mean[0]),
    )


def _merged(
    layers: Sequence[MatchedLayer],
    num_inputs: int,
    last_biases: Array,
    share: Array,
    bias_mean: Array,
    absent: Absent,
) -> list[tuple[Array, Array]]:
    """The global network; its last bias is the posterior mode of the clients' [J, K]."""
    merged = [(layers[0].shared[:, :num_inputs].T, layers[0].shared[:, num_inputs])]
    for h, layer in enumerate(layers):
        first = num_inputs if h == 0 else 0
        last = h == len(layers) - 1
        apart = last or absent == "unknown"
        kernel = layer.classes if apart else layer.shared[:, first + 1 :]
        precision, base = 1 / layer.sigma.mean(), 1 / layer.sigma0.mean()
        bias = (
            ((last_biases * share).sum(axis=0) * precision + bias_mean * base)
            / (share.sum(axis=0) * precision + base)
            if last
            else layers[h + 1].shared[:, 0]
        )
        merged.append((kernel, bias))
    return merged


def _each_layer(name: str, value: Array, num_hidden: int) -> Array:
    """A scalar, or one number for each hidden layer: [hidden layers]."""
    if value.shape not in ((), (num_hidden,)):
        raise ValueError(
            f"{name} must be one number or one for each of the {num_hidden} hidden layers, got "
            f"shape {value.shape}."
        )
    return jnp.broadcast_to(value, (num_hidden,))


def layers_of(params: Any) -> list[tuple[Array, Array]]:
    """The params of `models.mlp`, {"dense_0": {"kernel", "bias"}, ...}, as a list of layers."""
    try:
        named = [params[f"dense_{i}"] for i in range(len(params))]
        return [(layer["kernel"], layer["bias"]) for layer in named]
    except (KeyError, TypeError) as error:
        raise ValueError(
            'params must be of the form of models.mlp, {"dense_0": {"kernel", "bias"}, ...}, got '
            f"{jax.tree.structure(params)}."
        ) from error


def params_of(layers: Network) -> dict[str, dict[str, Any]]:
    """A list of layers as params of `models.mlp`, the way back from `layers_of`."""
    return {f"dense_{i}": {"kernel": w, "bias": b} for i, (w, b) in enumerate(layers)}


def sub_network(params: Network, slots: Sequence[Array]) -> list[tuple[Array, Array]]:
    """The part of a network that some of its neurons make up, such as those of one client.

    Args:
        params: layers `(kernel [in, out], bias [out])`.
        slots: for every hidden layer [L] the neurons, e.g. one client's of `Matching.assignments`;
            0 weights for those out of range.

    Returns:
        Layers of the widths of `slots`.
    """
    ends = [None, *slots, None]
    part = []
    for (kernel, bias), rows, columns in zip(params, ends[:-1], ends[1:], strict=True):
        if rows is not None:
            kernel = kernel.at[rows].get(mode="fill", fill_value=0)
        if columns is not None:
            kernel = kernel.at[:, columns].get(mode="fill", fill_value=0)
            bias = bias.at[columns].get(mode="fill", fill_value=0)
        part.append((kernel, bias))
    return part


def _reindexed(kernel: Array, slots: Array, budget: int) -> Array:
    """[J, L, out] with out a client's own neurons -> [J, L, budget] with the global ones."""

    def one(kernel: Array, slots: Array) -> Array:
        empty = jnp.zeros((kernel.shape[0], budget), kernel.dtype)
        return empty.at[:, slots].set(kernel, mode="drop")

    return jax.vmap(one)(kernel, slots)


def _budgets(
    max_neurons: int | Sequence[int] | None, totals: Sequence[int], largest: Sequence[int]
) -> list[int]:
    """The budget of every hidden layer."""
    if max_neurons is None or isinstance(max_neurons, int):
        given: list[int | None] = [max_neurons] * len(totals)
    else:
        given = list(max_neurons)
    if len(given) != len(totals):
        raise ValueError(
            f"max_neurons must be one number or one for each of the {len(totals)} hidden layers, "
            f"got {max_neurons}."
        )
    return [neuron_budget(*each) for each in zip(given, totals, largest, strict=True)]


def neuron_budget(given: int | None, total: int, widest: int) -> int:
    """The budget of a layer of `total` neurons in all, `widest` of them of one client."""
    if given is None:
        return min(total, max(DEFAULT_BUDGET, widest))
    checks.positive_int("max_neurons", given)
    if given < widest:
        raise ValueError(
            f"max_neurons must be at least the width of the widest client, {widest}, got {given}: "
            "the neurons of one client are never merged with each other."
        )
    return given


_compiled = functools.partial(
    jax.jit, static_argnames=("num_passes", "max_neurons", "empirical_bayes", "absent")
)(pfnm_stacked)


def _check_networks(
    networks: list[list[tuple[np.ndarray, np.ndarray]]], counts: np.ndarray
) -> None:
    if not networks:
        raise ValueError("clients must hold at least one network, got none.")
    depths = [len(network) for network in networks]
    if len(set(depths)) > 1 or depths[0] < 2:
        raise ValueError(
            "clients must be networks of equal depth with a hidden layer, got "
            f"{sorted(set(depths))} layers."
        )
    ends = {(network[0][0].shape[:1], network[-1][0].shape[1:]) for network in networks}
    if len(ends) > 1:
        raise ValueError(f"clients must agree in inputs and outputs, got {sorted(ends)}.")
    for j, network in enumerate(networks):
        fan_in = network[0][0].shape[0]
        for i, (kernel, bias) in enumerate(network):
            if kernel.ndim != 2 or bias.shape != kernel.shape[1:] or kernel.shape[0] != fan_in:
                raise ValueError(
                    f"layer {i} of client {j} must be a kernel [{fan_in}, out] and a bias [out], "
                    f"got shapes {kernel.shape} and {bias.shape}."
                )
            fan_in = kernel.shape[1]
            if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
                raise ValueError(
                    f"layer {i} of client {j} has weights that are not finite: leave the client "
                    "out, or train it with a lower learning rate."
                )
    shape = (len(networks), networks[0][-1][0].shape[1])
    if counts.shape != shape:
        raise ValueError(
            f"class_counts must have shape {shape}, one row a client and one column a class, got "
            f"{counts.shape}."
        )
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError("class_counts must be finite and >= 0.")
    if not (counts.sum(axis=0) > 0).all():
        missing = np.flatnonzero(counts.sum(axis=0) == 0)
        raise ValueError(
            f"class_counts must name a client for every class, but nobody has {missing.tolist()}: "
            "their output weights are of no training. Drop these outputs, or count one example."
        )


def _stack(
    networks: list[_HostNetwork], largest: Sequence[int]
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """Pad all clients to the widest one of each layer."""
    num_inputs, num_outputs = networks[0][0][0].shape[0], networks[0][-1][0].shape[1]
    sizes = [num_inputs, *largest, num_outputs]
    dtype = np.result_type(*(w.dtype for network in networks for w, _ in network), np.float32)
    stacked = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        kernels = np.zeros((len(networks), fan_in, fan_out), dtype)
        biases = np.zeros((len(networks), fan_out), dtype)
        for j, network in enumerate(networks):
            kernel, bias = network[i]
            kernels[j, : kernel.shape[0], : kernel.shape[1]] = kernel
            biases[j, : len(bias)] = bias
        stacked.append((kernels, biases))
    live = [
        np.array([np.arange(width) < network[i][0].shape[1] for network in networks])
        for i, width in enumerate(largest)
    ]
    return stacked, live


def _compact(found: Matching, widths: Sequence[Sequence[int]]) -> Matching:
    """Leave out the dead neurons and the padding."""
    counts = [np.asarray(c) for c in found.counts]
    alive = [np.flatnonzero(c) for c in counts]
    position = [np.cumsum(c > 0) - 1 for c in counts]
    params = [(np.asarray(w), np.asarray(b)) for w, b in found.params]
    ends: list[Any] = [slice(None), *alive, slice(None)]
    return found._replace(
        params=[
            (jnp.asarray(w[rows][:, columns]), jnp.asarray(b[columns]))
            for (w, b), rows, columns in zip(params, ends[:-1], ends[1:], strict=True)
        ],
        assignments=[
            [where[np.asarray(slots)[j, : width[h]]] for j, width in enumerate(widths)]
            for h, (slots, where) in enumerate(zip(found.assignments, position, strict=True))
        ],
        counts=[jnp.asarray(c[a]) for c, a in zip(counts, alive, strict=True)],
    )

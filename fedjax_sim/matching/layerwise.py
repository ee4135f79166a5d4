"""FedMA: matching the neurons of any network layer by layer, from its inputs up.

A neuron is known by its weights from the neurons below, so these are matched first; then every
client's next layer is written in terms of the merged ones. `axes` says what a neuron is: a unit, a
filter, a unit of an LSTM with its four gates. Who is whom is decided as in PFNM, by `match_layer`.

**What a merged neuron computes is the mean of what its owners compute**: the weights that lead into
it are averaged over the clients that have it, and a client without one of its inputs counts 0
there. So if nothing is shared the merged network is the ensemble of all (mean of their outputs
before the softmax), and if everything is, their average after permutations.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Key, Params, screen
from fedjax_sim.matching.axes import Axes, Description, chosen, described, split, spread
from fedjax_sim.matching.networks import neuron_budget
from fedjax_sim.matching.neurons import MatchedLayer, Rows, match_layer
from fedjax_sim.matching.prior import LayerPrior, Prior, cap_of, check_common
from fedjax_sim.ops import checks, keys, trees

Retrain = Callable[[Key, Params, Params], Params]
"""retrain(key, params [J, ...], frozen) -> params: train all clients, some arrays held fixed.

`params` are the clients' networks with the merged layers in place of their own, so they are wider
than before; `frozen` is a tree of bools like them, True for merged arrays. Those are put back
afterwards whatever becomes of them, but the others should be trained with them as they are. Dead
neurons stay dead if the activation of 0 is 0 (ReLU, tanh, an LSTM): their weights get no gradient.
"""


class LayerwiseMatching(NamedTuple):
    """What layer-wise matching gives; dicts are by layer, from the inputs up.

    params: the global network, padded to the budgets. All weights into and out of dead neurons are
        0, so that it computes the same as without them; `compact` leaves them out.
    assignments: [J, L] int32, the global neuron of each client's neuron, the budget for padding.
    counts: [budget] int32, how many clients use each global neuron, 0 for a dead one.
    num_neurons: int32, global neurons.
    full: bool, at some time no free neuron was left, so that the budget may have forced neurons
        together. Give more with `max_neurons`, or lower gamma.
    sigma, sigma0: the variances used last: as given, or [P] estimated for every weight that leads
        into a neuron, in the order of `axes`.
    """

    params: Params
    assignments: dict[str, Array]
    counts: dict[str, Array]
    num_neurons: dict[str, Array]
    full: dict[str, Array]
    sigma: dict[str, Array]
    sigma0: dict[str, Array]

    def __repr__(self) -> str:
        return screen(self)


def fedma(
    params: Params,
    weights: Array,
    *,
    prior: Prior,
    num_passes: int,
    key: Key,
    axes: Axes | None = None,
    retrain: Retrain | None = None,
    max_neurons: int | Mapping[str, int] | None = None,
    empirical_bayes: bool = False,
    live: Mapping[str, Array] | None = None,
) -> LayerwiseMatching:
    """Merge J networks of any architecture into one, layer by layer (FedMA).

    Prefer it to `pfnm` for convolutional and recurrent networks, and for more than one hidden
    layer: a neuron is matched by all weights that lead into it, after the layer below has been
    merged. With `retrain` the clients adapt what is above a merged layer to it before the next is
    matched, which is FedMA as published, at the price of a round of communication per layer;
    without it all is done in one shot. Pure: for jit, scan and vmap.

    Args:
        params: the clients' networks, any tree with a leading axis [J] in every array.
        weights: [J] or [J, K], >= 0: what a client counts for in the outputs, its examples or its
            examples of each class. Arrays whose last axis is not K long count the sums over K.
        prior: how alike neurons must be to be merged, and how many there may be; its numbers may
            be traced, and sigma, sigma0 and gamma dicts by layer.
        num_passes: how often every client is matched again, in random order, >= 0, static.
        key: of those orders, and of `retrain`.
        axes: which axes number the neurons of which layer; `neuron_axes(params)` by default.
        retrain: retrain(key, params, frozen) -> params, called after every matched layer.
        empirical_bayes: as in `pfnm`.
        max_neurons: budget of each layer, one number or by name, at least the layer's width; 700
            as in `pfnm`, or all neurons of all clients if they are fewer. Static.
        live: layer -> [J, L] bool, False for neurons that are padding; all valid by default.

    Returns:
        A LayerwiseMatching padded to the budgets.

    Raises:
        ValueError: axes that do not fit the parameters; weights of another shape, below 0 or
            without anything; a hyperparameter out of range; without `live`, parameters that are not
            finite (where they are known: inside jit this is not checked).

    Cost: for each layer one product of all rows with each other and (1 + num_passes) J assignments.

    References:
        Wang, Yurochkin, Sun, Papailiopoulos, Khazaeni, "Federated Learning with Matched Averaging",
        ICLR 2020, algorithm 1. Its code takes the mode of the posterior for a merged layer, which
        pulls it towards 0, so that clients that agree do not come back as they are; here, as in the
        paper, it is the mean.
    """
    num_clients, weights = _checked(params, weights, padded=live is not None)
    network = described(params, axes)
    checks.count("num_passes", num_passes)
    treedef = jax.tree.structure(params)
    arrays = {name: jnp.asarray(leaf) for name, leaf in trees.flat_dict(params).items()}
    frozen = dict.fromkeys(arrays, False)
    found: dict[str, MatchedLayer] = {}
    for i, (layer, width) in enumerate(network.widths.items()):
        match_key, train_key = keys.split(keys.fold_in(key, i))
        budget = neuron_budget(_of(max_neurons, layer, "max_neurons"), num_clients * width, width)
        touched = {name: arrays[name] for name, _ in network.places(layer)}
        merged, found[layer] = _merge(
            touched,
            _layer_prior(prior, layer),
            None if live is None else live.get(layer),
            match_key,
            layer=layer,
            axes=tuple((name, network.axes[name]) for name in touched),
            width=width,
            num_passes=num_passes,
            budget=budget,
            empirical_bayes=empirical_bayes,
        )
        arrays.update(merged)
        frozen.update(
            {name: True for name, axis in network.places(layer) if network.leads_into(name, axis)}
        )
        if retrain is not None:
            trained = retrain(
                train_key,
                jax.tree.unflatten(treedef, arrays.values()),
                jax.tree.unflatten(treedef, frozen.values()),
            )
            for name, leaf in trees.flat_dict(trained).items():
                arrays[name] = arrays[name] if frozen[name] else leaf
    final = [x[0] if frozen[name] else _weighted(x, weights) for name, x in arrays.items()]
    return LayerwiseMatching(
        params=jax.tree.unflatten(treedef, final),
        assignments={layer: each.slots for layer, each in found.items()},
        counts={layer: each.counts for layer, each in found.items()},
        num_neurons={layer: (each.counts > 0).sum() for layer, each in found.items()},
        full={layer: each.full for layer, each in found.items()},
        sigma={layer: each.sigma for layer, each in found.items()},
        sigma0={layer: each.sigma0 for layer, each in found.items()},
    )


def compact(found: LayerwiseMatching, *, axes: Axes | None = None) -> LayerwiseMatching:
    """Leave out dead neurons: the same network in its true widths. On the host, not inside jit.

    Args:
        found: what `fedma` gave.
        axes: as given to it.

    Returns:
        The same with params in true widths, assignments to the neurons that are left (their number
        for padding), and counts without zeros.
    """
    network = described(jax.tree.map(lambda x: x[None], found.params), axes)
    alive = {layer: np.flatnonzero(counts) for layer, counts in found.counts.items()}
    arrays = {name: np.asarray(leaf) for name, leaf in trees.flat_dict(found.params).items()}
    for layer, neurons in alive.items():
        for name, axis in network.places(layer):
            arrays[name] = chosen(arrays[name], axis, len(found.counts[layer]), neurons)
    numbers = {
        layer: np.append(np.cumsum(np.asarray(counts) > 0) - 1, len(alive[layer]))
        for layer, counts in found.counts.items()
    }
    return found._replace(
        params=jax.tree.map(
            jnp.asarray, jax.tree.unflatten(jax.tree.structure(found.params), arrays.values())
        ),
        assignments={
            layer: jnp.asarray(numbers[layer][np.asarray(slots)])
            for layer, slots in found.assignments.items()
        },
        counts={
            layer: jnp.asarray(np.asarray(counts)[alive[layer]])
            for layer, counts in found.counts.items()
        },
    )


@functools.partial(
    jax.jit,
    static_argnames=("layer", "axes", "width", "num_passes", "budget", "empirical_bayes"),
)
def _merge(
    arrays: dict[str, Array],
    prior: LayerPrior,
    live: Array | None,
    key: Key,
    *,
    layer: str,
    axes: tuple[tuple[str, tuple[str | None, ...]], ...],
    width: int,
    num_passes: int,
    budget: int,
    empirical_bayes: bool,
) -> tuple[dict[str, Array], MatchedLayer]:
    """Match one layer: the arrays with an axis of it, in terms of the merged neurons."""
    network = Description(dict(axes), {layer: width})
    parts = []
    for name, axis in network.likeness(layer):
        if network.leads_into(name, axis):
            part = jax.vmap(functools.partial(split, axis=axis, width=width))(arrays[name])
            parts.append(part.reshape(*part.shape[:2], -1))
    rows = jnp.concatenate(parts, axis=2)
    matched = match_layer(
        Rows(
            shared=rows,
            classes=rows[..., :0],
            class_share=rows[:, 0, :0],
            live=jnp.ones(rows.shape[:2], bool) if live is None else jnp.asarray(live, bool),
            mean=jnp.zeros(rows.shape[2], rows.dtype),
        ),
        LayerPrior(*(jnp.asarray(value, rows.dtype) for value in prior)),
        key=key,
        num_passes=num_passes,
        budget=budget,
        empirical_bayes=empirical_bayes,
    )
    merged = dict(arrays)
    for name, axis in network.places(layer):
        place = functools.partial(spread, axis=axis, budget=budget)
        merged[name] = jax.vmap(lambda leaf, slots, place=place: place(leaf, slots=slots))(
            merged[name], matched.slots
        )
    for name, axis in network.places(layer):
        if network.leads_into(name, axis):
            leaf = merged[name]
            owners = jnp.tile(jnp.maximum(matched.counts, 1), leaf.shape[-1] // budget)
            owners = owners.reshape((1,) * (leaf.ndim - 1) + (-1,)).astype(leaf.dtype)
            merged[name] = jnp.broadcast_to(leaf.sum(axis=0, keepdims=True) / owners, leaf.shape)
    return merged, matched


def _layer_prior(prior: Prior, layer: str) -> LayerPrior:
    """The hyperparameters of one layer."""
    own = {name: _of(getattr(prior, name), layer, name) for name in ("sigma", "sigma0", "gamma")}
    for name, value in own.items():
        checks.in_range(name, value, 0.0, open_low=True)
    check_common(prior)
    return LayerPrior(**own, scale=prior.scale, popularity_cap=cap_of(prior))


def _of(value: Any, layer: str, name: str) -> Any:
    """A layer's own number, of one for all or one for each."""
    if not isinstance(value, Mapping):
        return value
    if layer not in value:
        raise ValueError(f"{name} must have an entry for layer {layer!r}, got {list(value)}.")
    return value[layer]


@jax.jit
def _weighted(leaf: Array, weights: Array) -> Array:
    """The mean [...] of [J, ...] by weights [J], or by [J, K] if the last axis has K entries."""
    if weights.ndim == 2:
        by_class = leaf.ndim > 1 and leaf.shape[-1] == weights.shape[1]
        weights = weights if by_class else weights.sum(axis=1)
    total = weights.sum(axis=0, keepdims=True)
    share = weights / jnp.where(total > 0, total, 1)
    inner = (1,) * (leaf.ndim - weights.ndim)
    share = share.reshape(len(share), *inner, *share.shape[1:])
    return (leaf * share.astype(leaf.dtype)).sum(axis=0)


def _checked(params: Params, weights: Array, padded: bool) -> tuple[int, Array]:
    """J, and the weights as an array. What is padding may hold anything."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(params)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            "params must be stacked networks with one leading axis [J] in every array, got leading "
            f"axes {sorted(sizes)}."
        )
    ((num_clients,),) = sizes
    for name, leaf in trees.flat_dict(params).items():
        if not padded and not checks.is_traced(leaf) and not np.isfinite(leaf).all():
            raise ValueError(
                f"params: {name} has values that are not finite. Leave that client out, or train "
                "it with a lower learning rate."
            )
    weights = jnp.asarray(weights, jnp.float32)
    if weights.ndim not in (1, 2) or len(weights) != num_clients:
        raise ValueError(
            f"weights must have shape [{num_clients}] or [{num_clients}, K], got {weights.shape}."
        )
    if not checks.is_traced(weights):
        host = np.asarray(weights)
        if not (np.isfinite(host).all() and (host >= 0).all() and (host.sum(axis=0) > 0).all()):
            raise ValueError(
                "weights must be finite and >= 0, and some client must count for every class, got "
                f"sums {host.sum(axis=0).tolist()} over the clients."
            )
    return num_clients, weights

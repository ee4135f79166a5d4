"""Matched averaging: permute every client's neurons to agree with the others, then average.

The baseline to neuron matching by a prior: the global network keeps the width of a client, so every
neuron is merged with one of every other client, whether it is like it or not.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Params
from fedjax_sim.matching.assignment import assignment
from fedjax_sim.matching.axes import Axes, chosen, described, split
from fedjax_sim.ops import checks, trees


def matched_average(params: Params, *, axes: Axes | None = None, num_passes: int = 3) -> Params:
    """Average J networks after permuting their neurons to agree as well as possible.

    One client after another is aligned with the mean of the others, layer by layer, by the
    permutation that maximises the inner product of all weights into and out of the layer. That ends
    where no client alone can do better, which need not be the best for all together. Pure: for jit,
    scan and vmap. Prefer `pfnm` or `fedma` where clients saw different classes: they have
    neurons that others lack.

    Args:
        params: J >= 2 networks of equal widths, any tree with a leading axis [J] in every array; or
            a list of layers `(kernel [J, in, out], bias [J, out])`.
        axes: which axes number the neurons of which layer; by default as `neuron_axes` has it.
        num_passes: how often every client is aligned, >= 1, static.

    Returns:
        The mean network, in the form of `params` without the leading axis.

    Raises:
        ValueError: one client only, or axes that do not fit the parameters.

    References:
        Ainsworth, Hayase, Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries",
        ICLR 2023, algorithms 1 and 3 (MergeMany). Weights from a layer into itself (an LSTM's) are
        permuted on both sides, but have no say in the permutation.
    """
    checks.positive_int("num_passes", num_passes)
    if not isinstance(params, Mapping) and axes is None:
        named = {f"dense_{i}": {"kernel": w, "bias": b} for i, (w, b) in enumerate(params)}
        mean = matched_average(named, num_passes=num_passes)
        return [(mean[name]["kernel"], mean[name]["bias"]) for name in named]
    network = described(params, axes)
    arrays = {name: jnp.asarray(leaf) for name, leaf in trees.flat_dict(params).items()}
    num_clients = len(next(iter(arrays.values())))
    if num_clients < 2:
        raise ValueError(f"params must hold 2 networks at least, got {num_clients}.")

    def align(arrays: dict[str, Array], client: Array) -> tuple[dict[str, Array], None]:
        own = {name: x[client] for name, x in arrays.items()}
        total = {name: x.sum(axis=0) for name, x in arrays.items()}
        others = {name: (total[name] - own[name]) / (num_clients - 1) for name in arrays}
        for layer, width in network.widths.items():
            products = [
                _products(others[name], own[name], axis, width)
                for name, axis in network.likeness(layer)
            ]
            likeness = jnp.stack(products).sum(axis=0)
            order = assignment(-likeness)
            for name, axis in network.places(layer):
                own[name] = chosen(own[name], axis, width, order)
        return {name: x.at[client].set(own[name]) for name, x in arrays.items()}, None

    visits = jnp.tile(jnp.arange(num_clients), num_passes)
    arrays, _ = jax.lax.scan(align, arrays, visits)
    means = [x.mean(axis=0) for x in arrays.values()]
    return jax.tree.unflatten(jax.tree.structure(params), means)


def _products(a: Array, b: Array, axis: int, width: int) -> Array:
    """[L, L] inner products of the neurons of two arrays."""
    rows, columns = (split(x, axis, width).reshape(width, -1) for x in (a, b))
    return jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)

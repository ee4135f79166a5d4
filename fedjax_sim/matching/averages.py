"""Matched averaging: permute every client's neurons to agree with the others, then average.

The baseline to neuron matching by a prior: the global network keeps the width of a client, so every
neuron is merged with one of every other client, whether it is like it or not.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim import checks
from fedjax_sim.base import Array
from fedjax_sim.matching.assignment import assignment

Layers = list[tuple[Array, Array]]


def matched_average(params: Sequence[tuple[Any, Any]], *, num_passes: int = 3) -> Layers:
    """Average J networks after permuting their neurons to agree as well as possible.

    One client after another is aligned with the mean of the others, layer by layer, by the
    permutation that maximises the inner product of all weights. Pure: for jit, scan and vmap.
    Prefer `pfnm` where clients saw different classes: they have neurons that others lack.

    Args:
        params: layers `(kernel [J, in, out], bias [J, out])`, J >= 2, equal widths.
        num_passes: how often every client is aligned, >= 1, static.

    Returns:
        The mean network, layers `(kernel [in, out], bias [out])`.

    References:
        Ainsworth, Hayase, Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries",
        ICLR 2023, algorithms 1 and 3 (MergeMany).
    """
    checks.positive_int("num_passes", num_passes)
    layers = [(jnp.asarray(w), jnp.asarray(b)) for w, b in params]
    num_clients = layers[0][0].shape[0]
    if num_clients < 2 or len(layers) < 2:
        raise ValueError(
            f"params must have 2 clients and 2 layers at least, got {num_clients} and "
            f"{len(layers)}."
        )

    def align(layers: Layers, client: Array) -> tuple[Layers, None]:
        own = [(w[client], b[client]) for w, b in layers]
        others = [
            ((w.sum(axis=0) - v) / (num_clients - 1), (b.sum(axis=0) - c) / (num_clients - 1))
            for (w, b), (v, c) in zip(layers, own, strict=True)
        ]
        for h in range(len(layers) - 1):
            (w, b), (out, last) = own[h], own[h + 1]
            (target, target_bias), (target_out, _) = others[h], others[h + 1]
            likeness = target.T @ w + jnp.outer(target_bias, b) + target_out @ out.T
            order = assignment(-likeness)
            own[h], own[h + 1] = (w[:, order], b[order]), (out[order], last)
        moved = [
            (w.at[client].set(v), b.at[client].set(c))
            for (w, b), (v, c) in zip(layers, own, strict=True)
        ]
        return moved, None

    visits = jnp.tile(jnp.arange(num_clients), num_passes)
    layers, _ = jax.lax.scan(align, layers, visits)
    return [(w.mean(axis=0), b.mean(axis=0)) for w, b in layers]

"""Sparsification: a few of the numbers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Key, Uplink
from fedjax_sim.ops import checks, permutation, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.coding import Coded, index_bits
from fedjax_sim.uplink._vectors import of_vectors


class _Sparse(NamedTuple):
    """values: [k]. indices: [k], where they belong."""

    values: Array
    indices: Coded


@checked
def top_k(fraction: float = 0.01) -> Uplink:
    """Send the largest numbers of an update by size, and where they belong.

    The error is at most (1 - fraction) ||x||^2, and far less where few numbers are large. It is
    biased: what is small is never sent. `error_feedback(top_k(...))` makes up for that.

    Args:
        fraction: of all numbers of the update together, in (0, 1]; rounded to a whole number of
            them, at least one. It cannot be traced: what is sent has a fixed length.

    Returns:
        An Uplink without state that sends k numbers as they are and their indices, of
        ceil(log2(D)) bits.

    Cost: on a CPU, grows with k: sending a tenth takes several times as long as a hundredth.

    References:
        Aji, Heafield, "Sparse Communication for Distributed Gradient Descent", EMNLP 2017; Stich,
        Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, for the error.
    """
    _check(fraction)

    def encode(key: Key, vector: Array) -> _Sparse:
        number = _number(fraction, vector.shape[0])
        _, indices = jax.lax.top_k(jnp.abs(vector), number)
        return _Sparse(vector[indices], Coded.of(indices, index_bits(vector.shape[0])))

    def decode(key: Key, code: _Sparse, size: int) -> Array:
        return _spread(code.values, code.indices.values, size)

    return of_vectors(encode, decode)


@checked
def random_k(fraction: float = 0.01, *, unbiased: bool = True) -> Uplink:
    """Send numbers of an update that are drawn uniformly, without replacement.

    The server draws the same places, so that no indices are sent.

    Args:
        fraction: of all numbers of the update together, in (0, 1]; rounded to a whole number of
            them, at least one. It cannot be traced: what is sent has a fixed length.
        unbiased: multiply by D / k, so that the mean over draws is the update; the error is then
            (D / k - 1) ||x||^2 on average. Otherwise, as `error_feedback` wants it, the numbers
            arrive as they are, and the error is (1 - k / D) ||x||^2.

    Returns:
        An Uplink without state that sends k numbers.

    References:
        Konecny et al., "Federated Learning: Strategies for Improving Communication Efficiency",
        2016, section 3 ("random mask"); Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory",
        NeurIPS 2018.
    """
    _check(fraction)

    def places(key: Key, size: int) -> Array:
        first = jnp.arange(_number(fraction, size), dtype=jnp.int32)
        return permutation.permute(permutation.words(key), size, first)

    def encode(key: Key, vector: Array) -> Array:
        return vector[places(key, vector.shape[0])]

    def decode(key: Key, values: Array, size: int) -> Array:
        factor = size / _number(fraction, size) if unbiased else 1.0
        return _spread(factor * trees.wide(values), places(key, size), size)

    return of_vectors(encode, decode)


def _number(fraction: float, size: int) -> int:
    return max(1, round(fraction * size))


def _spread(values: Array, indices: Array, size: int) -> Array:
    none = jnp.zeros(size, values.dtype)
    return none.at[indices].set(values, unique_indices=True, mode="promise_in_bounds")


def _check(fraction: float) -> None:
    if checks.is_traced(fraction):
        raise TypeError("fraction must be known when compiling, got a traced number.")
    checks.in_range("fraction", fraction, 0.0, 1.0, open_low=True)

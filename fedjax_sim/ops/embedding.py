"""A look-up in a table of embeddings, whose gradient is the same in every run on every backend."""

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim.base import Array

MAX_ONE_HOT = 1024
"""Rows of a table up to which an accelerator multiplies by one-hot rows."""


@jax.custom_vjp
def embed(table: Array, tokens: Array) -> Array:
    """Look up rows of a table; a token >= V gives NaN.

    The gradient by the table adds the rows of equal tokens. On a CPU this is a scatter. An
    accelerator scatters in any order, so that sums are rounded differently in every run; there,
    for a small vocabulary, it is a product with the one-hot tokens.

    Args:
        table: [V, E].
        tokens: [...] of any integer dtype, in [0, V).

    Returns:
        [..., E].

    >>> embed(jnp.array([[1.0], [2.0]]), jnp.array([1, 0, 1])).ravel().tolist()
    [2.0, 1.0, 2.0]
    """
    return jnp.take(table, tokens, axis=0)


def _forward(table: Array, tokens: Array) -> tuple[Array, tuple[Array, Array]]:
    return embed(table, tokens), (table, tokens)


def _backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, None]:
    table, tokens = saved
    size = len(table)
    if jax.default_backend() == "cpu" or size > MAX_ONE_HOT:
        _, pull = jax.vjp(lambda table: jnp.take(table, tokens, axis=0), table)
        return *pull(cotangent), None
    axes = tuple(range(tokens.ndim))
    one_hot = jax.nn.one_hot(tokens, size, dtype=cotangent.dtype)
    return lax.dot_general(one_hot, cotangent, ((axes, axes), ((), ()))), None


embed.defvjp(_forward, _backward)

"""The look-up of embeddings and its gradient against plain NumPy float64, in both forms."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.ops import embedding

CLIENTS, ROWS, WIDTH = 2, 5, 3


@pytest.mark.parametrize(
    ("backend", "rows", "scatters"),
    [("cpu", ROWS, True), ("gpu", ROWS, False), ("gpu", embedding.MAX_ONE_HOT + 1, True)],
)
def test_rows_and_gradient_equal_the_reference(backend, rows, scatters, rng):
    """Of clients with tables of their own, and tokens of which many are equal."""
    tables = rng.normal(size=(CLIENTS, rows, WIDTH)).astype(np.float32)
    tokens = rng.integers(0, ROWS, (CLIENTS, 4, 6))
    ct = rng.normal(size=(*tokens.shape, WIDTH)).astype(np.float32)

    def both(table, tokens, ct):
        out, pull = jax.vjp(lambda table: embedding.embed(table, tokens), table)
        return out, *pull(ct)

    with mock.patch.object(jax, "default_backend", lambda: backend):
        program = str(jax.make_jaxpr(jax.vmap(both))(tables, tokens, ct))
        out, by_table = jax.jit(jax.vmap(both))(tables, tokens, ct)
    assert ("scatter" in program) == scatters
    for n in range(CLIENTS):
        np.testing.assert_array_equal(out[n], tables[n][tokens[n]])
        expected = np.zeros((rows, WIDTH))
        np.add.at(expected, tokens[n], ct[n])
        np.testing.assert_allclose(by_table[n], expected, rtol=1e-5, atol=1e-5)


def test_an_unknown_token_is_nan():
    found = embedding.embed(jnp.ones((2, 1)), jnp.array([0, 2]))
    np.testing.assert_array_equal(found, [[1], [np.nan]])

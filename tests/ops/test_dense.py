"""The dense product and its gradients against plain NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.ops import dense

pytestmark = pytest.mark.optimised

OUTER, TRANSPOSED = (5, 7, 3), (dense.MAX_BATCH + 1, 7, 3)
LONG = (2, dense.MAX_ENTRIES, 2)
PLAIN = (4, 6, dense.MAX_OUTPUTS + 1)


@pytest.mark.parametrize("sizes", [OUTER, TRANSPOSED, LONG, PLAIN, (1, 1, 1)])
def test_product_and_gradients_equal_the_reference(sizes, rng):
    batch, features, outputs = sizes
    x = rng.normal(size=(batch, features))
    w = rng.normal(size=(features, outputs))
    ct = rng.normal(size=(batch, outputs))
    out, pull = jax.vjp(dense.dense, jnp.float32(x), jnp.float32(w))
    by_x, by_w = pull(jnp.float32(ct))
    np.testing.assert_allclose(out, x @ w, atol=1e-3)
    np.testing.assert_allclose(by_x, ct @ w.T, atol=1e-5)
    np.testing.assert_allclose(by_w, x.T @ ct, atol=1e-4)


@pytest.mark.parametrize("sizes", [OUTER, TRANSPOSED])
def test_a_batch_of_clients_equals_a_loop(sizes, rng):
    batch, features, outputs = sizes
    x = jnp.float32(rng.normal(size=(4, batch, features)))
    w = jnp.float32(rng.normal(size=(4, features, outputs)))

    def gradients(x, w):
        return jax.grad(lambda x, w: (dense.dense(x, w) ** 2).sum(), (0, 1))(x, w)

    together = jax.vmap(gradients)(x, w)
    for i in range(4):
        for many, one in zip(together, gradients(x[i], w[i]), strict=True):
            np.testing.assert_allclose(many[i], one, rtol=1e-5, atol=1e-4)


def test_each_form_is_the_one_that_runs():
    """On a CPU; told apart by the matrix products and transpositions in the program."""
    if jax.default_backend() != "cpu":
        pytest.skip("the form is chosen for the CPU")

    def form(sizes):
        batch, features, outputs = sizes
        pull = jax.grad(lambda w, x: dense.dense(x, w).sum())
        args = jnp.zeros((features, outputs)), jnp.zeros((batch, features))
        text = str(jax.make_jaxpr(pull)(*args))
        return text.count("dot_general"), "optimization_barrier" in text

    outer, transposed, long, plain = map(form, (OUTER, TRANSPOSED, LONG, PLAIN))
    assert outer[0] < plain[0] == transposed[0] == long[0]
    assert transposed[1] and long[1] and not plain[1] and not outer[1]

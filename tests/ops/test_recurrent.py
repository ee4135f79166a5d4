"""The LSTM layer and its gradients against plain NumPy float64 and a differentiated scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.ops import recurrent

SIZES = [(5, 3, 2, 4), (1, 1, 1, 1), (7, 2, 3, 2)]
"""T, B, I, H."""


def arguments(sizes, rng, clients=()):
    """Inputs, kernel, recurrent kernel, bias and a cotangent of the outputs."""
    steps, batch, features, hidden = sizes
    shapes = [
        (steps, batch, features),
        (features, 4 * hidden),
        (hidden, 4 * hidden),
        (4 * hidden,),
        (steps, batch, hidden),
    ]
    return [rng.normal(size=(*clients, *shape)).astype(np.float32) for shape in shapes]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(x, w, u, b, ct):
    """The outputs, and the gradients by the chain rule from the last step to the first."""
    x, w, u, b, ct = (np.asarray(a, np.float64) for a in (x, w, u, b, ct))
    steps = len(x)
    h, c = (np.zeros((steps + 1, *ct.shape[1:])) for _ in range(2))  # [t + 1]: after step t
    gates = []
    for t in range(steps):
        i, g, f, o = np.split(x[t] @ w + h[t] @ u + b, 4, axis=1)
        i, g, f, o = sigmoid(i), np.tanh(g), sigmoid(f), sigmoid(o)
        c[t + 1] = f * c[t] + i * g
        h[t + 1] = o * np.tanh(c[t + 1])
        gates.append((i, g, f, o))
    by_x, by_w, by_u, by_b = (np.zeros_like(a) for a in (x, w, u, b))
    by_h = by_c = np.zeros_like(h[0])
    for t in reversed(range(steps)):
        i, g, f, o = gates[t]
        by_h = by_h + ct[t]
        by_c = by_c + by_h * o / np.cosh(c[t + 1]) ** 2
        by_o = by_h * np.tanh(c[t + 1])
        by_gates = np.concatenate(
            [
                by_c * g * i * (1 - i),
                by_c * i * (1 - g**2),
                by_c * c[t] * f * (1 - f),
                by_o * o * (1 - o),
            ],
            axis=1,
        )
        by_x[t] = by_gates @ w.T
        by_w += x[t].T @ by_gates
        by_u += h[t].T @ by_gates
        by_b += by_gates.sum(0)
        by_h, by_c = by_gates @ u.T, by_c * f
    return h[1:], by_x, by_w, by_u, by_b


def scanned(x, w, u, b):
    """The layer as one would write it, for JAX to differentiate."""

    def step(carry, x):
        h, c = carry
        i, g, f, o = jnp.split(x @ w + h @ u + b[None], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((x.shape[1], len(u)), x.dtype)
    return jax.lax.scan(step, (zero, zero), x)[1]


def with_gradients(layer):
    """(x, w, u, b, cotangent) -> outputs and four gradients."""

    def both(*args):
        out, pull = jax.vjp(layer, *args[:-1])
        return out, *pull(args[-1])

    return both


@pytest.mark.parametrize("sizes", SIZES)
def test_outputs_and_gradients_equal_the_reference(sizes, rng):
    args = arguments(sizes, rng)
    found = jax.jit(with_gradients(recurrent.lstm))(*args)
    for ours, theirs in zip(found, reference(*args), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    alone = jax.jit(recurrent.lstm)(*args[:-1])  # without gradients nothing is kept
    np.testing.assert_allclose(alone, found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("own", [True, False], ids=["kernels of their own", "one kernel"])
def test_clients_at_once_equal_the_reference(own, rng):
    x, w, u, b, ct = arguments(SIZES[0], rng, clients=(3,))
    kernels, axis = ((w, u, b), 0) if own else ((w[0], u[0], b[0]), None)
    together = jax.vmap(with_gradients(recurrent.lstm), in_axes=(0, axis, axis, axis, 0))
    found = jax.jit(together)(x, *kernels, ct)
    for n in range(3):
        mine = (w[n], u[n], b[n]) if own else kernels
        for ours, theirs in zip(found, reference(x[n], *mine, ct[n]), strict=True):
            np.testing.assert_allclose(ours[n], theirs, rtol=1e-5, atol=1e-5)


def test_second_derivatives_are_those_of_a_scan(rng):
    """Of the squared norm of two clients' gradients, by everything, the cotangent included."""
    args = arguments((4, 2, 3, 2), rng, clients=(2,))

    def twice(layer):
        def norm(*args):
            return sum((g**2).sum() for g in with_gradients(layer)(*args)[1:])

        return jax.jit(jax.vmap(jax.grad(norm, range(5))))

    for ours, theirs in zip(twice(recurrent.lstm)(*args), twice(scanned)(*args), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_half_precision_stays_half(rng):
    args = [jnp.asarray(a, jnp.bfloat16) for a in arguments(SIZES[0], rng)]
    found = jax.jit(with_gradients(recurrent.lstm))(*args)
    assert {leaf.dtype for leaf in found} == {jnp.dtype(jnp.bfloat16)}
    for ours, theirs in zip(found, reference(*args), strict=True):
        # About ten roundings to 8 bits on the way through five steps.
        np.testing.assert_allclose(np.float64(ours), theirs, rtol=0.08, atol=0.08)


@pytest.mark.parametrize("clients", [(), (2,)], ids=["one client", "two clients"])
def test_loops_hold_one_product_each_and_no_gradient_of_a_kernel(clients, rng):
    args = arguments(SIZES[0], rng, clients)
    both = with_gradients(recurrent.lstm)
    program = jax.make_jaxpr(jax.vmap(both) if clients else both)(*args).jaxpr

    def products(jaxpr):
        return [e for e in walk(jaxpr) if e.primitive.name == "dot_general"]

    loops = [e.params["jaxpr"].jaxpr for e in walk(program) if e.primitive.name == "scan"]
    inside = [product.outvars[0].aval.shape for loop in loops for product in products(loop)]
    _, batch, _, hidden = SIZES[0]
    assert inside == [(*clients, batch, 4 * hidden), (*clients, batch, hidden)]
    # Beside those in the loops: x W, and the gradients by x, W and U.
    assert len(products(program)) == 2 + 4


def walk(jaxpr):
    """Every equation, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from walk(inner)

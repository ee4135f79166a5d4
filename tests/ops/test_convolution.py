"""The convolution and its gradients against plain NumPy float64, and under vmap and scan."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from fedjax_sim.ops import convolution

SIDES = st.integers(0, 4)


def reference(x, k, ct, strides, padding, groups):
    """Output and both gradients, one shift of the window at a time."""
    x, k = np.asarray(x, np.float64), np.asarray(k, np.float64)
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    h, w, depth, outputs = k.shape
    v, u = strides
    rows, columns = (padded.shape[1] - h) // v + 1, (padded.shape[2] - w) // u + 1
    out = np.zeros((len(x), rows, columns, outputs))
    by_x, by_k = np.zeros_like(padded), np.zeros_like(k)
    ct = np.zeros_like(out) if ct is None else np.asarray(ct, np.float64)
    for i in range(h):
        for j in range(w):
            place = np.s_[:, i : i + (rows - 1) * v + 1 : v, j : j + (columns - 1) * u + 1 : u]
            for g in range(groups):
                ins = slice(g * depth, (g + 1) * depth)
                outs = slice(g * outputs // groups, (g + 1) * outputs // groups)
                seen = padded[place][..., ins]
                out[..., outs] += seen @ k[i, j][:, outs]
                by_x[place][..., ins] += ct[..., outs] @ k[i, j][:, outs].T
                by_k[i, j][:, outs] += np.tensordot(seen, ct[..., outs], axes=([0, 1, 2],) * 2)
    (top, _), (left, _) = padding
    return out, by_x[:, top : top + x.shape[1], left : left + x.shape[2]], by_k


def assert_rounded(found, x, k, ct, strides, padding, groups):
    """A sum of n products is rounded by at most about n eps / 2 of the sum of their sizes."""
    wanted = reference(x, k, ct, strides, padding, groups)
    sizes = reference(np.abs(x), np.abs(k), np.abs(ct), strides, padding, groups)
    terms = k[..., 0].size, k[:, :, 0].size // groups, ct[..., 0].size
    for ours, theirs, size, n in zip(found, wanted, sizes, terms, strict=True):
        assert (np.abs(ours - theirs) <= n * np.finfo(np.float32).eps * size).all()


shapes = given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES)),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)


def with_gradients(conv):
    """(x, k, ct) -> output and both gradients, of one program, on the host."""

    @jax.jit
    def both(x, k, ct):
        out, pull = jax.vjp(conv, x, k)
        return out, *pull(ct)

    return lambda *args: jax.device_get(both(*args))


# Every example is another program, and small.
@settings(max_examples=25)
@shapes
def test_output_and_gradients_equal_the_reference(kernel, strides, padding, groups, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 6, 5, 4)).astype(np.float32)
    k = rng.normal(size=(*kernel, 4 // groups, 6)).astype(np.float32)

    def conv(x, k):
        return convolution.conv(x, k, strides=strides, padding=padding, feature_groups=groups)

    ct = rng.normal(size=jax.eval_shape(conv, x, k).shape).astype(np.float32)
    found = with_gradients(conv)(x, k, ct)
    assert_rounded(found, x, k, ct, strides, padding, groups)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@settings(max_examples=10)
@shapes
def test_clients_with_kernels_of_their_own_equal_the_reference(
    backend, kernel, strides, padding, groups, seed
):
    """In the form for a CPU and in that for accelerators, which computes the same anywhere."""
    rng = np.random.default_rng(seed)
    xs = rng.normal(size=(2, 2, 6, 5, 4)).astype(np.float32)
    ks = rng.normal(size=(2, *kernel, 4 // groups, 6)).astype(np.float32)

    def conv(x, k):
        return convolution.conv(x, k, strides=strides, padding=padding, feature_groups=groups)

    with mock.patch.object(jax, "default_backend", lambda: backend):
        program, out = jax.make_jaxpr(jax.vmap(conv), return_shape=True)(xs, ks)
        cts = rng.normal(size=out.shape).astype(np.float32)
        found = with_gradients(jax.vmap(conv))(xs, ks, cts)
    assert ("dot_general" in str(program)) == (backend == "gpu")
    for i in range(2):
        mine = [each[i] for each in found]
        assert_rounded(mine, xs[i], ks[i], cts[i], strides, padding, groups)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (3, 2)])
def test_named_padding_is_that_of_lax(padding, strides, rng):
    x = rng.normal(size=(2, 7, 8, 3)).astype(np.float32)
    k = rng.normal(size=(3, 2, 3, 4)).astype(np.float32)
    theirs = lax.conv_general_dilated(
        x, k, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(
        convolution.conv(x, k, strides=strides, padding=padding), theirs, atol=1e-5
    )


@pytest.mark.optimised
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_a_batch_of_clients_equals_a_loop(axes, rng):
    """Gradients under vmap, with kernels or images of one's own or shared, inside a scan."""
    xs = rng.normal(size=(3, 2, 6, 6, 2)).astype(np.float32)
    ks = rng.normal(size=(3, 3, 3, 2, 4)).astype(np.float32)

    @jax.jit
    def gradients(x, k):
        return jax.grad(lambda x, k: (convolution.conv(x, k) ** 2).sum(), (0, 1))(x, k)

    def scanned(x, k):
        return lax.scan(lambda c, _: (c, jax.vmap(gradients, axes)(x, k)), 0, None, length=2)[1]

    x, k = (xs if axes[0] == 0 else xs[0]), (ks if axes[1] == 0 else ks[0])
    together = jax.jit(scanned)(x, k)
    for i in range(3):
        alone = gradients(xs[i] if axes[0] == 0 else xs[0], ks[i] if axes[1] == 0 else ks[0])
        for many, one in zip(together, alone, strict=True):
            np.testing.assert_allclose(many[1, i], one, rtol=1e-4, atol=1e-3)


def test_gradient_of_a_batch_and_nested_batches(rng):
    xs = rng.normal(size=(2, 3, 1, 5, 5, 2)).astype(np.float32)
    ks = rng.normal(size=(2, 3, 2, 2, 2, 3)).astype(np.float32)
    nested = jax.vmap(jax.vmap(convolution.conv))

    def total(conv):
        return jax.jit(jax.grad(lambda k, x: (conv(x, k) ** 2).sum()))(ks, xs)

    def loop(xs, ks):
        return jnp.stack(
            [
                jnp.stack([convolution.conv(x, k) for x, k in zip(xx, kk, strict=True)])
                for xx, kk in zip(xs, ks, strict=True)
            ]
        )

    np.testing.assert_allclose(total(nested), total(loop), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("strides", "groups"), [((1, 1), 1), ((2, 1), 2)])
def test_second_derivatives_are_those_of_lax(strides, groups, rng):
    """Reverse over reverse, by images and by kernel."""
    x = rng.normal(size=(2, 5, 6, 4)).astype(np.float32)
    k = rng.normal(size=(3, 2, 4 // groups, 2)).astype(np.float32)

    def ours(x, k):
        return convolution.conv(x, k, strides=strides, padding="SAME", feature_groups=groups)

    def theirs(x, k):
        layout = ("NHWC", "HWIO", "NHWC")
        options = {"dimension_numbers": layout, "feature_group_count": groups}
        return lax.conv_general_dilated(x, k, strides, "SAME", **options)

    def second(conv):
        first = jax.grad(lambda x, k: (conv(x, k) ** 3).sum(), (0, 1))
        of_squares = jax.grad(lambda x, k: sum((g**2).sum() for g in first(x, k)), (0, 1))
        return jax.device_get(jax.jit(of_squares)(x, k))

    for a, b in zip(second(ours), second(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


def test_flax_layers_take_it(key):
    x = jax.random.normal(key, (2, 8, 8, 4))
    options = {"features": 6, "kernel_size": (3, 3), "strides": 2, "feature_group_count": 2}
    ours = nn.Conv(**options, conv_general_dilated=convolution.conv_general_dilated)
    params = ours.init(key, x)
    np.testing.assert_allclose(
        ours.apply(params, x), nn.Conv(**options).apply(params, x), atol=1e-5
    )


def test_what_it_does_not_do_goes_to_lax(rng):
    x = rng.normal(size=(2, 4, 8, 8)).astype(np.float32)
    k = rng.normal(size=(5, 4, 3, 3)).astype(np.float32)
    for options in ({}, {"rhs_dilation": (2, 2)}, {"padding": ((1, -1), (0, 0))}):
        arguments = {"window_strides": (1, 1), "padding": "VALID"} | options
        np.testing.assert_array_equal(
            convolution.conv_general_dilated(x, k, **arguments),
            lax.conv_general_dilated(x, k, **arguments),
        )


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((2, 5, 5), (3, 3, 1, 2)), {}, "images must have shape"),
        (((2, 5, 5, 3), (3, 3, 2, 2)), {}, "feature_groups=1 must divide the 3 features"),
        (((2, 5, 5, 4), (3, 3, 2, 3)), {"feature_groups": 2}, "divide the kernel's 3 outputs"),
        (((2, 5, 5, 2), (3, 3, 2, 2)), {"strides": (0, 1)}, "strides must be two integers >= 1"),
        (((2, 5, 5, 2), (3, 3, 2, 2)), {"padding": ((0, 0), (-1, 0))}, "padding must be >= 0"),
    ],
)
def test_bad_input(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        convolution.conv(*(jnp.zeros(shape) for shape in shapes), **options)

"""Group normalization against NumPy in float64, and against Flax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax_sim.ops.normalization import group_norm

pytestmark = pytest.mark.optimised


def reference(
    x: np.ndarray, scale: np.ndarray, bias: np.ndarray, num_groups: int, epsilon: float
) -> np.ndarray:
    """Wu and He, equations 1, 2 and 5, image by image and group by group."""
    out = np.empty(x.shape)
    size = x.shape[-1] // num_groups
    for b in range(len(x)):
        for g in range(num_groups):
            own = slice(g * size, (g + 1) * size)
            group = x[b, ..., own].astype(np.float64)
            normal = (group - group.mean()) / np.sqrt(group.var() + epsilon)
            out[b, ..., own] = normal * scale[own] + bias[own]
    return out


@pytest.mark.parametrize(("shape", "num_groups"), [((3, 4, 5, 6), 3), ((2, 7, 4), 1), ((2, 8), 4)])
def test_equals_the_reference(rng, shape, num_groups) -> None:
    x = rng.normal(1.0, 2.0, shape).astype(np.float32)
    scale, bias = rng.normal(size=(2, shape[-1])).astype(np.float32)
    got = jax.jit(group_norm, static_argnames=("num_groups", "epsilon"))(
        x, scale, bias, num_groups=num_groups, epsilon=1e-3
    )
    np.testing.assert_allclose(got, reference(x, scale, bias, num_groups, 1e-3), atol=2e-5)


def test_gradients_equal_those_of_flax_for_clients_at_once(rng) -> None:
    x = jnp.asarray(rng.normal(size=(4, 2, 6, 6, 8)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    params = {
        "scale": jnp.asarray(rng.normal(size=(4, 8)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=(4, 8)), jnp.float32),
    }
    layer = nn.GroupNorm(num_groups=4, epsilon=1e-5)

    def flax(params: dict, x: jax.Array, weights: jax.Array) -> jax.Array:
        return (layer.apply({"params": params}, x) * weights).sum()

    def ours(params: dict, x: jax.Array, weights: jax.Array) -> jax.Array:
        return (group_norm(x, **params, num_groups=4) * weights).sum()

    got, want = (jax.vmap(jax.grad(f, (0, 1)))(params, x, weights) for f in (ours, flax))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got, want)


def test_half_precision_is_summed_in_float32(rng) -> None:
    x = jnp.asarray(rng.normal(100.0, 1.0, (2, 64, 64, 4)), jnp.bfloat16)
    got = group_norm(x, jnp.ones(4), jnp.zeros(4), num_groups=2)
    want = reference(np.asarray(x, np.float64), np.ones(4), np.zeros(4), 2, 1e-5)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=0.05)


def test_groups_that_do_not_divide_the_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_groups that divides C, got .*num_groups=3"):
        group_norm(jnp.ones((1, 2, 4)), jnp.ones(4), jnp.zeros(4), num_groups=3)
    with pytest.raises(ValueError, match=r"scale and bias \[C\]"):
        group_norm(jnp.ones((1, 2, 4)), jnp.ones(3), jnp.zeros(4), num_groups=2)

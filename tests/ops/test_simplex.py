import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

from fedjax_sim.ops.simplex import (
    exponentiated_gradient,
    project,
    project_capped,
    project_onto_hull,
    quadratic_program,
)


def sorted_projection(v: np.ndarray, radius: float = 1.0) -> np.ndarray:
    """The textbook algorithm in float64: sort, cumulative sum, threshold."""
    v = np.asarray(v, np.float64)
    v = v - v.max()
    largest_first = np.sort(v)[::-1]
    thetas = (np.cumsum(largest_first) - radius) / np.arange(1, len(v) + 1)
    theta = thetas[np.flatnonzero(largest_first > thetas)[-1]]
    return np.maximum(v - theta, 0)


def brute_force_projection(v: np.ndarray, radius: float = 1.0) -> np.ndarray:
    """Solve the quadratic program on every face of the simplex and keep the nearest point."""
    v = np.asarray(v, np.float64)
    best, best_distance = np.full_like(v, np.nan), np.inf
    for support in itertools.product([False, True], repeat=len(v)):
        face = np.array(support)
        if face.any():
            x = np.where(face, v - (v[face].sum() - radius) / face.sum(), 0.0)
            distance = ((x - v) ** 2).sum()
            if (x >= 0).all() and distance < best_distance:
                best, best_distance = x, distance
    return best


def vectors(sizes: list[int], magnitude: float = 4.0) -> st.SearchStrategy[np.ndarray]:
    """float32 vectors, often with ties; of few sizes, because every size is compiled."""
    numbers = st.floats(-magnitude, magnitude, width=32) | st.sampled_from([0.0, 0.5, 1.0])
    return hnp.arrays(np.float32, st.sampled_from(sizes), elements=numbers)


def property_test(function: Callable[..., None]) -> Callable[..., None]:
    return settings(deadline=None, max_examples=150)(function)


@property_test
@given(vectors([1, 2, 3, 6]), st.sampled_from([0.25, 1.0, 3.0]))
def test_equals_a_brute_force_quadratic_program(v: np.ndarray, radius: float) -> None:
    np.testing.assert_allclose(
        project(v, radius=radius), brute_force_projection(v, radius), atol=2e-6
    )


@property_test
@given(vectors([1, 2, 7, 40], magnitude=1e3))
def test_laws(v: np.ndarray) -> None:
    x = np.asarray(project(v))
    assert (x >= 0).all()
    assert x.sum() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(x, sorted_projection(v), atol=1e-6)
    np.testing.assert_allclose(project(x), x, atol=1e-6)  # idempotent
    order = np.random.default_rng(0).permutation(len(v))
    np.testing.assert_allclose(project(v[order]), x[order], atol=1e-6)  # permutation equivariant


@property_test
@given(vectors([2, 8]), st.data())
def test_never_moves_two_points_apart(v: np.ndarray, data: st.DataObject) -> None:
    w = data.draw(hnp.arrays(np.float32, v.shape, elements=st.floats(-4, 4, width=32)))
    moved = np.linalg.norm(np.asarray(project(v)) - np.asarray(project(w)))
    assert moved <= np.linalg.norm(v - w) + 2e-6


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
@pytest.mark.parametrize("p", [1, 2, 10, 1_000])
def test_batches_equal_the_reference_row_by_row(
    shape: tuple[int, ...], p: int, rng: np.random.Generator
) -> None:
    v = rng.normal(size=(*shape, p)).astype(np.float32)
    expected = np.apply_along_axis(sorted_projection, -1, v)
    x = jax.jit(project)(v)
    assert x.shape == v.shape and x.dtype == jnp.float32
    np.testing.assert_allclose(x, expected, atol=3e-6)
    np.testing.assert_allclose(x, project(v), atol=1e-7)
    np.testing.assert_allclose(x.sum(-1), 1.0, atol=3e-6)


def test_vmap_over_vectors_and_radii_equals_a_loop(rng: np.random.Generator) -> None:
    v = rng.normal(size=(6, 5)).astype(np.float32)
    radii = jnp.linspace(0.1, 5, 6)
    batched = jax.vmap(lambda row, radius: project(row, radius=radius))(v, radii)
    for row, radius, x in zip(v, radii, batched, strict=True):
        np.testing.assert_allclose(x, sorted_projection(row, float(radius)), atol=2e-6)


def test_agrees_with_optax(rng: np.random.Generator) -> None:
    v = jnp.asarray(rng.normal(size=(50, 12)) * 3, jnp.float32)
    np.testing.assert_allclose(
        project(v), jax.vmap(optax.projections.projection_simplex)(v), atol=2e-6
    )


@pytest.mark.parametrize(
    ("v", "expected"),
    [
        ([1.6, 0.5], [1.0, 0.0]),  # an off-by-one in the active set gives a sum above 1
        ([5.0], [1.0]),
        ([0.3, 0.3, 0.3], [1 / 3, 1 / 3, 1 / 3]),
        ([2.0, 2.0, -9.0], [0.5, 0.5, 0.0]),
        ([0.2, 0.8], [0.2, 0.8]),
        ([1.0, 0.0], [1.0, 0.0]),
        ([3e38, -3e38, 3e38], [0.5, 0.0, 0.5]),
        ([1e-30, -1e-30], [0.5, 0.5]),
        ([1e8, 1e8 - 8.0], [1.0, 0.0]),
        ([-np.inf, 0.25, 0.25], [0.0, 0.5, 0.5]),
    ],
)
def test_known_vectors(v: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(project(jnp.array(v)), expected, rtol=1e-6)


def test_a_common_shift_changes_nothing_even_if_large() -> None:
    v = jnp.array([0.5, 0.25, -1.0])  # exact in float32 beside 2**20
    np.testing.assert_array_equal(project(v + 2.0**20), project(v))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_not_hidden_and_stays_in_its_vector(bad: float) -> None:
    x = project(jnp.array([[0.0, bad, 1.0], [0.0, 0.0, 1.0]]))
    assert jnp.isnan(x[0, 1])
    np.testing.assert_array_equal(x[1], [0.0, 0.0, 1.0])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_keeps_the_dtype(dtype: Any) -> None:
    x = project(jnp.array([0.1, 0.4, 0.9], dtype))
    assert x.dtype == dtype
    np.testing.assert_allclose(
        x.astype(jnp.float32).sum(), 1.0, atol=2 * float(jnp.finfo(dtype).eps)
    )


def test_integers_become_floats() -> None:
    np.testing.assert_array_equal(project(jnp.array([3, 0])), [1.0, 0.0])


def test_gradient_is_that_of_the_active_set(rng: np.random.Generator) -> None:
    v = jnp.array([0.9, 0.6, -2.0, 0.3])  # active: 0, 1, 3
    active = np.array([1.0, 1.0, 0.0, 1.0])
    expected = np.diag(active) - np.outer(active, active) / 3
    np.testing.assert_allclose(jax.jacfwd(project)(v), expected, atol=1e-6)
    np.testing.assert_allclose(jax.jacrev(project)(v), expected, atol=1e-6)

    batch = jnp.asarray(rng.normal(size=(4, 7)), jnp.float32)
    check_grads(
        lambda v, radius: project(v, radius=radius), (batch, 1.3), 1, eps=1e-3, atol=1e-2, rtol=1e-2
    )


def test_gradient_is_finite_beside_minus_infinity() -> None:
    gradient = jax.grad(lambda v: project(v)[0])(jnp.array([0.5, -jnp.inf, 0.25]))
    np.testing.assert_allclose(gradient, [0.5, 0.0, -0.5], atol=1e-6)


def test_projected_ascent_on_a_linear_function_finds_the_best_vertex() -> None:
    losses = jnp.array([0.3, 0.9, 0.8])

    def ascend(weights: jax.Array, _: None) -> tuple[jax.Array, None]:
        return project(weights + 0.1 * losses), None

    weights, _ = jax.lax.scan(ascend, jnp.full(3, 1 / 3), None, length=200)
    np.testing.assert_allclose(weights, [0.0, 1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "losses", "step_size", "expected"),
    [  # the expected values of FedJAX's tests of agnostic federated averaging
        (
            [0.1, 0.2, 0.3, 0.4],
            [10.0, 0.0, 5.0, 0.0],
            0.1,
            [0.198931, 0.14636526, 0.36197326, 0.2927305],
        ),
        (
            [0.2, 0.4, 0.1, 0.3],
            [1.0, 2.0, 3.0, 4.0],
            0.5,
            [0.08078121, 0.26637138, 0.10979304, 0.54305437],
        ),
    ],
)
def test_exponentiated_gradient_golden_values(
    weights: list[float], losses: list[float], step_size: float, expected: list[float]
) -> None:
    found = jax.jit(exponentiated_gradient)(jnp.array(weights), jnp.array(losses), step_size)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_exponentiated_gradient_of_huge_losses_and_zero_weights() -> None:
    found = exponentiated_gradient(jnp.array([0.5, 0.5, 0.0]), jnp.array([1e9, 1e9, 3e38]), 1.0)
    np.testing.assert_array_equal(found, [0.5, 0.5, 0.0])


@property_test
@given(vectors([1, 5]), st.floats(-2, 2, width=32), st.data())
def test_exponentiated_gradient_equals_the_plain_formula_in_batches(
    losses: np.ndarray, step_size: float, data: st.DataObject
) -> None:
    positive = st.floats(0.125, 1, width=32)
    weights = data.draw(hnp.arrays(np.float32, losses.shape, elements=positive))
    raw = weights.astype(np.float64) * np.exp(step_size * losses.astype(np.float64))
    found = exponentiated_gradient(
        jnp.stack([weights, weights]), jnp.stack([losses, losses]), step_size
    )
    np.testing.assert_allclose(found, np.stack([raw, raw]) / raw.sum(), rtol=2e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: project(jnp.zeros((3, 0))), ValueError, r"v must .* got shape \(3, 0\)"),
        (lambda: project(jnp.array(1.0)), ValueError, r"v must .* got shape \(\)"),
        (lambda: project(jnp.ones(2), radius=0.0), ValueError, "radius .* got 0.0"),
        (lambda: project(jnp.ones(2), radius=-1.0), ValueError, "radius .* got -1.0"),
        (
            lambda: exponentiated_gradient(jnp.ones(2), jnp.ones(3), 0.1),
            ValueError,
            r"same shape .* \(2,\) and \(3,\)",
        ),
        (lambda: exponentiated_gradient(jnp.ones(0), jnp.ones(0), 0.1), ValueError, "p >= 1"),
    ],
)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def solved(matrix: np.ndarray, vector: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """A quadratic program over the capped simplex by a general solver in float64."""
    from scipy import optimize

    found = optimize.minimize(
        lambda x: x @ matrix @ x / 2 - vector @ x,
        project_capped(np.zeros(len(vector)), low=low, high=high).astype(float),
        jac=lambda x: matrix @ x - vector,
        method="SLSQP",
        bounds=list(zip(low, high, strict=True)),
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return found.x


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**16), st.sampled_from([2, 5]))
def test_capped_projection_equals_a_general_solver(seed: int, p: int) -> None:
    rng = np.random.default_rng(seed)
    v = rng.normal(size=p)
    low, high = rng.uniform(0, 0.9 / p, p), rng.uniform(1.1 / p, 1.0, p)
    x = project_capped(v, low=low, high=high)
    np.testing.assert_allclose(x, solved(np.eye(p), v, low, high), atol=1e-5)
    assert float(x.sum()) == pytest.approx(1, abs=1e-6)
    assert (x >= np.float32(low)).all() and (x <= np.float32(high)).all()


def test_capped_projection_of_batches_and_without_caps(rng: np.random.Generator) -> None:
    v = rng.normal(size=(3, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(project_capped(v), project(v), atol=1e-6)
    rows = project_capped(v, low=0.05, high=0.3)
    one = jax.jit(lambda row, high: project_capped(row, low=0.05, high=high))
    for index in np.ndindex(3, 4):
        np.testing.assert_allclose(rows[index], one(v[index], 0.3), atol=1e-7)
    np.testing.assert_array_equal(project_capped(v, low=1 / 6, high=1 / 6), np.float32(1 / 6))
    check_grads(lambda u: project_capped(u, low=0.05, high=0.3), (v[0, 0],), 1, modes=["rev"])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**16), st.sampled_from([1, 3]))
def test_hull_projection_equals_a_general_solver(seed: int, q: int) -> None:
    rng = np.random.default_rng(seed)
    mixtures, v = rng.dirichlet(np.ones(4), q), rng.normal(size=4) / 2
    ends = (np.zeros(q), np.ones(q))
    expected = solved(mixtures @ mixtures.T, mixtures @ v, *ends) @ mixtures
    found = project_onto_hull(v, mixtures)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(project_onto_hull(found, mixtures), found, atol=1e-4)


def test_hull_of_the_corners_is_the_simplex(rng: np.random.Generator) -> None:
    v = rng.normal(size=(5, 3))
    np.testing.assert_allclose(project_onto_hull(v, np.eye(3)), project(v), atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**16), st.sampled_from([1.0, 0.35]))
def test_quadratic_program_equals_a_general_solver(seed: int, high: float) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(4, 3)) * 10.0 ** rng.integers(-2, 3)  # of rank 3: not strictly convex
    matrix, vector = rows @ rows.T, rows @ rng.normal(size=3)

    def value(x: np.ndarray) -> float:
        return x @ matrix @ x / 2 - vector @ x

    found = np.float64(quadratic_program(matrix, vector, high=high))
    best = value(solved(matrix, vector, np.zeros(4), np.full(4, high)))
    assert value(found) <= best + 1e-5 * np.abs(matrix).max()
    assert found.sum() == pytest.approx(1, abs=1e-6) and found.min() >= 0 and found.max() <= high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project_capped([1.0, 2.0], high=0.4), "room for a distribution.*sums 0 and 0.8"),
        (lambda: project_capped([1.0, 2.0], low=0.6), "room for a distribution"),
        (
            lambda: project_capped([1.0, 2.0], low=[0.5, 0.2], high=[0.4, 1]),
            r"low must be <= high, got low 0.5 and high 0.4 at 0",
        ),
        (lambda: project_capped([1.0, 2.0], low=[0.1]), r"low must be a number.*\(2\).*\(1,\)"),
        (lambda: project_capped(1.0), "v must have a non-empty last axis"),
        (lambda: project_onto_hull([1.0, 2.0], [[0.5, 0.4]]), r"mixtures\[0\] .* with sum 0.9"),
        (lambda: project_onto_hull([1.0, 2.0], [[1.0]]), r"mixtures must be \[q, p\]"),
        (lambda: quadratic_program(np.eye(3), np.ones(2)), r"\(3, 3\) and \(2,\)"),
        (lambda: quadratic_program(np.eye(2), np.ones(2), max_steps=0), "max_steps must be >= 1"),
    ],
)
def test_bad_sets_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

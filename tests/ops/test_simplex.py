import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

import compilation
import reference
from fedjax_sim.ops.simplex import (
    exponentiated_gradient,
    project,
    project_capped,
    project_onto_hull,
    quadratic_program,
)

EPS = float(np.finfo(np.float32).eps)

# For many examples: outside jit every call is traced anew.
compiled = jax.jit(project)
compiled_capped = jax.jit(project_capped)
compiled_gradient = jax.jit(exponentiated_gradient)
compiled_hull = jax.jit(project_onto_hull)
compiled_program = jax.jit(quadratic_program, static_argnames="high")


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


def capped_brute_force(v: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Solve for every way in which entries are at a bound or free, and keep the nearest point."""
    best, best_distance = np.full(len(v), np.nan), np.inf
    for kinds in itertools.product(["low", "high", "free"], repeat=len(v)):
        x = np.select([np.array(kinds) == "low", np.array(kinds) == "high"], [low, high], np.nan)
        free = np.isnan(x)
        if free.any():
            x[free] = v[free] - (v[free].sum() - (1 - x[~free].sum())) / free.sum()
        distance = ((x - v) ** 2).sum()
        inside = abs(x.sum() - 1) < 1e-9 and (x >= low - 1e-9).all() and (x <= high + 1e-9).all()
        if inside and distance < best_distance:
            best, best_distance = x, distance
    return best


def vectors(sizes: list[int], magnitude: float = 4.0) -> st.SearchStrategy[np.ndarray]:
    """float32 vectors, often with ties; of few sizes, because every size is compiled."""
    numbers = st.floats(-magnitude, magnitude, width=32) | st.sampled_from([0.0, 0.5, 1.0])
    return hnp.arrays(np.float32, st.sampled_from(sizes), elements=numbers)


def rounding(p: int, radius: float = 1.0) -> float:
    """How far an entry of `project` can be off.

    An entry that stays is at most the radius below the largest. Adding up n <= p of them makes n
    roundings (eps / 2) of at most n times the radius, of which theta is the n-th part. To get there
    and from there to the entry takes less than n more.
    """
    return p * radius * EPS


def program_tolerance(p: int, curvature: float, slope: float) -> float:
    """How far `quadratic_program` can end above the minimum.

    curvature: the largest sum of a row of |matrix|; its inverse is the step size.
    slope: the largest entry of |vector|.

    It stops when a step moves no entry by more than 4 eps; then the gradient, there or one step
    before, falls by at most curvature * 4 eps per unit on the way to any point, which is at most 2
    away: twice 8 eps. The gradient is rounded 2 + p times (eps / 2), at points not beyond 3; so is
    the point, for which `rounding` stands.
    """
    stop = 2 * 8 * EPS * curvature
    rounded = 2 * (2 + p) * EPS / 2 * (3 * curvature + slope)
    return stop + rounded + 2 * rounding(p) * curvature


def property_test(function: Callable[..., None]) -> Callable[..., None]:
    return settings(deadline=None, max_examples=150)(function)


@property_test
@given(vectors([1, 2, 3, 6]), st.sampled_from([0.25, 1.0, 3.0]))
def test_equals_a_brute_force_quadratic_program(v: np.ndarray, radius: float) -> None:
    np.testing.assert_allclose(
        compiled(v, radius=radius),
        brute_force_projection(v, radius),
        rtol=0,
        atol=rounding(len(v), radius),
    )


@property_test
@given(vectors([1, 2, 7, 40], magnitude=1e3))
def test_laws(v: np.ndarray) -> None:
    p = len(v)
    x = np.asarray(compiled(v))
    assert (x >= 0).all()
    assert x.sum(dtype=float) == pytest.approx(1, abs=p * rounding(p))
    np.testing.assert_allclose(x, sorted_projection(v), rtol=0, atol=rounding(p))
    # Idempotent and permutation equivariant, where both sides are rounded.
    np.testing.assert_allclose(compiled(x), x, rtol=0, atol=2 * rounding(p))
    order = np.random.default_rng(0).permutation(p)
    np.testing.assert_allclose(compiled(v[order]), x[order], rtol=0, atol=2 * rounding(p))


@property_test
@given(vectors([2, 8]), st.data())
def test_never_moves_two_points_apart(v: np.ndarray, data: st.DataObject) -> None:
    w = data.draw(hnp.arrays(np.float32, v.shape, elements=st.floats(-4, 4, width=32)))
    moved = np.linalg.norm(np.float64(compiled(v)) - np.float64(compiled(w)))
    # Each of the two is off by an entry's rounding in every entry.
    apart = np.linalg.norm(np.float64(v) - np.float64(w))
    assert moved <= apart + 2 * np.sqrt(len(v)) * rounding(len(v))


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
@pytest.mark.parametrize("p", [1, 2, 10, 1_000])
def test_batches_equal_the_reference_row_by_row(
    shape: tuple[int, ...], p: int, rng: np.random.Generator
) -> None:
    v = rng.normal(size=(*shape, p)).astype(np.float32)
    expected = np.apply_along_axis(sorted_projection, -1, v)
    x = compiled(v)
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
        compiled(v), jax.jit(jax.vmap(optax.projections.projection_simplex))(v), atol=2e-6
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
    np.testing.assert_allclose(jax.jit(jax.jacfwd(project))(v), expected, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.jacrev(project))(v), expected, atol=1e-6)

    batch = jnp.asarray(rng.normal(size=(4, 7)), jnp.float32)
    check_grads(
        lambda v, radius: compiled(v, radius=radius),
        (batch, 1.3),
        order=1,
        eps=1e-3,
        atol=1e-2,
        rtol=1e-2,
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
    found = compiled_gradient(jnp.array(weights), jnp.array(losses), step_size)
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
    found = compiled_gradient(np.stack([weights, weights]), np.stack([losses, losses]), step_size)
    # |log w| <= log 8 and |step * loss| <= 8, so exponents of up to 10.1 are rounded twice, their
    # differences of up to 20.2 once; exp makes that relative, in the numerator and in the sum.
    # Functions and sums themselves are exact to a few units.
    np.testing.assert_allclose(found, np.stack([raw, raw]) / raw.sum(), rtol=(41 + 9) * EPS)


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


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**16), st.sampled_from([2, 5]), st.sampled_from([1.0, 30.0, 1e4]))
@example(0, 5, 1e4)  # bounds far from the largest entry: the sum must not suffer
def test_capped_projection_equals_brute_force(seed: int, p: int, magnitude: float) -> None:
    rng = np.random.default_rng(seed)
    v = np.float32(magnitude * rng.normal(size=p))
    low, high = np.float32(rng.uniform(0, 0.9 / p, p)), np.float32(rng.uniform(1.1 / p, 1.0, p))
    x = np.float64(compiled_capped(v, low=low, high=high))
    expected = capped_brute_force(*(np.float64(each) for each in (v, low, high)))
    # Entries are measured from the largest, which rounds what is far from it.
    far = EPS / 2 * np.ptp(v)
    np.testing.assert_allclose(x, expected, rtol=0, atol=rounding(p) + 2 * far)
    # That moves the whole point, but not its sum.
    assert x.sum() == pytest.approx(1, abs=p * rounding(p))
    assert (x >= low).all() and (x <= high).all()


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
def test_hull_projection_is_the_nearest_point(seed: int, q: int) -> None:
    from scipy import optimize

    rng = np.random.default_rng(seed)
    mixtures = np.float64(np.float32(rng.dirichlet(np.ones(4), q)))
    v = np.float64(np.float32(rng.normal(size=4) / 2))
    found = np.float64(compiled_hull(v, mixtures))
    # In the hull but for the rounding of q weights that sum to 1, and of q products.
    rows = np.concatenate([mixtures.T, np.ones((1, q))])
    assert optimize.nnls(rows, np.append(found, 1))[1] <= 4 * q * EPS

    # Nearest: no mixture lies on the near side. As in `program_tolerance`, where the row sums of
    # the matrix are at most q times this; 4 products add up to every entry of matrix and vector.
    spread = np.linalg.norm(mixtures - mixtures.mean(axis=0), axis=1).max()
    far = np.linalg.norm(v - mixtures, axis=1).max()
    tolerance = (program_tolerance(q, spread**2, spread * far) + 4 * EPS * spread * far) * q
    tolerance += 2 * q * EPS * (far + spread)  # the sum of q mixtures is rounded
    assert ((v - found) @ (mixtures - found).T).max() <= tolerance
    # Half the square of the distance to the nearest point is no more than that.
    again = np.float64(compiled_hull(found, mixtures))
    assert np.linalg.norm(again - found) <= np.sqrt(2 * tolerance)


def nearest_in_hull(v: np.ndarray, mixtures: np.ndarray) -> np.ndarray:
    """Solve on every face of the hull in float64, and keep the nearest point that lies on its face.

    A least-squares problem a face: what `quadprog` finds as well, to 1e-12.
    """
    best, least = mixtures[0], np.inf
    for size in range(1, len(mixtures) + 1):
        for face in itertools.combinations(range(len(mixtures)), size):
            base, *others = mixtures[list(face)]
            edges = np.reshape(others, (size - 1, len(v))) - base
            part = np.linalg.lstsq(edges.T, v - base, rcond=None)[0]
            weights = np.append(1 - part.sum(), part)
            point = weights @ mixtures[list(face)]
            distance = np.linalg.norm(point - v)
            if weights.min() >= -1e-12 and distance < least:
                best, least = point, distance
    return best


@pytest.mark.parametrize(("flat", "nearest", "distance"), [(False, 1e-5, 2e-6), (True, 1e-3, 1e-4)])
def test_hull_projection_of_mixtures_that_almost_coincide(
    flat: bool, nearest: float, distance: float
) -> None:
    """Two mixtures 1e-5 to 1 times as far apart as others, or a third as near to their line."""
    rng = np.random.default_rng(0)
    hulls = jax.jit(jax.vmap(project_onto_hull))
    mixtures = rng.dirichlet(np.ones(4), (60, 4))
    between = 0.4 * mixtures[:, 2] + 0.6 * mixtures[:, 3] if flat else mixtures[:, 0]
    apart = 10.0 ** -rng.uniform(0, 5, (60, 1))
    mixtures[:, 1] = between + apart * (mixtures[:, 1] - between)
    mixtures = np.float64(np.float32(mixtures))
    v = np.float64(np.float32(rng.normal(size=(60, 4)) / 2))
    v[::2] = mixtures[::2, 1] + v[::2] / 3
    v = np.float64(np.float32(v))
    for x, point, rows in zip(np.float64(hulls(v, mixtures)), v, mixtures, strict=True):
        expected = nearest_in_hull(point, rows)
        assert np.linalg.norm(x - expected) <= nearest
        assert np.linalg.norm(x - point) - np.linalg.norm(expected - point) <= distance


def test_hull_of_the_corners_is_the_simplex(rng: np.random.Generator) -> None:
    v = rng.normal(size=(5, 3))
    np.testing.assert_allclose(compiled_hull(v, np.eye(3)), compiled(v), atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**16), st.sampled_from([1.0, 0.35]))
@example(205, 0.35)  # the vector is 50 times as large as the matrix
@example(628, 0.35)  # a general solver leaves the simplex by 6e-5 to get lower
def test_quadratic_program_ends_at_a_minimum(seed: int, high: float) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(4, 3)) * 10.0 ** rng.integers(-2, 3)  # of rank 3: not strictly convex
    matrix, vector = rows @ rows.T, rows @ rng.normal(size=3)
    found = np.float64(compiled_program(matrix, vector, high=high))
    assert found.sum() == pytest.approx(1, abs=4 * rounding(4))
    assert found.min() >= 0 and found.max() <= high
    gap = reference.optimality_gap(matrix @ found - vector, found, np.zeros(4), np.full(4, high))
    size = np.abs(matrix).sum(axis=1).max(), np.abs(vector).max()
    assert gap <= program_tolerance(4, *size)


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


@pytest.mark.parametrize(
    "solve",
    [
        project,
        lambda v: project_capped(v, low=np.zeros(13, np.float32), high=np.ones(13, np.float32)),
        lambda v: exponentiated_gradient(jnp.abs(v) / jnp.abs(v).sum(), v, 0.1),
    ],
    ids=["project", "project_capped", "exponentiated_gradient"],
)
def test_a_shape_is_compiled_once_outside_jit(solve: Callable) -> None:
    v, other = (jnp.asarray(np.arange(start, start + 13), jnp.float32) for start in (1, 2))
    solve(v)
    with compilation.counted() as programs:
        solve(other)
    assert programs == []

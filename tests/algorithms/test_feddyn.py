"""FedDyn against a NumPy float64 twin, and what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs

ALPHA, RATE, STEPS, ROUNDS = 0.3, 0.2, 3, 6
SIZES = (5, 2, 9, 12, 7, 1)
KEY = jax.random.key(8)


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [M, 3], y [M], owners [M]: clients are unlike each other."""
    rng = np.random.default_rng(4)
    owners = np.repeat(np.arange(len(SIZES)), SIZES)
    x = rng.normal(size=(len(owners), 3)) + owners[:, None] / 3
    y = np.where(rng.random(len(owners)) < 0.3, rng.integers(0, 3, len(owners)), owners % 3)
    return x, y, owners


def federated() -> fs.FederatedData:
    x, y, owners = problem()
    return fs.federate({"x": x, "y": y}, [np.flatnonzero(owners == k) for k in range(len(SIZES))])


def gradient(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the mean cross-entropy of softmax regression; w [4, 3] holds the bias in its last row."""
    inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    scores = np.exp(inputs @ w - (inputs @ w).max(axis=1, keepdims=True))
    shares = scores / scores.sum(axis=1, keepdims=True)
    return inputs.T @ (shares - np.eye(3)[y]) / len(x)


def twin(cohorts: list[np.ndarray], w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The paper's algorithm 1 on full batches: the model after every round, and g_k at the end."""
    x, y, owners = problem()
    dual, drift, path = np.zeros((len(SIZES), *w.shape)), np.zeros_like(w), []
    for cohort in cohorts:
        ends = []
        for k in cohort:
            v, own = w.copy(), owners == k
            for _ in range(STEPS):
                v -= RATE * (gradient(v, x[own], y[own]) - dual[k] + ALPHA * (v - w))
            dual[k] -= ALPHA * (v - w)
            ends.append(v)
        drift -= ALPHA / len(SIZES) * sum(v - w for v in ends)
        w = np.mean(ends, axis=0) - drift / ALPHA
        path.append(w)
    return np.array(path), dual


def together(params: dict[str, np.ndarray]) -> np.ndarray:
    """Kernel and bias as the rows of one matrix, of any number of leading axes."""
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    return np.concatenate([kernel, bias[..., None, :]], axis=-2)


def feddyn(sampler: fs.Sampler, **options: object) -> fs.Algorithm:
    return fs.algorithms.feddyn(
        fs.models.logistic(3),
        alpha=ALPHA,
        client_optimizer=optax.sgd(RATE),
        batching=fs.Batching(None, num_steps=STEPS, shuffle="none"),
        sampler=sampler,
        **options,
    )


@pytest.mark.parametrize("cohort_size", [4, 6])
def test_it_equals_the_float64_twin(cohort_size):
    data = federated()
    params = {"kernel": jnp.full((3, 3), 0.1), "bias": jnp.zeros(3)}
    algorithm, path, cohorts = feddyn(fs.sampling.uniform(cohort_size), width=2), [], []
    step, state = jax.jit(algorithm.step), algorithm.init(KEY, params, data)
    for r in range(ROUNDS):
        state, info = step(jax.random.fold_in(KEY, r), state, data)
        path.append(together(algorithm.params(state)))
        cohorts.append(np.asarray(info.cohort.ids))
    expected, dual = twin(cohorts, together(params))
    np.testing.assert_allclose(np.array(path), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together(state.clients), dual, rtol=1e-5, atol=1e-6)


def test_it_reaches_the_optimum_where_fedavg_stalls():
    """On quadratics whose curvatures differ; the optimum is that of the summed losses."""
    rng = np.random.default_rng(0)
    centres, curvature = rng.normal(size=(5, 2)), np.array([0.2, 0.5, 1.0, 2.0, 3.0])
    optimum = (curvature[:, None] * centres).sum(0) / curvature.sum()
    examples = {"x": curvature[:, None], "y": centres}

    def loss(outputs: jax.Array, labels: jax.Array) -> fs.Mean:
        parts = outputs[:, :1] * (outputs[:, 1:] - labels) ** 2 / 2
        return fs.Mean(parts.sum(axis=1), jnp.ones(len(labels)))

    model = fs.models.from_functions(
        lambda key: jnp.zeros(2),
        lambda w, x: jnp.concatenate([x, jnp.broadcast_to(w, (len(x), 2))], axis=1),
    )
    data = fs.federate(examples, [np.array([k]) for k in range(5)])
    shared = {"client_optimizer": optax.sgd(0.1), "batching": fs.Batching(None, num_steps=20)}
    ends = [
        fs.run(algorithm, jnp.zeros(2), data, key=KEY, num_rounds=300).params
        for algorithm in (
            fs.algorithms.feddyn(model, alpha=0.5, loss=loss, width=5, **shared),
            fs.algorithms.fedavg(model, loss=loss, width=5, **shared),
        )
    ]
    distances = [np.linalg.norm(end - optimum) for end in ends]
    assert distances[0] < 1e-4
    assert distances[1] > 0.1


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(ValueError, match="alpha must lie in"):
        fs.algorithms.feddyn(
            fs.models.logistic(3),
            alpha=alpha,
            client_optimizer=optax.sgd(0.1),
            batching=fs.Batching(2),
        )

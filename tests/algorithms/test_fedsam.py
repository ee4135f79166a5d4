"""FedSAM against its float64 twin, and where it ends between a sharp and a flat minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference
import reference_opt as twin
from fedjax_sim import algorithms
from small_task import BATCH, COHORT, MODEL, SIZES, SOME, assert_model, people, point, trajectory

RATE, RHO = 0.3, 0.5


def fedsam(rho, adaptivity=None):
    return algorithms.fedsam(
        MODEL, rho=rho, adaptivity=adaptivity, client_optimizer=optax.sgd(RATE), **SOME
    )


@pytest.mark.parametrize("adaptivity", [None, 0.2])
def test_it_equals_the_float64_twin(adaptivity):
    given = {} if adaptivity is None else {"adaptivity": adaptivity}

    def worst(w: twin.Params, batch: twin.Batch) -> twin.Params:
        scales = [np.abs(v) + adaptivity if adaptivity else np.ones_like(v) for v in w]
        scaled = [t * g for t, g in zip(scales, twin.gradient(w, batch), strict=True)]
        length = twin.square(scaled) ** 0.5
        ascent = [t * g * RHO / length for t, g in zip(scales, scaled, strict=True)]
        return twin.gradient(twin.mix((1.0, w), (1.0, ascent)), batch)

    clients, w = people(), point()
    for key, _, state in trajectory(fedsam, rho=RHO, **given):
        cohort = reference.uniform_cohort(key, len(SIZES), COHORT)
        ends = [twin.descend(w, twin.batches(key, clients, k, BATCH), RATE, worst) for k in cohort]
        w = twin.mean(ends, [SIZES[k] for k in cohort])
        assert_model(state.server.params, w)


def test_radius_0_is_fedavg_and_reports_its_loss():
    def fedavg():
        return algorithms.fedavg(MODEL, client_optimizer=optax.sgd(RATE), **SOME)

    for (_, one, a), (_, other, b) in zip(
        trajectory(fedsam, rho=0.0), trajectory(fedavg), strict=True
    ):
        for x, y in ((a.server.params, b.server.params), (one.cohort.loss, other.cohort.loss)):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), x, y)


def test_it_walks_along_the_minima_to_the_flattest():
    """All (u, v) with u v = 1 fit; the curvature, u^2 + v^2, is least at (1, 1)."""
    model = fs.models.from_functions(lambda key: jnp.zeros(2), lambda w, x: w[0] * w[1] * x[:, 0])
    x = np.array([0.6, 1.0, 1.3])
    data = fs.federate({"x": x[:, None], "y": x}, [np.array([k]) for k in range(3)])
    shared = {
        "client_optimizer": optax.sgd(0.05),
        "batching": fs.Batching(None, num_steps=20),
        "loss": lambda outputs, labels: (outputs - labels) ** 2 / 2,
    }
    start = jnp.array([3.0, 0.3])
    ends = [
        np.asarray(fs.run(algorithm, start, data, key=jax.random.key(0), num_rounds=300).params)
        for algorithm in (
            algorithms.fedavg(model, **shared),
            algorithms.fedsam(model, rho=0.2, **shared),
        )
    ]
    np.testing.assert_allclose([end.prod() for end in ends], 1, atol=0.02)
    assert (ends[0] ** 2).sum() > 8.5
    assert (ends[1] ** 2).sum() < 2.05


@pytest.mark.parametrize(("name", "value"), [("rho", -0.1), ("adaptivity", -1.0)])
def test_bad_values_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must lie in"):
        fedsam(**({"rho": 0.1} | {name: value}))

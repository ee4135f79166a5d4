"""FedLC against its float64 twin, and what it does for labels that a client lacks."""

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference
import reference_opt as twin
from fedjax_sim import algorithms
from small_task import (
    BATCH,
    CLASSES,
    COHORT,
    MODEL,
    SIZES,
    SOME,
    assert_model,
    params,
    people,
    point,
    trajectory,
)

RATE = 0.3


def fedlc(temperature):
    return algorithms.fedlc(
        MODEL, temperature=temperature, client_optimizer=optax.sgd(RATE), **SOME
    )


def fedavg():
    return algorithms.fedavg(MODEL, client_optimizer=optax.sgd(RATE), **SOME)


def test_it_equals_the_float64_twin():
    clients, w = people(), point()
    counts = [np.bincount(labels, minlength=CLASSES) for _, labels in clients]
    assert min(count.min() for count in counts) == 0  # somebody lacks a label
    for key, info, state in trajectory(fedlc, temperature=0.7):
        cohort = reference.uniform_cohort(key, len(SIZES), COHORT)
        ends = []
        for k in cohort:
            margins = 0.7 * np.maximum(counts[k], 1e-8) ** -0.25

            def calibrated(v: twin.Params, b: twin.Batch, margins=margins) -> twin.Params:
                return twin.gradient([v[0], v[1] - margins], b)

            ends.append(twin.descend(w, twin.batches(key, clients, k, BATCH), RATE, calibrated))
        w = twin.mean(ends, [SIZES[k] for k in cohort])
        assert_model(state.server.params, w)
        assert info.bytes_down == COHORT * 4 * sum(part.size for part in w)


def test_temperature_0_is_fedavg():
    for (_, one, a), (_, other, b) in zip(
        trajectory(fedlc, temperature=0.0), trajectory(fedavg), strict=True
    ):
        jax.tree.map(np.testing.assert_array_equal, a.server.params, b.server.params)
        assert one.bytes_down == other.bytes_down


def test_labels_that_a_client_lacks_are_not_pushed_down():
    """The paper's point: FedAvg lowers their outputs in every local step, FedLC in none."""
    x = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    data = fs.federate({"x": x, "y": np.array([0, 1, 1, 0, 1, 1])}, [np.arange(6)])
    shared = {"client_optimizer": optax.sgd(RATE), "batching": fs.Batching(2, num_epochs=2)}
    moved = []
    for algorithm in (
        algorithms.fedavg(MODEL, **shared),
        algorithms.fedlc(MODEL, temperature=1.0, **shared),
    ):
        after = fs.run(algorithm, params(), data, key=jax.random.key(0), num_rounds=2).params
        moved.append(np.asarray(after["bias"] - params()["bias"]))
    assert moved[0][2] < -0.05
    assert moved[1][2] == 0 and abs(moved[1][:2]).min() > 0.05


def test_a_negative_temperature_is_refused():
    with pytest.raises(ValueError, match=r"temperature must lie in \[0, inf\), got -1"):
        fedlc(-1.0)


def test_labels_must_be_classes():
    data = fs.federate({"x": np.ones((4, 3)), "y": np.ones(4)}, [np.arange(4)])
    algorithm = algorithms.fedlc(
        MODEL,
        temperature=1.0,
        client_optimizer=optax.sgd(RATE),
        batching=fs.Batching(2),
        loss=lambda outputs, labels: (outputs[:, 0] - labels) ** 2,
    )
    with pytest.raises(
        ValueError, match=r"fedlc needs labels \[M\] of integers.* got float32\[4\]"
    ):
        algorithm.init(jax.random.key(0), params(), data)

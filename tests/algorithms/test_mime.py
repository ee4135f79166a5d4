"""Mime and MimeLite against float64 twins, and what they promise."""

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference
import reference_opt as twin
from fedjax_sim import aggregators, algorithms
from small_task import BATCH, COHORT, MODEL, SIZES, SOME, assert_model, people, point, trajectory

RATE = 0.2
OPTIMIZERS = {
    "sgd": optax.sgd(RATE),
    "momentum": optax.sgd(RATE, momentum=0.8),
    "adam": optax.adam(RATE, b1=0.8, b2=0.9, eps=0.1),
}


def plain(gradient: twin.Params, state: tuple) -> tuple[twin.Params, tuple]:
    return twin.mix((-RATE, gradient)), state


def momentum(gradient: twin.Params, state: tuple) -> tuple[twin.Params, tuple]:
    trace = twin.mix((0.8, state[0]), (1.0, gradient)) if state else gradient
    return twin.mix((-RATE, trace)), (trace,)


def adam(gradient: twin.Params, state: tuple) -> tuple[twin.Params, tuple]:
    zero = twin.mix((0.0, gradient))
    first, second, count = state or (zero, zero, 0)
    first = twin.mix((0.8, first), (0.2, gradient))
    second = twin.mix((0.9, second), (0.1, [g**2 for g in gradient]))
    count += 1
    steps = [
        -RATE * (m / (1 - 0.8**count)) / (np.sqrt(v / (1 - 0.9**count)) + 0.1)
        for m, v in zip(first, second, strict=True)
    ]
    return steps, (first, second, count)


TWINS = {"sgd": plain, "momentum": momentum, "adam": adam}


def make(name: str, kind: str):
    return getattr(algorithms, name)(MODEL, client_optimizer=OPTIMIZERS[kind], **SOME)


MAKERS = {
    (name, kind): (lambda n=name, k=kind: make(n, k))
    for name in ("mime", "mimelite")
    for kind in TWINS
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mime", "sgd"), ("mime", "momentum"), ("mime", "adam"), ("mimelite", "momentum")],
)
def test_they_equal_their_float64_twins(name, kind):
    clients, w, statistics, use = people(), point(), (), TWINS[kind]
    for key, info, state in trajectory(MAKERS[name, kind], 4):
        cohort = reference.uniform_cohort(key, len(SIZES), COHORT)
        c = twin.mean([twin.gradient(w, clients[k]) for k in cohort])
        ends = []
        for k in cohort:
            v = w
            for batch in twin.batches(key, clients, k, BATCH):
                g = twin.gradient(v, batch)
                if name == "mime":
                    g = twin.mix((1.0, g), (-1.0, twin.gradient(w, batch)), (1.0, c))
                v = twin.mix((1.0, v), (1.0, use(g, statistics)[0]))
            ends.append(v)
        statistics = use(c, statistics)[1]
        w = twin.mean(ends)
        assert_model(state.server.params, w, atol=5e-5)
        size = 4 * sum(part.size for part in w)
        kept = {"sgd": 0, "momentum": 1, "adam": 2}[kind] * size + 4 * (kind == "adam")
        models_down = 2 if name == "mime" else 1
        assert info.bytes_down == COHORT * (models_down * size + kept)
        assert info.bytes_up == COHORT * 2 * size


def test_mimelite_with_sgd_is_fedavg_of_equal_clients():
    def fedavg():
        return algorithms.fedavg(
            MODEL, client_optimizer=optax.sgd(RATE), aggregator=aggregators.uniform_mean(), **SOME
        )

    pairs = zip(trajectory(MAKERS["mimelite", "sgd"]), trajectory(fedavg), strict=True)
    for (*_, a), (*_, b) in pairs:
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
            a.server.params,
            b.server.params,
        )


def test_mime_reaches_the_optimum_where_fedavg_stalls():
    model, _, loss = twin.quadratics()
    shared = {"batching": fs.Batching(None, num_steps=8), "loss": loss}
    for optimizer in (optax.sgd(0.1), optax.sgd(0.05, momentum=0.5)):
        found, _ = twin.rounds(algorithms.mime(model, client_optimizer=optimizer, **shared), 150)
        assert np.linalg.norm(found[-1] - twin.OPTIMUM) < 1e-5
    lite, _ = twin.rounds(
        algorithms.mimelite(model, client_optimizer=optax.sgd(0.1), **shared), 150
    )
    np.testing.assert_allclose(lite[-1], twin.drifted(0.1, 8), atol=1e-5)
    assert np.linalg.norm(lite[-1] - twin.OPTIMUM) > 0.1

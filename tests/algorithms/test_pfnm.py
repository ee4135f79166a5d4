"""PFNM over rounds against NumPy: local training, matching, and the sub-networks sent back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference_matching as reference
from fedjax_sim import algorithms, matching, models, simulate
from fedjax_sim.algorithms._class_counts import class_counts
from fedjax_sim.base import Cohort, Status
from fedjax_sim.data import Batching, federate
from fedjax_sim.servers import sampling

CLIENT, WIDE = models.mlp(3, hidden=(5, 4)), models.mlp(3, hidden=(14, 11))
SMALL, BUDGET = models.mlp(3, hidden=(4,)), models.mlp(3, hidden=(11,))
SIZES = (20, 35, 15, 30)
PRIOR = matching.Prior(0.3, 2.0, 1.5)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(sum(SIZES), 6)).astype(np.float32)
    y = (x[:, :3] + 0.3 * rng.normal(size=(len(x), 3))).argmax(axis=1)
    return federate({"x": x, "y": y}, np.split(np.arange(len(x)), np.cumsum(SIZES)[:-1]))


def wide(model=WIDE):
    return model.init(jax.random.key(0), np.zeros((1, 6)))


def pfnm(model=CLIENT, **options):
    batching = Batching(batch_size=None, num_steps=2)
    options = {"client_optimizer": optax.sgd(0.3), "batching": batching, "prior": PRIOR} | options
    return algorithms.pfnm(model, **options)


def host(layers, client=None):
    """Layers in float64, of one client if they are stacked."""
    pick = (lambda x: x) if client is None else (lambda x: x[client])
    return [tuple(pick(np.asarray(x, np.float64)) for x in layer) for layer in layers]


def test_rounds_are_the_numpy_reference(data, key):
    """Without random passes: the first round is one-shot PFNM, the second starts from there."""
    algorithm = pfnm(pull=0.5, num_passes=0, prior=PRIOR._replace(popularity_cap=None))
    run = simulate.run(algorithm, wide(), data, key=key, num_rounds=2)
    begun = matching.layers_of(algorithm.init(key, wide(), data).server.networks)
    examples = [data.client(j) for j in range(4)]
    counts = np.array([np.bincount(each["y"], minlength=3) for each in examples])
    networks, slots, pull = [host(begun, j) for j in range(4)], None, 0.0
    for _ in range(2):
        networks = [
            reference.descend(network, each["x"], each["y"], 0.3, 2, pull)
            for network, each in zip(networks, examples, strict=True)
        ]
        orders = [np.arange(4)] * 2 if slots is not None else [np.array([], int)] * 2
        merged, slots = reference.pfnm(
            networks,
            counts,
            orders=orders,
            start=slots,
            cap=np.inf,
            sigma=PRIOR.sigma,
            sigma0=PRIOR.sigma0,
            gamma=PRIOR.gamma,
        )
        pull = 0.5
        sent, networks = (
            networks,
            [reference.sub_network(merged, [each[j] for each in slots]) for j in range(4)],
        )
    state = run.state.server
    assert run.info.server["num_neurons"][1].tolist() == [w.shape[1] for w, _ in merged[:-1]]
    assert not run.info.server["full"].any()
    for j in range(4):
        mine = matching.sub_network(
            matching.layers_of(state.params), [each[j] for each in state.assignments]
        )
        for ours, theirs in ((mine, networks[j]), (begun_of(state, j), sent[j])):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), host(ours), theirs
            )


def begun_of(state, client):
    return host(matching.layers_of(state.networks), client)


def test_bytes_and_clients_who_have_not_sent(data, key):
    """Half of the clients in a round: who comes first brings a network and gets none."""
    algorithm = pfnm(SMALL, sampler=sampling.uniform(2))
    run = simulate.run(algorithm, wide(BUDGET), data, key=key, num_rounds=5)
    network = 4 * (6 * 4 + 4 + 4 * 3 + 3)
    known: set[int] = set()
    for r, ids in enumerate(run.info.cohort.ids.tolist()):
        assert run.info.bytes_down[r] == network * len(known & set(ids))
        assert run.info.bytes_up[r] == 2 * (network + 4 * 3)
        known |= set(ids)
    state = run.state.server
    assert set(np.flatnonzero(state.sent).tolist()) == known
    assert state.class_counts.sum(axis=1)[state.sent].tolist() == [SIZES[j] for j in sorted(known)]
    (slots,) = state.assignments
    assert ((np.asarray(slots) < 11).all(axis=1) == np.asarray(state.sent)).all()


def test_a_client_that_diverges_is_left_out(data, key):
    """In the first round it never enters; the others are as if it were not there."""
    broken = {name: np.array(x) for name, x in data.examples.items()}
    broken["x"][SIZES[0] : SIZES[0] + SIZES[1]] *= 1e38  # finite, but no gradient of it is
    parts = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    run = simulate.run(
        *(pfnm(SMALL), wide(BUDGET), federate(broken, parts)),
        key=key,
        num_rounds=2,
        on_error="continue",
    )
    assert (run.info.status == Status.NON_FINITE_UPDATE).all()
    assert run.state.server.sent.tolist() == [True, False, True, True]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.state.server))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (wide(models.mlp(3, hidden=(14, 3))), r"got \[14, 3\] for clients of \[5, 4\]"),
        (wide(models.mlp(3, hidden=(14,))), r"layers of \[14, 3\] for clients of \[5, 4, 3\]"),
        (wide(models.mlp(2, hidden=(14, 11))), r"as many outputs"),
        ({"kernel": np.ones((6, 3))}, "of the form of models.mlp"),
    ],
)
def test_params_must_hold_the_clients(params, message, data, key):
    with pytest.raises(ValueError, match=message):
        pfnm().init(key, params, data)


def test_labels_that_do_not_count_are_no_class_of_another_client():
    y = np.array([-1, 0, 2, 2, -1, 1])
    data = federate({"x": np.zeros((6, 1)), "y": y}, np.split(np.arange(6), 2), ignore_label=-1)
    cohort = Cohort(jnp.array([1, 0, 2]), jnp.array([True, True, False]))
    assert class_counts(cohort, data, 3).tolist() == [[0, 1, 1], [1, 0, 1], [0, 0, 0]]

"""The engine against its NumPy twin, and the laws it promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
from fedjax_sim import aggregators, algorithms, clients, engine, metrics, models, simulate
from fedjax_sim.base import Aggregator, Cohort, Model, Sampler, Server, Status
from fedjax_sim.data import Batching, federate
from fedjax_sim.engine import local_work
from fedjax_sim.ops import devices, trees
from fedjax_sim.servers import sampling

SIZES = [1, 7, 20, 33, 5, 60, 12, 2, 41, 19]
FEATURES, CLASSES = 6, 3


@functools.cache
def population(sizes: tuple[int, ...] = tuple(SIZES)):
    rng = np.random.default_rng(3)
    total = sum(sizes)
    x = rng.normal(size=(total, FEATURES)).astype(np.float32)
    y = rng.integers(0, CLASSES, total)
    parts = np.split(rng.permutation(total), np.cumsum(sizes)[:-1])
    clients = [(x[rows].astype(np.float64), y[rows]) for rows in parts]
    return federate({"x": x, "y": y}, parts, num_classes=CLASSES), clients


MODEL = models.logistic(CLASSES)


def initial(key):
    return MODEL.init(key, jnp.zeros((1, FEATURES)))


def make(width=1, cohort_size=4, learning_rate=0.3, **options):
    return algorithms.fedavg(
        MODEL,
        client_optimizer=optax.sgd(learning_rate),
        batching=options.pop("batching", Batching(8, num_epochs=2)),
        sampler=options.pop("sampler", sampling.uniform(cohort_size)),
        width=width,
        **options,
    )


@pytest.mark.parametrize("width", [1, 2, 3, 4, "auto"])
def test_fedavg_equals_the_float64_reference(key, width):
    """Five rounds, ragged clients, partial cohorts: 1e-5."""
    data, people = population()
    algorithm = make(width)
    state = algorithm.init(key, initial(key), data)
    w, b = np.zeros((FEATURES, CLASSES)), np.zeros(CLASSES)
    step = jax.jit(algorithm.step)
    for r in range(5):
        round_key = jax.random.fold_in(key, r)
        state, info = step(round_key, state, data)
        w, b, cohort = reference.fedavg_round(
            round_key, w, b, people, cohort_size=4, batch_size=8, num_epochs=2, learning_rate=0.3
        )
        assert info.cohort.ids.tolist() == cohort
        assert info.cohort.weights.tolist() == [SIZES[k] for k in cohort]
        assert info.cohort.num_steps.tolist() == [2 * -(-SIZES[k] // 8) for k in cohort]
    np.testing.assert_allclose(algorithm.params(state)["kernel"], w, atol=1e-5)
    np.testing.assert_allclose(algorithm.params(state)["bias"], b, atol=1e-5)
    assert np.abs(w).max() > 0.1  # something was learned, or the comparison says nothing


@pytest.mark.parametrize("width", [1, 3, 4])
def test_scaffold_equals_the_float64_reference(key, width):
    """Client state is read and replaced in every chunk, over rounds with partial cohorts."""
    data, people = population()
    algorithm = algorithms.scaffold(
        MODEL,
        client_learning_rate=0.2,
        batching=Batching(8),
        sampler=sampling.uniform(4),
        width=width,
    )
    state = algorithm.init(key, initial(key), data)
    w, b = np.zeros((FEATURES, CLASSES)), np.zeros(CLASSES)
    control = (np.zeros_like(w), np.zeros_like(b))
    controls = [control] * len(people)
    step = jax.jit(algorithm.step)
    for r in range(6):
        round_key = jax.random.fold_in(key, r)
        state, _ = step(round_key, state, data)
        w, b, control, controls = reference.scaffold_round(
            round_key, w, b, control, controls, people,
            cohort_size=4, batch_size=8, learning_rate=0.2,
        )  # fmt: skip
    np.testing.assert_allclose(algorithm.params(state)["kernel"], w, atol=1e-5)
    np.testing.assert_allclose(state.server.model.control["kernel"], control[0], atol=1e-5)
    np.testing.assert_allclose(
        state.clients["kernel"], np.stack([c[0] for c in controls]), atol=1e-5
    )


def test_equal_clients_take_the_static_loop_and_agree(key):
    data, people = population((12,) * 6)
    outs = []
    for width in (1, 4, 6):
        algorithm = make(width)
        state = algorithm.init(key, initial(key), data)
        state, _ = jax.jit(algorithm.step)(key, state, data)
        outs.append(algorithm.params(state)["kernel"])
    w, _, _ = reference.fedavg_round(
        key, np.zeros((FEATURES, CLASSES)), np.zeros(CLASSES), people,
        cohort_size=4, batch_size=8, num_epochs=2, learning_rate=0.3,
    )  # fmt: skip
    for out in outs:
        np.testing.assert_allclose(out, w, atol=1e-5)


def test_a_client_does_not_depend_on_its_slot_or_neighbours(key):
    """The same client in two different cohorts of the same round does exactly the same work."""
    data, _ = population()
    stack = Aggregator(lambda update: (), lambda k, s, updates, weights: (s, updates, {}))

    def updates(ids, width):
        ids = jnp.array(ids, jnp.int32)
        algorithm = engine.federated(
            rule=clients.local_sgd(MODEL, optax.sgd(0.3), loss=metrics.cross_entropy),
            sampler=Sampler(lambda s: (), lambda k, s, n, r: (s, Cohort(ids, ids < 10))),
            aggregator=stack,
            server=Server(
                lambda k, p, d: (p, jax.tree.map(lambda x: jnp.zeros((len(ids), *x.shape)), p)),
                lambda k, s, draft, c, d: draft._replace(shared=s[0]),
                lambda k, s, aggregate, report: ((s[0], aggregate), {}),
                lambda s: s[1],
            ),
            batching=Batching(8),
            width=width,
        )
        state = algorithm.init(key, initial(key), data)
        state, info = jax.jit(algorithm.step)(key, state, data)
        return np.asarray(algorithm.params(state)["kernel"]), info

    a, info = updates([5, 0, 3, 8], 1)
    b, _ = updates([2, 8, 5], 1)
    np.testing.assert_array_equal(a[0], b[2])
    np.testing.assert_array_equal(a[3], b[1])
    assert info.cohort.ids.tolist() == [5, 0, 3, 8]
    wide, _ = updates([5, 0, 3, 8], 3)
    np.testing.assert_allclose(wide, a, atol=1e-6)
    padded, info = updates([5, 10, 3], 2)  # id 10 is nobody
    np.testing.assert_allclose(padded[[0, 2]], a[[0, 2]], atol=1e-6)
    assert info.cohort.weights.tolist() == [60, 0, 33]
    assert info.cohort.num_steps.tolist() == [8, 0, 5]


def exploding() -> Model:
    """Softmax regression that gives NaN for inputs marked by a huge first feature."""

    def apply(params, inputs, key=None):
        return MODEL.apply(params, inputs) * jnp.where(inputs[:, :1] > 1e5, jnp.nan, 1.0)

    return Model(MODEL.init, apply)


def poisoned():
    data, _ = population()
    x = np.array(data.examples["x"])
    x[np.asarray(data.owners) == 5, 0] = 1e6  # every example of client 5
    parts = [np.flatnonzero(np.asarray(data.owners) == k) for k in range(len(SIZES))]
    return federate({"x": x, "y": np.asarray(data.examples["y"])}, parts)


@pytest.mark.parametrize("width", [1, 4])
def test_non_finite_updates_are_dropped_and_named(key, width):
    data = poisoned()
    algorithm = algorithms.fedavg(
        exploding(), client_optimizer=optax.sgd(0.1), batching=Batching(8), width=width
    )
    state, info = jax.jit(algorithm.step)(key, algorithm.init(key, initial(key), data), data)
    assert Status(int(info.status)) == Status.NON_FINITE_UPDATE
    assert np.flatnonzero(info.cohort.dropped).tolist() == [5]
    assert info.cohort.weights[5] == 0
    assert np.isfinite(algorithm.params(state)["kernel"]).all()
    with pytest.raises(simulate.SimulationError, match=r"round 0.*clients \[5\]") as caught:
        simulate.run(algorithm, initial(key), data, key=key, num_rounds=3)
    assert caught.value.result.num_rounds == 3  # the whole segment is kept
    result = simulate.run(algorithm, initial(key), data, key=key, num_rounds=3, on_error="continue")
    assert (result.info.status == Status.NON_FINITE_UPDATE).all()


def test_an_empty_cohort_leaves_the_server_alone(key):
    data, _ = population()
    cohort = Cohort(jnp.full(3, 10, jnp.int32), jnp.zeros(3, bool))
    nobody = Sampler(lambda s: (), lambda k, s, n, r: (s, cohort))
    algorithm = algorithms.fedavg(
        MODEL,
        client_optimizer=optax.sgd(0.1),
        batching=Batching(8),
        sampler=nobody,
        server=optax.adam(0.1),
    )
    state = algorithm.init(key, initial(key), data)
    after, info = jax.jit(algorithm.step)(key, state, data)
    assert Status(int(info.status)) == Status.EMPTY_COHORT
    jax.tree.map(np.testing.assert_array_equal, state.server, after.server)


def test_memory_of_a_mean_round_does_not_grow_with_the_cohort(key):
    """The compiled program's temporary memory: `width` models, not C."""
    sizes = (4,) * 64
    data, _ = population(sizes)
    model = models.mlp(CLASSES, hidden=(256, 256))
    params = model.init(key, jnp.zeros((1, FEATURES)))
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))

    def temporary(cohort_size, aggregator):
        algorithm = algorithms.fedavg(
            model,
            client_optimizer=optax.sgd(0.1),
            batching=Batching(4),
            sampler=sampling.uniform(cohort_size),
            aggregator=aggregator,
            width=2,
        )
        state = algorithm.init(key, params, data)
        compiled = jax.jit(algorithm.step).lower(key, state, data).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    streamed = aggregators.mean()
    small, large = temporary(4, streamed), temporary(64, streamed)
    assert large - small < num_bytes
    stacked = streamed._replace(summand=None, from_sum=None)
    assert temporary(64, stacked) > large + 50 * num_bytes  # or the measurement means nothing


def test_exceptions_name_the_stage_and_in_debug_the_client_and_round(key):
    data, _ = population()

    def broken(params, inputs, key=None):
        raise ValueError("broken on purpose")

    def of(model):
        return algorithms.fedavg(
            model,
            client_optimizer=optax.sgd(0.1),
            batching=Batching(8),
            sampler=sampling.uniform(2),
            width=1,
        )

    algorithm = of(Model(MODEL.init, broken))
    with pytest.raises(ValueError, match="broken on purpose"):
        algorithm.init(key, initial(key), data)
    with pytest.raises(ValueError, match="broken on purpose") as caught:
        jax.jit(algorithm.step)(key, of(MODEL).init(key, initial(key), data), data)
    assert any("local work" in note for note in caught.value.__notes__)


def test_bytes_up_and_down(key):
    data, _ = population()
    algorithm = make(cohort_size=3)
    _, info = jax.jit(algorithm.step)(key, algorithm.init(key, initial(key), data), data)
    model_bytes = 4 * (FEATURES * CLASSES + CLASSES)
    assert float(info.bytes_down) == float(info.bytes_up) == 3 * model_bytes


@pytest.mark.parametrize("streamed", [True, False])
def test_an_aggregator_may_say_what_clients_send(key, streamed):
    """Of one of three slots nobody is in, who sends nothing."""
    asked = []

    def num_bytes(update, num_slots):
        asked.append((jax.tree.map(lambda x: x.shape, update), num_slots))
        return 7

    part = aggregators.mean()._replace(num_bytes=num_bytes)
    if not streamed:
        part = part._replace(summand=None, from_sum=None)

    def two_of_three(key, state, sizes, round):
        return state, Cohort(jnp.array([0, 2, 1]), jnp.array([True, False, True]))

    data, _ = population()
    sampler = Sampler(lambda sizes: (), two_of_three)
    algorithm = make(sampler=sampler, aggregator=aggregators.norm_clipping(part, max_norm=1.0))
    _, info = jax.jit(algorithm.step)(key, algorithm.init(key, initial(key), data), data)
    assert asked[0] == ({"kernel": (FEATURES, CLASSES), "bias": (CLASSES,)}, 3)
    np.testing.assert_array_equal(info.cohort.num_bytes, [7, 0, 7])
    assert float(info.bytes_up) == 14


def test_bad_width():
    with pytest.raises(ValueError, match="width must be >= 1, got 0"):
        make(width=0)


def test_devices_get_about_as_many_local_steps():
    steps = np.ceil(3 * np.random.default_rng(0).lognormal(0, 1, 96)).astype(np.int32)
    order = np.asarray(local_work._balanced_order(jnp.asarray(steps), (12, 8, 1)))
    assert sorted(order) == list(range(96))
    loads = steps[order].reshape(12, 8).sum(axis=0)
    dealt_in_turn = np.sort(steps)[::-1].reshape(12, 8).sum(axis=0)
    assert loads.max() < 1.04 * loads.mean() < 1.1 * loads.mean() < dealt_in_turn.max()


@pytest.mark.parametrize("shuffle", ["epoch", "replacement", "none"])
def test_clients_of_one_example_train_in_chunks(shuffle):
    """XLA failed on what is left of a division by the constant 1."""
    data = federate(
        {"x": np.eye(4)[:, :3], "y": np.arange(4) % 2}, [np.array([k]) for k in range(4)]
    )
    algorithm = algorithms.fedavg(
        models.logistic(2),
        client_optimizer=optax.sgd(0.1),
        batching=Batching(shuffle=shuffle),
        width=2,
    )
    params = models.logistic(2).init(jax.random.key(0), data.examples["x"])
    state = algorithm.init(jax.random.key(0), params, data)
    state, info = jax.jit(algorithm.step)(jax.random.key(0), state, data)
    assert int(info.status) == 0
    assert (np.asarray(info.cohort.update_norm) > 0).all()


@pytest.mark.parametrize(("width", "on_mesh"), [(1, False), (2, False), (5, False), (2, True)])
def test_a_client_drawn_twice_starts_from_its_old_state_in_both_slots(key, width, on_mesh):
    """Whichever chunks they are in; and its state moves on by one round's work, not by two."""
    data, _ = population()
    ids = jnp.array([3, 7, 3, 1, 3], jnp.int32)
    rule = clients.local_sgd(MODEL, optax.sgd(0.3), loss=metrics.cross_entropy)

    def finish(key, state, *rest):
        _, upload, _ = rule.finish(key, (), *rest)
        return state + 1, upload, {"before": state}

    counting = rule._replace(
        init=lambda params: jnp.float32(0),
        begin=lambda key, state, *rest: rule.begin(key, (), *rest),
        finish=finish,
    )
    algorithm = algorithms.averaging(
        counting,
        sampler=Sampler(lambda s: (), lambda k, s, n, r: (s, Cohort(ids, ids < 10))),
        batching=Batching(8),
        width=width,
        mesh=devices.mesh(jax.devices()[:1]) if on_mesh else None,
    )
    state, step = algorithm.init(key, initial(key), data), jax.jit(algorithm.step)
    for r in range(2):
        state, info = step(jax.random.fold_in(key, r), state, data)
        assert info.cohort.clients["before"].tolist() == [r] * 5
    assert state.clients.tolist() == [0, 2, 0, 2, 0, 0, 0, 2, 0, 0]


@pytest.mark.parametrize("on_mesh", [False, True])
def test_what_clients_keep_is_replaced_where_it_is(key, on_mesh):
    """A round needs no second copy of the states of all clients."""
    data, _ = population((12,) * 40)
    algorithm = algorithms.ditto(
        models.mlp(CLASSES, hidden=(500,)),
        client_optimizer=optax.sgd(0.1),
        personal_learning_rate=0.1,
        pull=0.1,
        batching=Batching(4),
        width=1,
        mesh=devices.mesh(jax.devices()[:1]) if on_mesh else None,
    )
    params = models.mlp(CLASSES, hidden=(500,)).init(key, jnp.zeros((1, FEATURES)))
    state = jax.eval_shape(algorithm.init, key, params, data)
    step = jax.jit(lambda key, state, data: algorithm.step(key, state, data)[0], donate_argnums=1)
    needed = step.lower(key, state, data).compile().memory_analysis()
    assert needed.temp_size_in_bytes < 0.5 * trees.num_bytes(state.clients)

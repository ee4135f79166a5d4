"""What the server sends reaches its client, costs what it weighs, and tells the round."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs

KEY = jax.random.key(2)
SIZES = (5, 2, 9, 12, 7, 1)
SLOPE = fs.Model(lambda key, inputs: jnp.zeros(1), lambda params, x, key=None: x @ params)


def slope_loss(outputs: Any, labels: Any) -> fs.Mean:
    """Its gradient is the mean of x, wherever the model is."""
    return fs.Mean(outputs, jnp.ones_like(outputs))


def population(sizes: tuple[int, ...] = SIZES) -> Any:
    ends = np.cumsum(sizes)
    parts = np.split(np.arange(ends[-1]), ends[:-1])
    return fs.federate({"x": np.ones((ends[-1], 1)), "y": np.zeros(ends[-1], np.int32)}, parts)


def marked(num_bytes: Any = None) -> Any:
    """A server that sends every slot its client's id and ten times that."""
    plain = fs.servers.server_optimizer(optax.sgd(1.0))

    def broadcast(key: Any, state: Any, draft: Any, cohort: Any, data: Any) -> Any:
        own = {"id": cohort.ids, "tens": jnp.stack([cohort.ids, 10 * cohort.ids], axis=1)}
        message = plain.broadcast(key, state, draft, cohort, data)
        return message._replace(per_slot=own, num_bytes=num_bytes)

    return plain._replace(broadcast=broadcast)


RULE = fs.clients.adapt(
    fs.clients.local_sgd(SLOPE, optax.sgd(1.0), loss=slope_loss),
    info=lambda m: {"id": m.per_slot["id"], "ten": m.per_slot["tens"][1], "round": m.round},
)


def rounds(algorithm: Any, data: Any, number: int = 1) -> list[Any]:
    """The infos of some rounds."""
    state, infos = algorithm.init(KEY, jnp.zeros(1), data), []
    step = jax.jit(algorithm.step)
    for r in range(number):
        state, info = step(jax.random.fold_in(KEY, r), state, data)
        infos.append(info)
    return infos


@pytest.mark.parametrize("width", [1, 2, 4])
def test_every_client_sees_its_own_row(width):
    """Whatever the chunks, their order by length and the slots that fill them up."""
    algorithm = fs.algorithms.averaging(
        RULE,
        batching=fs.Batching(2),
        server=marked(),
        sampler=fs.sampling.uniform(5),
        width=width,
    )
    for info in rounds(algorithm, population(), 3):
        cohort = info.cohort
        np.testing.assert_array_equal(cohort.clients["id"], cohort.ids)
        np.testing.assert_array_equal(cohort.clients["ten"], 10 * cohort.ids)


def some(*ids: int, num_clients: int = len(SIZES)) -> Any:
    """These clients, and an empty slot."""

    def apply(key: Any, state: Any, sizes: Any, round: Any) -> Any:
        return state, fs.Cohort(
            jnp.array([*ids, num_clients], jnp.int32), jnp.arange(len(ids) + 1) < len(ids)
        )

    return fs.Sampler(lambda sizes: (), apply)


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [(None, 2 * (4 + 4 + 8)), (jnp.array([100.0, 0.5, 7.0]), 100.5)],
    ids=["of the arrays", "as told"],
)
def test_bytes_count_what_is_shared_and_what_is_not(num_bytes, expected):
    """One parameter, an id and two numbers, of four bytes each; nobody is sent nothing."""
    algorithm = fs.algorithms.averaging(
        RULE, batching=fs.Batching(2), server=marked(num_bytes), sampler=some(3, 0)
    )
    (info,) = rounds(algorithm, population())
    assert float(info.bytes_down) == expected
    assert float(info.bytes_up) == 2 * 4
    np.testing.assert_array_equal(info.cohort.num_bytes, [4, 4, 0])


def test_rules_know_the_round():
    algorithm = fs.algorithms.averaging(RULE, batching=fs.Batching(2), server=marked())
    seen = [info.cohort.clients["round"].tolist() for info in rounds(algorithm, population(), 3)]
    assert seen == [[r] * len(SIZES) for r in range(3)]


HALVING = optax.exponential_decay(1.0, 1, 0.5)


@pytest.mark.parametrize(
    ("optimizer", "moves"),
    [
        (lambda round: optax.sgd(HALVING(round)), [-1.0, -0.5, -0.25, -0.125]),
        (optax.sgd(HALVING), [-1.0, -1.0, -1.0, -1.0]),
    ],
    ids=["over rounds", "over the steps of a round"],
)
def test_a_learning_rate_follows_rounds_where_the_user_says_so(optimizer, moves):
    """One step a round down a slope of 1."""
    algorithm = fs.algorithms.fedavg(
        SLOPE,
        client_optimizer=optimizer,
        batching=fs.Batching(None, num_steps=1),
        loss=slope_loss,
    )
    data, state, path = population(), None, [0.0]
    state = algorithm.init(KEY, jnp.zeros(1), data)
    for r in range(4):
        state, _ = jax.jit(algorithm.step)(jax.random.fold_in(KEY, r), state, data)
        path.append(float(algorithm.params(state)[0]))
    np.testing.assert_allclose(np.diff(path), moves, rtol=1e-6)


def test_scaffold_and_ditto_take_rates_that_follow_rounds():
    data = population()
    options = {"batching": fs.Batching(None, num_steps=1), "loss": slope_loss}
    scaffold = fs.algorithms.scaffold(SLOPE, client_learning_rate=HALVING, **options)
    ditto = fs.algorithms.ditto(
        SLOPE,
        client_optimizer=optax.sgd(0.0),
        personal_learning_rate=HALVING,
        pull=0.0,
        **options,
    )
    for algorithm, of in ((scaffold, scaffold.params), (ditto, lambda state: state.clients[0])):
        state, path = algorithm.init(KEY, jnp.zeros(1), data), [0.0]
        for r in range(3):
            state, _ = jax.jit(algorithm.step)(jax.random.fold_in(KEY, r), state, data)
            path.append(float(of(state)[0]))
        np.testing.assert_allclose(np.diff(path), [-1.0, -0.5, -0.25], rtol=1e-5)


def test_samplers_know_the_round_and_are_foreseen():
    """Client r takes part in round r, and `sample` says so beforehand."""

    def apply(key: Any, state: Any, sizes: Any, round: Any) -> Any:
        return state, fs.Cohort(round[None], jnp.array([True]))

    algorithm = fs.algorithms.averaging(
        fs.clients.local_sgd(SLOPE, optax.sgd(1.0), loss=slope_loss),
        batching=fs.Batching(2),
        sampler=fs.Sampler(lambda sizes: (), apply),
    )
    data = population()
    assert [info.cohort.ids.tolist() for info in rounds(algorithm, data, 3)] == [[0], [1], [2]]
    state, seen = algorithm.init(KEY, jnp.zeros(1), data), []
    for r in range(3):
        state, cohort = algorithm.sample(jax.random.fold_in(KEY, r), state, data)
        seen.append(cohort.ids.tolist())
    assert seen == [[0], [1], [2]]


def test_a_rules_info_overwrites_nothing_that_the_engine_relies_on():
    """Robust rules and q-FedAvg look at the length of updates, attacks at steps."""
    lying = fs.clients.adapt(
        fs.clients.local_sgd(SLOPE, optax.sgd(1.0), loss=slope_loss),
        info=lambda m: {"update_norm": jnp.nan, "num_steps": jnp.int32(-1), "weights": 0.0},
    )
    algorithm = fs.algorithms.averaging(lying, batching=fs.Batching(None, num_steps=1))
    (info,) = rounds(algorithm, population())
    np.testing.assert_allclose(info.cohort.update_norm, np.ones(len(SIZES)), rtol=1e-6)
    np.testing.assert_array_equal(info.cohort.num_steps, np.ones(len(SIZES)))
    np.testing.assert_array_equal(info.cohort.weights, SIZES)
    assert np.isnan(info.cohort.clients["update_norm"]).all()

"""Leaves of a model that are not trained: statistics are averaged, frozen leaves stand still."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import fedjax_sim as fs

KEY = jax.random.key(5)


class Net(linen.Module):
    """Batch norm on the inputs, with statistics that are those of the last batch alone."""

    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        return linen.Dense(2)(linen.BatchNorm(use_running_average=not train, momentum=0.0)(x))


class NnxNet(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(1, momentum=0.0, rngs=rngs)
        self.dense = nnx.Linear(1, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.dense(self.norm(x))


MODELS = {
    "linen": fs.models.from_linen(Net()),
    "nnx": fs.models.from_nnx(lambda rngs: NnxNet(rngs)),
}


def statistics(params: Any) -> dict[str, np.ndarray]:
    """mean and var."""
    flat = fs.trees.flat_dict(params)
    return {n.split("/")[-1]: np.asarray(v) for n, v in flat.items() if n[-4:] in ("mean", "/var")}


def counting(*sizes: int) -> Any:
    """Clients whose inputs are 0, 1, 2, ..."""
    x = np.concatenate([np.arange(n, dtype=np.float32) for n in sizes])[:, None]
    ends = np.cumsum(sizes)
    parts = np.split(np.arange(ends[-1]), ends[:-1])
    return fs.federate({"x": x, "y": np.zeros(len(x), np.int32)}, parts)


def some(*ids: int, num_clients: int) -> Any:
    """A cohort that is always the same, with an empty slot."""

    def apply(key: Any, state: Any, sizes: Any, round: Any) -> Any:
        cohort = fs.Cohort(
            jnp.array([*ids, num_clients], jnp.int32), jnp.arange(len(ids) + 1) < len(ids)
        )
        return state, cohort

    return fs.Sampler(lambda sizes: (), apply)


def trained(model: Any, data: Any, **options: Any) -> Any:
    """The result of a round of one step with batches of 32."""
    options = {"batching": fs.Batching(32, num_steps=1)} | options
    algorithm = fs.algorithms.fedavg(model, client_optimizer=optax.sgd(0.1), **options)
    params = model.init(KEY, data.examples["x"][:1])
    return fs.run(algorithm, params, data, key=KEY, num_rounds=1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("width", [1, 2])
def test_rows_that_fill_a_batch_up_never_enter_statistics(name, width):
    """A client of 17 rows in batches of 32: of 0, ..., 16 the mean is 8 and the variance 24."""
    result = trained(MODELS[name], counting(17, 40), sampler=some(0, num_clients=2), width=width)
    found = statistics(result.params)
    np.testing.assert_allclose(found["mean"], [8.0], rtol=1e-6)
    np.testing.assert_allclose(found["var"], [24.0], rtol=1e-5)


def test_mixed_precision_keeps_them_out_as_well():
    model = fs.models.mixed_precision(MODELS["linen"])
    found = statistics(trained(model, counting(17, 40), sampler=some(0, num_clients=2)).params)
    np.testing.assert_allclose(found["mean"], [8.0], rtol=1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"server": optax.sgd(1.0, momentum=0.9)},
        {"server": optax.adam(0.01)},
        {"aggregator": fs.aggregators.coordinate_median()},
        {"uplink": fs.uplink.clip(1e-3)},
        {
            "attack": fs.attacks.sign_flip(100.0),
            "malicious": [1],
            "aggregator": fs.aggregators.mean(),
        },
        {"width": 3},
    ],
    ids=["mean", "momentum", "adam", "median", "clip", "attack", "width"],
)
def test_statistics_are_averaged_by_weight_whatever_else_is_done(options):
    """Clients of 5, 9 and 20 rows: means 2, 4, 9.5, variances (n^2 - 1) / 12."""
    sizes = np.array([5, 9, 20])
    found = statistics(trained(MODELS["linen"], counting(*sizes), **options).params)
    np.testing.assert_allclose(found["mean"], [sizes @ ((sizes - 1) / 2) / 34], rtol=1e-5)
    np.testing.assert_allclose(found["var"], [sizes @ ((sizes**2 - 1) / 12) / 34], rtol=1e-5)


def test_a_mesh_averages_statistics_too():
    sizes = (5, 9, 20)
    mesh = fs.devices.mesh(jax.devices()[:1])
    one, other = (trained(MODELS["linen"], counting(*sizes), mesh=m).params for m in (None, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)


def updates_of(rule: Any, model: Any, data: Any, shared: Any = lambda trained: trained) -> Any:
    """The structure of what a rule keeps and sends."""
    params = model.init(KEY, data.examples["x"][:1])
    leaves = fs.base.split(params, model.kinds)
    message = fs.Message(
        shared(leaves.trained),
        round=jnp.int32(0),
        statistics=leaves.statistics,
        frozen=leaves.frozen,
    )
    state, client = rule.init(params), fs.Client(jnp.int32(0), jnp.int32(4), jnp.int32(1))
    work = rule.begin(KEY, state, message, client)
    state, upload, _ = rule.finish(KEY, state, message, client, work)
    return state, upload


RULES = {
    "local_sgd": lambda m: fs.clients.local_sgd(m, optax.adam(0.1), loss=LOSS),
    "prox": lambda m: fs.clients.prox(m, optax.sgd(0.1), mu=1.0, loss=LOSS),
    "worker_momentum": lambda m: fs.clients.worker_momentum(
        fs.clients.local_sgd(m, optax.sgd(0.1), loss=LOSS), momentum=0.9
    ),
    "ditto": lambda m: fs.clients.ditto(
        m, optax.sgd(0.1), personal_learning_rate=0.1, pull=0.1, loss=LOSS
    ),
    "scaffold": lambda m: fs.clients.scaffold(m, learning_rate=0.1, loss=LOSS),
}
LOSS = fs.metrics.cross_entropy


@pytest.mark.parametrize("name", RULES)
def test_rules_send_trained_leaves_alone(name):
    """No update, momentum or control variate has a place for a statistic or a frozen leaf."""
    model, data = fs.models.freeze(MODELS["linen"], "params/Dense_0/kernel"), counting(4, 4)
    control = name == "scaffold"

    def shared(trained: Any) -> Any:
        return fs.clients.ControlledModel(trained, trained) if control else trained

    state, upload = updates_of(RULES[name](model), model, data, shared)
    names = {"params/BatchNorm_0/bias", "params/BatchNorm_0/scale", "params/Dense_0/bias"}
    moments = {"batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var"}
    for update in upload.update if control else [upload.update]:
        assert set(fs.trees.flat_dict(update)) == names
    assert set(fs.trees.flat_dict(upload.statistics)) == moments
    kept = {"local_sgd": set(), "prox": set(), "scaffold": names, "ditto": names | moments}
    if name in kept:
        assert set(fs.trees.flat_dict(state)) == kept[name]
    else:
        assert set(fs.trees.flat_dict(state.momentum)) == names


class Classifier(linen.Module):
    """Dense, batch norm, dense."""

    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = linen.Dense(32)(x.reshape(x.shape[0], -1))
        x = linen.BatchNorm(use_running_average=not train)(x)
        return linen.Dense(10)(linen.relu(x))


@pytest.mark.parametrize(
    "server", [optax.sgd(1.0, momentum=0.9), optax.adam(0.01)], ids=["momentum", "adam"]
)
def test_server_optimizers_learn_with_batch_norm(server):
    """They would drive a running variance below zero, and the test loss to NaN."""
    images = fs.datasets.fashion_small()
    model = fs.models.from_linen(Classifier())
    parts = fs.partition.dirichlet(images.train["y"], 50, alpha=0.5, seed=0)
    train = fs.federate(images.train, parts)
    test = fs.federate(images.test, [np.arange(len(images.test["y"]))])
    algorithm = fs.algorithms.fedavg(
        model,
        client_optimizer=optax.sgd(0.1),
        batching=fs.Batching(32),
        sampler=fs.sampling.uniform(10),
        server=server,
        width=1,
    )
    params = model.init(KEY, images.train["x"][:1])
    result = fs.run(algorithm, params, train, key=KEY, num_rounds=20)
    seen = fs.evaluator(model, {"loss": LOSS, "accuracy": fs.metrics.accuracy})(result.params, test)
    assert float(seen["loss"].value[0]) < 1.1
    assert float(seen["accuracy"].value[0]) > 0.6
    assert (statistics(result.params)["var"] > 0).all()


# Frozen leaves.

FROZEN = fs.models.freeze(fs.models.mlp(2, hidden=(3,)), "dense_0/*")


def test_a_frozen_leaf_is_nowhere_but_in_the_model():
    data = counting(4, 9)
    algorithm = fs.algorithms.fedavg(
        FROZEN,
        client_optimizer=optax.adam(0.1),
        batching=fs.Batching(4),
        server=optax.adam(0.01),
        width=1,
    )
    params = FROZEN.init(KEY, data.examples["x"][:1])
    state = algorithm.init(KEY, params, data)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.server)]
    assert set(shapes) == {(), (2,), (3, 2)}  # the last layer, its moments and a count
    result = fs.run(algorithm, params, data, key=KEY, num_rounds=3)
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(result.params["dense_0"][name], params["dense_0"][name])
    assert not np.array_equal(result.params["dense_1"]["kernel"], params["dense_1"]["kernel"])
    both_ways = 2 * 4 * (3 * 2 + 2)  # two clients, four bytes a number of the last layer
    np.testing.assert_array_equal(result.info.bytes_up, 3 * [both_ways])
    np.testing.assert_array_equal(result.info.bytes_down, 3 * [both_ways])


def test_a_frozen_leaf_is_an_argument_and_no_constant():
    """As a constant it would be compiled in, and again for every other body."""
    model = fs.models.freeze(fs.models.mlp(2, hidden=(77,)), "dense_0/*")
    data = counting(4, 9)
    algorithm = fs.algorithms.fedavg(
        model, client_optimizer=optax.sgd(0.1), batching=fs.Batching(4), width=1
    )
    params = model.init(KEY, data.examples["x"][:1])
    state = algorithm.init(KEY, params, data)
    assert state.frozen["dense_0"]["kernel"].shape == (1, 77)
    closed = jax.make_jaxpr(algorithm.step)(KEY, state, data)
    assert all(np.size(const) < 77 for const in closed.consts)


def test_freezing_is_masking_the_optimizer():
    """The same as steps of size zero on the frozen leaves."""
    data, plain = counting(4, 9), fs.models.mlp(2, hidden=(3,))
    params = plain.init(KEY, data.examples["x"][:1])
    still = jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "dense_0", params)
    masked = optax.chain(optax.sgd(0.1), optax.masked(optax.set_to_zero(), still))
    results = [
        fs.run(
            fs.algorithms.fedavg(model, client_optimizer=optimizer, batching=fs.Batching(4)),
            params,
            data,
            key=KEY,
            num_rounds=2,
        ).params
        for model, optimizer in ((FROZEN, optax.sgd(0.1)), (plain, masked))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *results)


def test_frozen_integers_are_carried_along():
    """A body of int8 has no gradient and needs none."""

    def init(key: Any, inputs: Any) -> Any:
        return {"body": jnp.ones((1, 3), jnp.int8), "head": jnp.zeros((3, 2))}

    def apply(params: Any, inputs: Any, key: Any = None) -> Any:
        return (inputs @ params["body"].astype(jnp.float32)) @ params["head"]

    model = fs.models.freeze(fs.Model(init, apply), "body")
    result = trained(model, counting(4, 9))
    assert result.params["body"].dtype == jnp.int8
    assert np.abs(result.params["head"]).max() > 0


@pytest.mark.parametrize("names", ["dense_7/*", "*"])
def test_names_that_freeze_nothing_or_all_are_refused(names):
    model = fs.models.freeze(fs.models.mlp(2, hidden=(3,)), names)
    params = model.init(KEY, jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"names must match some leaves.*dense_0/kernel"):
        model.kinds(params)


def test_a_model_that_moves_statistics_must_say_which_they_are():
    def apply_train(params: Any, inputs: Any, key: Any, mask: Any) -> Any:
        return inputs, params

    model = fs.Model(lambda key, x: {}, lambda params, x, key=None: x, apply_train)
    with pytest.raises(ValueError, match="which leaves are its statistics"):
        model.train({"w": jnp.zeros(2)}, jnp.zeros((1, 2)), KEY)


def test_algorithms_beside_fedavg_take_such_models():
    """Ditto's own models have statistics of their own; agnostic learning averages neither."""
    model, data = fs.models.freeze(MODELS["linen"], "params/Dense_0/kernel"), counting(17, 40)
    params = model.init(KEY, data.examples["x"][:1])
    ditto = fs.algorithms.ditto(
        model,
        client_optimizer=optax.sgd(0.1),
        personal_learning_rate=0.1,
        pull=0.1,
        batching=fs.Batching(64, num_steps=1),
    )
    personal = fs.run(ditto, params, data, key=KEY, num_rounds=1).state.clients
    np.testing.assert_allclose(statistics(personal)["mean"][:, 0], [8.0, 19.5], rtol=1e-5)
    agnostic = fs.algorithms.agnostic(
        model, optimizer=optax.sgd(0.1), ascent=fs.algorithms.Ascent(0.1), output="last"
    )
    seen = fs.run(agnostic, params, data, key=KEY, num_rounds=1).params
    np.testing.assert_allclose(statistics(seen)["mean"], [(17 * 8 + 40 * 19.5) / 57], rtol=1e-5)
    np.testing.assert_array_equal(
        seen["params"]["Dense_0"]["kernel"], params["params"]["Dense_0"]["kernel"]
    )
    for build in (fs.algorithms.q_fedavg, fs.algorithms.term, fs.algorithms.agnostic_fedavg):
        own = {
            fs.algorithms.q_fedavg: {"q": 1.0, "client_learning_rate": 0.1},
            fs.algorithms.term: {"t": 1.0, "client_optimizer": optax.sgd(0.1)},
            fs.algorithms.agnostic_fedavg: {
                "client_optimizer": optax.sgd(0.1),
                "ascent": fs.algorithms.Ascent(0.1),
            },
        }[build]
        algorithm = build(model, batching=fs.Batching(64, num_steps=1), **own)
        moved = fs.run(algorithm, params, data, key=KEY, num_rounds=1).params
        assert 8 < statistics(moved)["mean"][0] < 19.5

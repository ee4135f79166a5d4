"""Methods whose clients keep a part of the model: twins, reductions, bytes, what others see."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference_pers as twin
from small_task import CLASSES, FEATURES, KEY, SIZES, people, population

RATE, STEPS, ROUNDS, HIDDEN = 0.3, 4, 4, 5
NET = fs.models.mlp(CLASSES, hidden=(HIDDEN,))
LOCAL = fs.Batching(None, num_steps=STEPS, shuffle="none")
BODY_BYTES, HEAD_BYTES = 4 * (FEATURES + 1) * HIDDEN, 4 * (HIDDEN + 1) * CLASSES


@functools.cache
def start() -> dict[str, Any]:
    return NET.init(KEY, jnp.ones((1, FEATURES)))


def numbers(params: Any, k: int | None = None) -> twin.Net:
    """The leaves in float64; those of client k where there are rows."""
    names = {"w1": ("dense_0", "kernel"), "b1": ("dense_0", "bias")}
    names |= {"w2": ("dense_1", "kernel"), "b2": ("dense_1", "bias")}
    leaves = {name: params[layer][leaf] for name, (layer, leaf) in names.items()}
    return {
        name: np.float64(leaf if k is None else leaf[k])
        for name, leaf in leaves.items()
        if leaf is not None
    }


def trained(make: Callable[..., fs.Algorithm], rounds: int = ROUNDS, **options: Any) -> Any:
    given = {"client_optimizer": optax.sgd(RATE), "batching": LOCAL, "width": 1}
    algorithm = make(NET, **given | {"sampler": fs.sampling.uniform(3)} | options)
    result = fs.run(algorithm, start(), population(), key=KEY, num_rounds=rounds)
    return algorithm, result


BOTH = (*twin.BODY, *twin.HEAD)
# Method -> the leaves of each local step, those that stay, and the weight of a client.
METHODS: dict[str, tuple[list[tuple[str, ...]], tuple[str, ...], Callable[[int], float]]] = {
    "fedper": ([BOTH] * STEPS, twin.HEAD, float),
    "lg_fedavg": ([BOTH] * STEPS, twin.BODY, float),
    "fedbn": ([BOTH] * STEPS, ("b1",), lambda size: 1.0),
    "fedrep": ([twin.HEAD] * 3 + [twin.BODY], twin.HEAD, lambda size: 1.0),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "fedbn": {"local": "dense_0/bias"},
    "fedrep": {"head_fraction": 0.75},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_equals_its_float64_twin(name: str) -> None:
    algorithm, result = trained(getattr(fs.algorithms, name), **OPTIONS.get(name, {}))
    cohorts = result.info.cohort.ids.tolist()
    steps, local, weight = METHODS[name]
    given = (cohorts, numbers(start()), people(), RATE, steps, local, weight)
    shared, each = twin.rounds(*given)
    own = algorithm.personal_params(result.state)
    for k in range(len(SIZES)):
        found = numbers(own, k)
        assert found.keys() == set(local)
        for leaf, value in found.items():
            np.testing.assert_allclose(value, each[k][leaf], rtol=1e-5, atol=1e-6)
    for leaf, value in numbers(result.params).items():
        np.testing.assert_allclose(value, shared[leaf], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("fedper", BODY_BYTES),
        ("lg_fedavg", HEAD_BYTES),
        ("fedbn", BODY_BYTES + HEAD_BYTES - 4 * HIDDEN),
        ("fedrep", BODY_BYTES),
    ],
)
def test_what_is_local_is_not_sent_and_whoever_stays_away_keeps_the_initial_one(
    name: str, size: int
) -> None:
    make = functools.partial(getattr(fs.algorithms, name), **OPTIONS.get(name, {}))
    few = {"sampler": fs.sampling.uniform(3)}
    algorithm = make(NET, client_optimizer=optax.sgd(RATE), batching=LOCAL, **few)
    state = algorithm.init(KEY, start(), population())
    after, info = jax.jit(algorithm.step)(KEY, state, population())
    assert info.bytes_up == info.bytes_down == 3 * size
    before = numbers(start())
    for k in range(len(SIZES)):
        for leaf, own in numbers(algorithm.personal_params(after), k).items():
            assert (own != before[leaf]).any() == (k in info.cohort.ids), (k, leaf)


def test_uplinks_attacks_and_aggregators_see_what_is_shared_alone() -> None:
    """Each of them checks the shapes of all that it is given."""
    seen: list[Any] = []

    def note(tree: Any) -> None:
        seen.append(sorted(fs.ops.trees.flat_dict(tree)))

    def attacked(key: Any, state: Any, updates: Any, report: Any, malicious: Any, message: Any):
        note(updates), note(message.shared)
        return state, updates, {}

    def sent(key: Any, state: Any, message: Any, update: Any, weight: Any) -> Any:
        note(update), note(message.shared)
        return state, update, jnp.float32(0), {"norm": fs.ops.trees.norm(update)}

    mean = fs.aggregators.uniform_mean()

    def combined(key: Any, state: Any, updates: Any, weights: Any) -> Any:
        note(updates)
        return mean.apply(key, state, updates, weights)

    algorithm = fs.algorithms.fedper(
        NET,
        client_optimizer=optax.sgd(RATE),
        batching=LOCAL,
        uplink=fs.Uplink(lambda update: (), sent),
        attack=fs.Attack(lambda update: (), attacked),
        malicious=[1],
        aggregator=fs.Aggregator(lambda update: (), combined),
    )
    state = algorithm.init(KEY, start(), population())
    after, info = jax.jit(algorithm.step)(KEY, state, population())
    assert {*map(tuple, seen)} == {("dense_0/bias", "dense_0/kernel")}
    np.testing.assert_allclose(info.cohort.update_norm, info.cohort.clients["norm"], rtol=1e-6)
    moved = jax.tree.map(lambda a, b: (a != b).any(), after.clients.own, state.clients.own)
    assert all(jax.tree.leaves(moved))


def spare(model: fs.Model) -> fs.Model:
    """The same model with a leaf of no use."""
    return fs.Model(
        lambda key, x: {"net": model.init(key, x), "spare": jnp.ones(2)},
        lambda params, x, key=None: model.apply(params["net"], x),
    )


def test_without_a_local_part_it_is_fedavg_and_without_a_shared_one_local_training() -> None:
    model = spare(NET)
    given = {"client_optimizer": optax.sgd(RATE), "batching": fs.Batching(4), "width": 1}
    given |= {"sampler": fs.sampling.uniform(3)}
    run = functools.partial(fs.run, key=KEY, num_rounds=ROUNDS)
    params, data = {"net": start(), "spare": jnp.ones(2)}, population()
    shared = run(fs.algorithms.fedper(model, head="spare", **given), params, data)
    plain = run(fs.algorithms.fedavg(model, **given), params, data)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        shared.params,
        plain.params,
    )
    alone = fs.algorithms.ditto(model, personal_learning_rate=RATE, pull=0.0, **given)
    wanted = alone.personal_params(run(alone, params, data).state)["net"]
    algorithm = fs.algorithms.fedper(model, head="net/*", **given)
    found = algorithm.personal_params(run(algorithm, params, data).state)["net"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


def test_fedrep_on_bodies_alone_is_fedavg_with_a_frozen_head() -> None:
    _, found = trained(fs.algorithms.fedrep, head_fraction=0.0)
    _, plain = trained(
        lambda model, **options: fs.algorithms.fedavg(
            fs.models.freeze(model, "dense_1/*"),
            aggregator=fs.aggregators.uniform_mean(),
            **options,
        )
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found.params, plain.params
    )


def test_a_resumed_run_has_the_local_parts_of_the_whole_one(tmp_path: Any) -> None:
    algorithm = fs.algorithms.fedper(NET, client_optimizer=optax.sgd(RATE), batching=LOCAL)
    run = functools.partial(fs.run, algorithm, start(), population(), key=KEY)
    run(num_rounds=2, checkpoint=tmp_path)
    resumed = run(num_rounds=3, checkpoint=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, run(num_rounds=3).state)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (NET, {"head": "dense_7/*"}, r"got 'dense_7/\*'. Leaves: \['dense_0/bias'"),
        (NET, {"head": "*"}, r"got all that are trained. Leaves: \['dense_0/bias'"),
        (fs.models.freeze(NET, "dense_1/*"), {}, "got none that are trained"),
        (fs.models.logistic(CLASSES), {}, r"no last layer .*Leaves: \['bias', 'kernel'\]"),
    ],
)
def test_a_head_that_is_none_or_all_is_refused_with_the_leaves(
    model: fs.Model, options: dict[str, Any], message: str
) -> None:
    algorithm = fs.algorithms.fedper(
        model, client_optimizer=optax.sgd(RATE), batching=LOCAL, **options
    )
    params = model.init(KEY, jnp.ones((1, FEATURES)))
    with pytest.raises(ValueError, match=message):
        algorithm.init(KEY, params, population())


@pytest.mark.parametrize("name", ["mlp", "emnist_cnn", "lens_cnn", "mnist_cnn", "lenet"])
def test_the_last_layer_of_a_model_is_found(name: str) -> None:
    model = fs.models.build(name, 7)
    params = jax.eval_shape(model.init, KEY, jnp.ones((1, 28, 28)))
    found = fs.ops.leaf_names.is_chosen("last_layer", params)
    chosen = [leaf for leaf, c in zip(*map(jax.tree.leaves, (params, found)), strict=True) if c]
    assert [leaf.shape[-1] for leaf in chosen] == [7, 7]


def test_a_rule_with_another_update_is_refused() -> None:
    rule = fs.clients.scaffold(NET, learning_rate=0.1, loss=fs.metrics.cross_entropy)
    rule = fs.clients.adapt(
        rule, message=lambda m: m._replace(shared=fs.clients.ControlledModel(m.shared, m.shared))
    )
    algorithm = fs.algorithms.averaging(fs.clients.local_parts(rule, "dense_1/*"), batching=LOCAL)
    with pytest.raises(ValueError, match="local_parts needs a rule whose update is shaped like"):
        algorithm.init(KEY, start(), population())


# Claims, on linear problems without noise: each client's own optimum has a loss of zero.

LINEAR = fs.models.from_functions(
    lambda key: {
        "norm": {"shift": jnp.zeros((1, 4))},
        "dense_0": {"kernel": jax.random.normal(key, (4, 2)) / 2},
        "dense_1": {"kernel": jnp.array([[0.6], [-0.4]])},
    },
    lambda params, x: (
        (x - params["norm"]["shift"]) @ params["dense_0"]["kernel"] @ params["dense_1"]["kernel"]
    ),
)


def linear(what: str) -> fs.FederatedData:
    """Eight clients with a common representation, but unlike heads, rotations, or shifts."""
    rng = np.random.default_rng(2)
    body, head = np.linalg.qr(rng.normal(size=(4, 2)))[0], np.array([[1.0], [-0.7]])
    xs, ys = [], []
    for _ in range(8):
        z = rng.normal(size=(12, 4))
        own = rng.normal(size=(2, 1)) if what == "heads" else head
        ys.append(z @ body @ own)
        turn = np.linalg.qr(rng.normal(size=(4, 4)))[0] if what == "rotations" else np.eye(4)
        xs.append(z @ turn + (rng.normal(size=4) if what == "shifts" else 0))
    x, y = (np.concatenate(each).astype(np.float32) for each in (xs, ys))
    return fs.federate({"x": x, "y": y}, np.split(np.arange(len(x)), 8))


@pytest.mark.parametrize(
    ("name", "what", "options"),
    [
        ("fedper", "heads", {}),
        ("fedrep", "heads", {"head_fraction": 0.8}),
        ("lg_fedavg", "rotations", {}),
        ("fedbn", "shifts", {"local": "norm/*"}),
    ],
)
def test_own_parts_reach_optima_that_one_model_cannot(
    name: str, what: str, options: dict[str, Any]
) -> None:
    data, params = linear(what), LINEAR.init(jax.random.key(1), jnp.ones((1, 4)))
    loss = lambda outputs, labels: ((outputs - labels) ** 2).mean(axis=1)  # noqa: E731
    given = {"client_optimizer": optax.sgd(0.05), "batching": fs.Batching(None, num_steps=10)}
    evaluate = fs.evaluator(LINEAR, {"loss": loss})
    losses = []
    for make, more in ((getattr(fs.algorithms, name), options), (fs.algorithms.fedavg, {})):
        algorithm = make(LINEAR, loss=loss, width=8, **given, **more)
        result = fs.run(algorithm, params, data, key=KEY, num_rounds=300, keep="nothing")
        own = algorithm.personal_params(result.state)
        found = (
            evaluate(result.params, data)
            if own is None
            else evaluate.personal(own, data, result.params)
        )
        losses.append(np.mean(found["loss"].value))
    assert losses[0] < 1e-3 < 0.1 < losses[1]


def test_fedbn_keeps_scales_shifts_and_statistics_with_the_client() -> None:
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.0)(x)
            return nn.Dense(CLASSES)(x)

    model, data = fs.models.from_linen(Net()), population()
    params = model.init(KEY, jnp.ones((1, FEATURES)))
    algorithm = fs.algorithms.fedbn(model, client_optimizer=optax.sgd(RATE), batching=LOCAL)
    state, info = jax.jit(algorithm.step)(KEY, algorithm.init(KEY, params, data), data)
    own = fs.ops.trees.flat_dict(algorithm.personal_params(state))
    assert sorted(name.rpartition("/")[2] for name in own) == ["bias", "mean", "scale", "var"]
    assert all("BatchNorm_0" in name for name in own)
    means = [x.mean(axis=0) for x, _ in people()]
    np.testing.assert_allclose(own["batch_stats/BatchNorm_0/mean"], means, rtol=1e-5, atol=1e-6)
    assert (np.std(own["params/BatchNorm_0/scale"], axis=0) > 1e-3).all()
    shared = algorithm.params(state)
    jax.tree.map(np.testing.assert_array_equal, shared["batch_stats"], params["batch_stats"])
    assert info.bytes_up == info.bytes_down == len(SIZES) * 4 * (FEATURES + 1) * CLASSES

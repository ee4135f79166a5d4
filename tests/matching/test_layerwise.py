"""FedMA: permuted copies come back, a NumPy twin, what is shared and what is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference_layerwise as reference
from fedjax_sim import matching, models

J, VOCABULARY, CLASSES = 3, 5, 4
PRIOR = matching.Prior(sigma=0.4, sigma0=1.5, gamma=1.2)
NUM_PASSES = 2
OPTIONS = {"prior": PRIOR, "num_passes": NUM_PASSES}


def cnn_params(rng):
    """A small `emnist_cnn` for 8x8x2 images: 3, 5 filters, 4x4 -> 2x2 pixels, 6 units."""
    shapes = {"conv_0": (3, 3, 2, 3), "conv_1": (3, 3, 3, 5), "dense_0": (20, 6), "dense_1": (6, 4)}
    return {
        name: {"kernel": rng.normal(size=shape), "bias": rng.normal(size=shape[-1])}
        for name, shape in shapes.items()
    }


def lstm_params(rng):
    """A small `char_lstm`: embedding of 3 numbers, 4 units, 5 characters."""
    return {
        "embedding": rng.normal(size=(VOCABULARY, 3)),
        "lstm_0": {
            "kernel": rng.normal(size=(3, 16)),
            "recurrent": rng.normal(size=(4, 16)),
            "bias": rng.normal(size=16),
        },
        "dense": {"kernel": rng.normal(size=(4, VOCABULARY)), "bias": rng.normal(size=VOCABULARY)},
    }


def permuted_cnn(params, rng):
    """The same function: filters, channels of the flattened pixels and units in another order."""
    p, q, r = (rng.permutation(n) for n in (3, 5, 6))
    pixels = np.concatenate([5 * pixel + q for pixel in range(4)])
    (a, b), (c, d), (e, f), (g, h) = ((each["kernel"], each["bias"]) for each in params.values())
    layers = (a[..., p], b[p]), (c[:, :, p][..., q], d[q]), (e[pixels][:, r], f[r]), (g[r], h)
    return {
        name: {"kernel": w, "bias": bias} for name, (w, bias) in zip(params, layers, strict=True)
    }, {"conv_0": p, "conv_1": q, "dense_0": r}


def permuted_lstm(params, rng):
    """The same function: four gates follow one permutation, recurrent weights on both sides."""
    p, q = rng.permutation(3), rng.permutation(4)
    gates = np.concatenate([4 * gate + q for gate in range(4)])
    cell = params["lstm_0"]
    return {
        "embedding": params["embedding"][:, p],
        "lstm_0": {
            "kernel": cell["kernel"][p][:, gates],
            "recurrent": cell["recurrent"][q][:, gates],
            "bias": cell["bias"][gates],
        },
        "dense": {"kernel": params["dense"]["kernel"][q], "bias": params["dense"]["bias"]},
    }, {"embedding": p, "lstm_0": q}


IMAGES = np.random.default_rng(5).normal(size=(6, 8, 8, 2)).astype(np.float32)
TEXT = np.random.default_rng(5).integers(0, VOCABULARY, (6, 9))
NETWORKS = {
    "cnn": (cnn_params, permuted_cnn, models.emnist_cnn(CLASSES), IMAGES, reference.cnn),
    "lstm": (
        lstm_params,
        permuted_lstm,
        models.char_lstm(VOCABULARY, num_layers=1),
        TEXT,
        reference.lstm,
    ),
}
both = pytest.mark.parametrize("kind", NETWORKS)


def stack(clients):
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves), jnp.float32), *clients)


def noisy(kind, rng):
    """Permuted copies with noise, in which client j has neuron j of every layer for itself."""
    make, permute, *_ = NETWORKS[kind]
    base = make(rng)

    def client(j):
        def mixed(own, other):
            num_neurons = own.shape[-1] // (4 if own.shape[-1] == 16 else 1)
            apart = np.tile(np.arange(num_neurons) == j, own.shape[-1] // num_neurons)
            return np.where(apart, other, own) + 0.1 * rng.normal(size=own.shape)

        return permute(jax.tree.map(mixed, base, make(rng)), rng)[0]

    return [client(j) for j in range(J)]


@functools.cache
def output_of(kind):
    return jax.jit(NETWORKS[kind][2].apply)


def outputs(kind, params):
    return np.asarray(output_of(kind)(params, NETWORKS[kind][3]))


def in_order_of(kind, params, slots):
    """The arrays of a global network as a client with these neurons has them."""
    if kind == "cnn":
        p, q, r = (slots[layer] for layer in ("conv_0", "conv_1", "dense_0"))
        pixels = np.concatenate([len(q) * pixel + q for pixel in range(4)])
        (a, b), (c, d), (e, f), (g, h) = (
            (each["kernel"], each["bias"]) for each in params.values()
        )
        return [a[..., p], b[p], c[:, :, p][..., q], d[q], e[pixels][:, r], f[r], g[r], h]
    p, q = slots["embedding"], slots["lstm_0"]
    gates = np.concatenate([len(q) * gate + q for gate in range(4)])
    cell, out = params["lstm_0"], params["dense"]
    inner = [cell["kernel"][p][:, gates], cell["recurrent"][q][:, gates], cell["bias"][gates]]
    return [params["embedding"][:, p], *inner, out["kernel"][q], out["bias"]]


@both
def test_permuted_copies_come_back_as_the_network_they_are_copies_of(kind, rng, key):
    make, permute, *_ = NETWORKS[kind]
    original = make(rng)
    copies, orders = zip(*(permute(original, rng) for _ in range(J)), strict=True)
    params = stack(copies)
    wanted = outputs(kind, jax.tree.map(jnp.float32, original))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
    for copy in copies:  # or the permutations themselves are wrong
        close(outputs(kind, jax.tree.map(jnp.float32, copy)), wanted)
    plain = jax.tree.map(lambda x: np.mean(x, axis=0), params)
    assert np.abs(outputs(kind, plain) - wanted).max() > 0.1
    close(outputs(kind, jax.jit(matching.matched_average)(params)), wanted)
    found = matching.compact(matching.fedma(params, np.ones(J), key=key, **OPTIONS))
    for layer, order in orders[0].items():
        assert found.num_neurons[layer] == len(order)
        assert found.counts[layer].tolist() == [J] * len(order)
    for j, copy in enumerate(copies):
        slots = {layer: np.asarray(each[j]) for layer, each in found.assignments.items()}
        as_it_is = {layer: np.arange(len(each)) for layer, each in slots.items()}
        ours, theirs = in_order_of(kind, found.params, slots), in_order_of(kind, copy, as_it_is)
        for mine, own in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, own, atol=1e-6)


def partition(slots):
    """Which neurons (client, number) are one, whatever their number is."""
    groups: dict[int, set[tuple[int, int]]] = {}
    for j, own in enumerate(slots):
        for row, slot in enumerate(np.asarray(own).tolist()):
            groups.setdefault(slot, set()).add((j, row))
    return {frozenset(group) for group in groups.values()}


HIDDEN = {"cnn": ("conv_0", "conv_1", "dense_0"), "lstm": ("embedding", "lstm_0")}
OUTPUTS = {"cnn": CLASSES, "lstm": VOCABULARY}


@both
def test_fedma_is_the_numpy_reference(kind, rng, key):
    clients = noisy(kind, rng)
    counts = rng.integers(1, 50, (J, OUTPUTS[kind]))
    orders = {}
    for i, layer in enumerate(HIDDEN[kind]):
        match_key, _ = jax.random.split(jax.random.fold_in(key, i))
        keys = jax.random.split(match_key, NUM_PASSES)
        orders[layer] = np.array([jax.random.permutation(k, J) for k in keys])
    # Above, whoever owns an input alone is unlike the others by that.
    sigma = {layer: 2.0 if i else 0.4 for i, layer in enumerate(HIDDEN[kind])}
    match = reference.matcher(sigma, PRIOR.sigma0, PRIOR.gamma, orders)
    wanted, slots = NETWORKS[kind][4](clients, counts / counts.sum(axis=0), match)
    found = matching.fedma(
        stack(clients), counts, num_passes=NUM_PASSES, key=key, prior=PRIOR._replace(sigma=sigma)
    )
    for layer, own in slots.items():
        assert partition(found.assignments[layer]) == partition(own)
        width = len(own[0])
        assert width < found.num_neurons[layer] < J * width  # some are shared, not all
    for mine in (found.params, matching.compact(found).params):
        np.testing.assert_allclose(
            outputs(kind, mine),
            outputs(kind, jax.tree.map(jnp.float32, wanted)),
            rtol=1e-4,
            atol=1e-4,
        )


@both
def test_with_nothing_shared_it_is_the_ensemble(kind, rng, key):
    """Of the outputs before the softmax, each class by its weights; padding may hold anything."""
    clients = [NETWORKS[kind][0](rng) for _ in range(J)]
    params, layer = stack(clients), HIDDEN[kind][-1]
    each = np.stack([outputs(kind, jax.tree.map(jnp.float32, client)) for client in clients])
    weights = rng.integers(1, 50, (J, OUTPUTS[kind]))
    apart = OPTIONS | {"prior": PRIOR._replace(sigma=1e-6)}
    for given in (weights, weights[:, 0]):
        share = given / given.sum(axis=0)
        found = matching.fedma(params, given, key=key, **apart)
        assert found.num_neurons[layer] == J * len(found.assignments[layer][0])
        mean = (each * share.reshape(J, *(1,) * (each.ndim - 2), -1)).sum(axis=0)
        np.testing.assert_allclose(outputs(kind, found.params), mean, rtol=1e-4, atol=1e-4)


def test_padding_may_hold_anything(rng, key):
    """A client without its last unit, and one without its last filter: the ensemble without."""
    clients = [cnn_params(rng) for _ in range(J)]
    for name in ("kernel", "bias"):
        clients[1]["dense_0"][name][..., -1] = clients[0]["conv_1"][name][..., -1] = 0
    wanted = np.mean([outputs("cnn", jax.tree.map(jnp.float32, each)) for each in clients], axis=0)
    live = {"dense_0": np.ones((J, 6), bool), "conv_1": np.ones((J, 5), bool)}
    live["dense_0"][1, -1] = live["conv_1"][0, -1] = False
    for name in ("kernel", "bias"):
        clients[1]["dense_0"][name][..., -1] = clients[0]["conv_1"][name][..., -1] = np.nan
    clients[1]["dense_1"]["kernel"][-1] = clients[0]["dense_0"]["kernel"][4::5] = np.nan
    merged = matching.fedma(
        stack(clients),
        np.ones(J),
        key=key,
        live=live,
        **OPTIONS | {"prior": PRIOR._replace(sigma=1e-6)},
    )
    found = matching.compact(merged)
    assert {layer: int(n) for layer, n in found.num_neurons.items()} == {
        "conv_0": 9, "conv_1": 14, "dense_0": 17,
    }  # fmt: skip
    assert found.assignments["dense_0"][1, -1] == 17
    np.testing.assert_allclose(outputs("cnn", found.params), wanted, rtol=1e-4, atol=1e-4)


def test_clients_are_retrained_between_the_layers(rng, key):
    """After every layer once, on what is merged so far; what is merged stays as it is."""
    params = stack(noisy("cnn", rng))
    seen = []

    def retrain(key, params, frozen):
        seen.append((jax.random.key_data(key).tolist(), params, frozen))
        return jax.tree.map(lambda x: x + 1, params)

    found = matching.fedma(params, np.ones(J), key=key, retrain=retrain, **OPTIONS)
    assert [[name for name in frozen if frozen[name]["kernel"]] for *_, frozen in seen] == [
        ["conv_0"], ["conv_0", "conv_1"], ["conv_0", "conv_1", "dense_0"],
    ]  # fmt: skip
    assert all(each["kernel"] == each["bias"] for *_, frozen in seen for each in frozen.values())
    assert len({str(used) for used, *_ in seen}) == 3
    _, first, _ = seen[0]
    once = matching.fedma(params, np.ones(J), key=key, **OPTIONS)
    for j in range(J):
        np.testing.assert_array_equal(first["conv_0"]["kernel"][j], once.params["conv_0"]["kernel"])
    # The next layer of each client as it was, in terms of the merged filters.
    slots = np.asarray(found.assignments["conv_0"])
    for j in range(J):
        mine = np.asarray(first["conv_1"]["kernel"][j])
        np.testing.assert_array_equal(mine[:, :, slots[j]], params["conv_1"]["kernel"][j])
        others = np.setdiff1d(np.arange(mine.shape[2]), slots[j])
        assert not mine[:, :, others].any()
    _, last, _ = seen[-1]
    np.testing.assert_array_equal(found.params["dense_0"]["kernel"], last["dense_0"]["kernel"][0])
    out = last["dense_1"]["bias"].mean(axis=0) + 1
    np.testing.assert_allclose(found.params["dense_1"]["bias"], out, rtol=1e-5)


def test_it_is_pure_and_maps_over_hyperparameters(rng, key):
    params = stack(noisy("lstm", rng))

    @jax.jit
    def one(sigma, gamma):
        return matching.fedma(
            *(params, jnp.ones(J)), num_passes=2, key=key,
            prior=matching.Prior(sigma, 1.5, {"embedding": 1.2, "lstm_0": gamma}),
        )  # fmt: skip

    grid = np.array([[0.01, 1.2], [2.0, 1.2], [2.0, 1e6]], np.float32)
    every = jax.jit(jax.vmap(one))(*grid.T)
    for g, point in enumerate(grid):
        alone = one(*point.tolist())
        for layer in HIDDEN["lstm"]:
            np.testing.assert_array_equal(every.assignments[layer][g], alone.assignments[layer])
        np.testing.assert_allclose(
            every.params["lstm_0"]["recurrent"][g], alone.params["lstm_0"]["recurrent"], atol=1e-5
        )
    low, middle, high = np.asarray(every.num_neurons["lstm_0"])
    assert high == low == 12 and middle < 12
    assert every.num_neurons["embedding"][1] == every.num_neurons["embedding"][2]


def test_a_budget_of_a_clients_width_merges_everybody(rng, key):
    """And one network is merged with nobody: it is itself."""
    params = stack(noisy("cnn", rng))
    width = {"conv_0": 3, "conv_1": 5, "dense_0": 6}
    found = matching.fedma(
        params,
        np.ones(J),
        key=key,
        max_neurons=width,
        **OPTIONS | {"prior": PRIOR._replace(sigma=1e-3)},
    )
    assert all(found.full.values())
    assert jax.tree.map(jnp.shape, found.params) == jax.tree.map(lambda x: x.shape[1:], params)
    alone = jax.tree.map(lambda x: x[:1], params)
    found = matching.fedma(alone, np.ones(1), key=key, **OPTIONS)
    wanted = outputs("cnn", jax.tree.map(lambda x: x[0], params))
    np.testing.assert_allclose(outputs("cnn", found.params), wanted, rtol=1e-5, atol=1e-4)


def test_the_packages_own_networks_are_described():
    shapes = jax.eval_shape(models.char_lstm(9).init, jax.random.key(0), TEXT)
    assert matching.neuron_axes(shapes) == {
        "embedding": (None, "embedding"),
        "lstm_0/kernel": ("embedding", "lstm_0"),
        "lstm_0/recurrent": ("lstm_0", "lstm_0"),
        "lstm_0/bias": ("lstm_0",),
        "lstm_1/kernel": ("lstm_0", "lstm_1"),
        "lstm_1/recurrent": ("lstm_1", "lstm_1"),
        "lstm_1/bias": ("lstm_1",),
        "dense/kernel": ("lstm_1", None),
        "dense/bias": (None,),
    }
    axes = matching.neuron_axes(cnn_params(np.random.default_rng(0)))
    assert axes["conv_0/kernel"] == (None, None, None, "conv_0")
    assert axes["dense_0/kernel"] == ("conv_1", "dense_0")
    deep = models.mlp(2, hidden=(3,) * 11).init(jax.random.key(0), jnp.ones((1, 2)))
    axes = matching.neuron_axes(dict(sorted(deep.items())))
    assert axes["dense_10/kernel"] == ("dense_9", "dense_10")
    with pytest.raises(
        ValueError, match=r"params must be named embedding.*got \['kernel', 'bias'\]"
    ):
        matching.neuron_axes({"kernel": 0, "bias": 0})
    with pytest.raises(ValueError, match="must have a hidden layer"):
        matching.neuron_axes({"dense_0": {"kernel": 0, "bias": 0}})


def test_a_network_of_ones_own_is_described_by_its_axes(rng, key):
    """Two branches that are added share one layer; copies in another order come back."""
    axes = {
        "left": (None, "sum"),
        "right": (None, "sum"),
        "scale": ("sum",),
        "gain": (),
        "out": ("sum", None),
    }
    original = {
        "left": rng.normal(size=(3, 5)),
        "right": rng.normal(size=(3, 5)),
        "scale": rng.normal(size=5),
        "gain": np.array(2.0),
        "out": rng.normal(size=(5, 2)),
    }

    def apply(params, x):
        hidden = np.tanh(x @ params["left"]) + np.maximum(x @ params["right"], 0)
        return params["gain"] * (hidden * params["scale"]) @ params["out"]

    def permuted():
        p = rng.permutation(5)
        names = {"left": np.s_[:, p], "right": np.s_[:, p], "scale": p, "out": p}
        return {name: x[names.get(name, ())] for name, x in original.items()}

    params = stack([permuted() for _ in range(J)])
    x = rng.normal(size=(4, 3))
    # Of more than two copies an average may merge some with others first, and stay there.
    two = {name: leaf[:2] for name, leaf in params.items()}
    for merged in (
        matching.fedma(params, np.ones(J), key=key, axes=axes, **OPTIONS).params,
        matching.matched_average(two, axes=axes),
    ):
        merged = jax.tree.map(np.asarray, merged)
        np.testing.assert_allclose(apply(merged, x), apply(original, x), rtol=1e-4, atol=1e-5)


DENSE = {
    "dense_0/kernel": (None, "dense_0"),
    "dense_0/bias": ("dense_0",),
    "dense_1/kernel": ("dense_0", None),
    "dense_1/bias": (None,),
}


def dense_params():
    shapes = {"dense_0": (6, 4), "dense_1": (4, 2)}
    return {
        name: {"kernel": np.ones((2, *shape)), "bias": np.ones((2, shape[1]))}
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": {"dense_0/bias": ("dense_0",)}}, r"entry for every array.*'dense_0/kernel'"),
        ({"axes": DENSE | {"dense_0/bias": (None, "dense_0")}}, r"axes\['dense_0/bias'\] must"),
        ({"axes": {name: (None,) * len(each) for name, each in DENSE.items()}}, "None for all"),
        ({"axes": DENSE | {"dense_1/bias": ("top",)}}, "nothing leads out of layer 'top'"),
        ({"axes": DENSE | {"dense_0/kernel": ("low", "dense_0")}}, "layer 'low' is the last axis"),
        ({"axes": DENSE | {"dense_0/kernel": ("dense_0", None)}}, "must be multiples"),
        (
            {"axes": dict(zip(DENSE, [("b", "a"), ("a",), ("a", "b"), ("b",)], strict=True))},
            "lead into each other",
        ),
        ({"weights": np.ones(3)}, r"weights must have shape \[2\] or \[2, K\]"),
        ({"weights": np.array([[1, 0], [2, 0]])}, r"count for every class.*\[3.0, 0.0\]"),
        ({"weights": np.array([1, -1])}, "weights must be finite and >= 0"),
        ({"prior": PRIOR._replace(sigma=0.0)}, "sigma must"),
        (
            {"prior": PRIOR._replace(gamma={"dense_1": 1.0})},
            "gamma must have an entry for layer 'dense_0'",
        ),
        ({"num_passes": -1}, "num_passes must"),
        ({"prior": PRIOR._replace(popularity_cap=0.5)}, "popularity_cap must"),
        ({"max_neurons": 3}, "at least the width of the widest client, 4"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, key):
    given = {"weights": np.ones(2), "key": key} | OPTIONS | change
    with pytest.raises(ValueError, match=message):
        matching.fedma(dense_params(), **given)


def test_networks_that_are_no_stack_are_refused(key):
    broken = dense_params()
    broken["dense_0"]["kernel"][1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="dense_0/kernel has values that are not finite"):
        matching.fedma(broken, np.ones(2), key=key, **OPTIONS)
    uneven = dense_params() | {"dense_1": {"kernel": np.ones((3, 4, 2)), "bias": np.ones((3, 2))}}
    with pytest.raises(ValueError, match=r"one leading axis \[J\].*\(2,\), \(3,\)"):
        matching.fedma(uneven, np.ones(2), key=key, **OPTIONS)

"""Experiments by their options: what is built is what Python builds, and mistakes come first."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import base, parts
from fedjax_sim.cli import main as cli
from fedjax_sim.data import datasets
from fedjax_sim.experiments import described, population
from fedjax_sim.experiments import options as options_of
from fedjax_sim.ops import keys
from fedjax_sim.parts import signatures, spec
from part_texts import ONE, OWN, TEXTS, WITHOUT

SMALL = {"num_clients": 8, "cohort_size": 5, "model": "logistic", "rounds": 2}

MINE = """
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import fedjax_sim as fs


def data(num_rows=60):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_rows, 3)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    return fs.datasets.from_arrays(x[20:], y[20:], x[:20], y[:20], name="mine")


def nothing():
    return 3


class Net(nn.Module):
    num_classes: int
    width: int = 4

    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(self.num_classes)(hidden)


def halves(num_classes):
    net = Halves(num_classes)
    return fs.models.from_linen(net, body="features", head="classes")


class Halves(nn.Module):
    num_classes: int

    def setup(self):
        self.hidden, self.out = nn.Dense(4), nn.Dense(self.num_classes)

    def features(self, x):
        return nn.relu(self.hidden(x))

    def classes(self, features):
        return self.out(features)

    def __call__(self, x):
        return self.classes(self.features(x))


def brier(outputs, labels):
    wanted = nn.one_hot(labels, outputs.shape[-1])
    return jnp.sum((nn.softmax(outputs) - wanted) ** 2, axis=-1)


def misshapen(outputs, labels):
    return outputs[:, :2] - labels[None, :3]


def sides(labels, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    return np.split(order, [3, 10])
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a file of the user's own."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_an_experiment_is_what_python_builds() -> None:
    found = fs.experiment(
        {
            **{"num_clients": 8, "alpha": 0.5, "model": "mlp", "hidden": 20, "seed": 3},
            **{"client_optimizer": "adam(0.01)", "batch_size": 16, "num_epochs": 0.5},
            **{"cohort_size": 6, "server": "sgd(0.5)", "attack": "sign_flip", "malicious": 0},
            **{"aggregator": "nnm(trimmed_mean, num_byzantine=1)", "rounds": 2},
        },
        aggregator__aggregator__num_byzantine=2,
    )
    dataset = fs.datasets.fashion_small()
    owned = fs.partition.dirichlet(dataset.train["y"], 8, alpha=0.5, seed=3)
    train = fs.federate(dataset.train, owned, num_classes=10)
    model = fs.models.mlp(10, hidden=(20,))
    init_key, key = keys.split(jax.random.key(3))
    robust = fs.aggregators.nnm(fs.aggregators.trimmed_mean(num_byzantine=2), num_byzantine=1)
    algorithm = fs.algorithms.fedavg(
        model,
        client_optimizer=optax.adam(0.01),
        batching=fs.Batching(16, num_epochs=0.5),
        sampler=fs.sampling.uniform(6),
        server=optax.sgd(0.5),
        aggregator=robust,
        attack=fs.attacks.sign_flip(),
        malicious=[0],
    )
    params = jax.jit(model.init)(init_key, dataset.train["x"][:1])
    expected = fs.run(algorithm, params, train, key=key, num_rounds=2)
    assert_same(found.dealt.train.examples, train.examples)
    result = found.run()
    assert_same(result.params, expected.params)
    assert_same(result.info.cohort.ids, expected.info.cohort.ids)


@pytest.mark.usefixtures("mine")
def test_an_experiment_from_the_file_of_a_run_is_that_run() -> None:
    words = "--num-clients 8 --model logistic --algorithm fedadam --cohort-size 5 --rounds 3"
    more = "--metrics mine.py:brier --eval-every 2 --partition mine.py:sides --num-clients none"
    with pytest.raises(SystemExit) as end:
        cli.main(["train", *words.split(), *more.split(), "--output", "run"])
    assert end.value.code == 2  # three clients are fewer than five
    with pytest.raises(SystemExit) as end:
        cli.main(["train", *words.split(), *more.split(), "--cohort-size", "2", "--output", "run"])
    assert end.value.code == 0
    result = fs.experiment("run/config.toml").run()
    with np.load("run/per_client.npz") as saved:
        assert saved["client_sizes"].tolist() == [3, 7, 2490]
        for name in ("ids", "loss", "num_steps", "update_norm"):
            ours = getattr(result.info.cohort, name)
            np.testing.assert_allclose(saved[f"rounds/cohort/{name}"], ours, rtol=1e-5)
        for split, by_name in result.evaluations.values.items():
            assert by_name.keys() == {"accuracy", "loss", "brier"}
            for name, mean in by_name.items():
                theirs = saved[f"evaluations/{split}/{name}/total"]
                np.testing.assert_allclose(theirs, mean.total, rtol=1e-5)
        assert saved["evaluations/rounds"].tolist() == result.evaluations.rounds.tolist()
    first, other = (
        fs.experiment(Path("run/config.toml"), seed=seed).dealt.train for seed in (0, 1)
    )
    assert (first.client(0)["x"] != other.client(0)["x"]).any()


def test_parts_may_be_there_already() -> None:
    text = {"model": "mlp(hidden=[8])", "aggregator": "trimmed_mean(num_byzantine=1)"}
    live = {
        "model": fs.models.mlp(10, hidden=(8,)),
        "aggregator": fs.aggregators.trimmed_mean(num_byzantine=1),
        "client_optimizer": optax.sgd(0.1),
        "batching": fs.Batching(),
    }
    found, expected = (fs.experiment(SMALL | each).run().params for each in (live, text))
    assert_same(found, expected)


@pytest.mark.usefixtures("mine")
def test_data_model_loss_and_metrics_of_ones_own() -> None:
    experiment = fs.experiment(
        {"dataset": "mine.py:data", "model": "mine.py:Net", "loss": "mine.py:brier"},
        **{"model__width": 5, "partition": "mine.py:sides"},
        metrics=["mine.py:brier", "calibration_error", "f1(macro)"],
        rounds=2,
    )
    assert experiment.dealt.dataset.name == "mine"
    assert [*experiment.goal.metrics] == [
        *("accuracy", "loss", "brier", "calibration_error", "f1(macro)")
    ]
    result = experiment.run()
    assert result.params["params"]["Dense_0"]["kernel"].shape == (3, 5)
    data = experiment.dealt.dataset.test
    outputs = np.asarray(experiment.model.apply(result.params, data["x"]), np.float64)
    likely = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    brier = ((likely - np.eye(2)[data["y"]]) ** 2).sum()
    total = result.evaluations.values["test"]["brier"].total[-1].sum()
    np.testing.assert_allclose(total, brier, rtol=1e-5)
    # What is minimised is not the cross entropy.
    plain = fs.experiment(
        {"dataset": "mine.py:data", "model": "mine.py:Net", "partition": "mine.py:sides"},
        **{"model__width": 5, "rounds": 2},
    )
    first, second = (each.run().info.cohort.loss[0] for each in (experiment, plain))
    assert (np.asarray(first) != np.asarray(second)).all()


@pytest.mark.usefixtures("mine")
def test_a_model_of_ones_own_says_its_representation() -> None:
    settings = {"dataset": "mine.py:data", "partition": "mine.py:sides", "algorithm": "moon"}
    experiment = fs.experiment(settings, model="mine.py:halves", rounds=1)
    body, head = experiment.model.in_two()
    x = experiment.dealt.dataset.test["x"]
    params = experiment.run().params
    assert body.apply(params, x).shape == (len(x), 4)
    np.testing.assert_allclose(
        head(params, body.apply(params, x)), experiment.model.apply(params, x), rtol=1e-5
    )
    with pytest.raises(ValueError, match="model does not say its representation"):
        fs.experiment(settings, model="mine.py:Net", rounds=1)


@pytest.mark.usefixtures("mine")
def test_what_is_no_data_set_is_refused() -> None:
    with pytest.raises(TypeError, match=r"--dataset: mine\.py:nothing must return a Dataset"):
        fs.experiment(dataset="mine.py:nothing")


@pytest.mark.usefixtures("mine")
def test_what_cannot_run_is_refused_when_it_is_built() -> None:
    with pytest.raises(ValueError, match="num_byzantine must be <= 1 for krum in a cohort of 5"):
        fs.experiment(SMALL, aggregator="krum", num_byzantine=2)
    with pytest.raises((ValueError, TypeError), match=r"incompatible|broadcast"):
        fs.experiment(SMALL, metrics=["mine.py:misshapen"])


def test_patience_ends_a_run_that_does_not_improve() -> None:
    still = {"client_optimizer": "sgd(0.0)", "rounds": 50, "eval_every": 1, "patience": 3}
    result = fs.experiment(SMALL | still).run()
    assert result.stopped_early and result.num_rounds < 20
    assert not fs.experiment(SMALL | still, patience=None, rounds=8).run().stopped_early
    with pytest.raises(ValueError, match="unknown --patience-metric 'test/f1'"):
        fs.experiment(SMALL | still, patience_metric="test/f1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"agregator": "krum"}, "unknown option 'agregator'. Did you mean 'aggregator'"),
        ({"aggregator": "krum(num_byzantine=-1)"}, "num_byzantine must be >= 0, got -1"),
        ({"aggregator": "trimmed_mean"}, "trimmed_mean needs num_byzantine"),
        ({"algorithm": "fedprox", "mu": -1}, r"mu must lie in \[0, "),
        ({"model": "mlp(hidden=[0])"}, "hidden.* must be >= 1, got 0"),
        ({"model": "mpl"}, "no model 'mpl'. Did you mean 'mlp'"),
        ({"global_model": "mpl"}, "global_model: there is no Model 'mpl'. Did you mean 'mlp'"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"attack": "sign_flip"}, "give both attack and malicious or neither"),
        ({"loss": "cross_entropi"}, "loss: there is no .*Did you mean 'cross_entropy'"),
        ({"metrics": ["f1(middle)"]}, "metrics: .*'middle'"),
        ({"rounds": 0}, "rounds must be >= 1, got 0"),
        ({"partition": "dirichlett"}, "no partition 'dirichlett'. Did you mean 'dirichlet'"),
    ],
)
def test_a_mistake_is_told_before_data_are_read(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], message: str
) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise AssertionError("the data were read")

    monkeypatch.setattr(datasets, "load", load)
    with pytest.raises(AssertionError):
        fs.experiment(SMALL)
    with pytest.raises(ValueError, match=message):
        fs.experiment(values)


# No public part is out of reach.

HISTORY = {"server": "with_history(server_optimizer(sgd(1.0)))"}
AVERAGING = {"algorithm": "averaging"}
PLACES = {
    base.Aggregator: "aggregator",
    base.Attack: "attack",
    base.Sampler: "sampler",
    base.Uplink: "uplink",
    base.Server: "server",
    base.ClientRule: "rule",
    base.Model: "model",
    base.Algorithm: "algorithm",
    base.ClientMetric: "metrics",
    base.Noise: "aggregator",
}


def around(kind: type, text: str) -> dict[str, Any]:
    """The options by which a part stands in an experiment."""
    settings: dict[str, Any] = {PLACES[kind]: [text] if kind is base.ClientMetric else text}
    if kind is base.Noise:
        settings = {"aggregator": f"private_mean({text}, max_norm=1.0, expected_size=10)"}
    if kind is base.Attack:
        settings |= {"malicious": [0, 1]}
    if kind is base.ClientRule:
        settings |= AVERAGING
        if "poisoning" in text:
            settings |= HISTORY
            if not text.startswith("malicious"):
                settings |= {"rule": f"malicious(local_sgd, {text}, [0])"}
    return settings


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in TEXTS.items() for text in texts]
)
def test_a_public_part_stands_in_an_experiment(tmp_path: Path, kind: type, text: str) -> None:
    own = tmp_path / "mine.py"
    own.write_text(OWN)
    written = text.format(own=own.as_posix(), one=ONE)
    options = options_of.resolve(options_of.from_mapping(around(kind, written)))
    described.check(options)
    if kind is base.ClientMetric:
        assert options.plain.training.metrics == (written,)
        return
    chosen = {node.call.name: node.signature.returns for node in spec.nodes(options.parts)}
    name = text.partition("(")[0]
    assert chosen[name] == kind.__name__


def test_every_public_part_was_placed() -> None:
    for kind in parts.CONTRACTS.values():
        placed = {text.partition("(")[0] for text in TEXTS[kind]}
        assert parts.find(kind).keys() - placed <= WITHOUT.keys()
    for settings in (
        {"algorithm": "pfnm", "global_model": "mlp(hidden=[300, 300])"},
        {"algorithm": "moon", "model": "mlp", "hidden": 8},
    ):
        described.check(options_of.resolve(options_of.from_mapping(settings)))


PARTITIONS = {
    "by_group": {"dataset": "adult", "group": "doctorate"},
    "by_proportions": {"proportions": [[1] * 10, [2] * 10, [3] * 10]},
    "dirichlet": {"num_clients": 4, "alpha": 1.0},
    "iid": {"num_clients": 4},
    "quantity_skew": {"num_clients": 4},
    "shards": {"num_clients": 4},
}


@pytest.mark.parametrize("name", signatures.among(("Partition",)))
def test_every_partition_deals_out_the_data(name: str) -> None:
    settings = {"partition": name} | PARTITIONS[name]
    dealt = population.deal(options_of.resolve(options_of.from_mapping(settings)))
    wanted = {"by_group": 2, "by_proportions": 3}.get(name, 4)
    assert dealt.train.num_clients == wanted
    assert dealt.train.num_examples == len(dealt.dataset.train["y"])


def test_what_it_looks_like() -> None:
    shown = repr(fs.experiment(num_clients=8, cohort_size=3, model="logistic"))
    assert "clients: 8" in shown and "sampler=uniform(cohort_size=3)" in shown
    assert len(shown) < 500 and "array" not in shown and "<function" not in shown

"""The parts of an experiment and their options, each found by its own name."""

import inspect
import typing

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import parts
from fedjax_sim.parts import finding, signatures, spec
from fedjax_sim.parts.spec import Setting
from fedjax_sim.parts.text import show


def chosen(*layers, **settings):
    made = [
        {name: Setting(value, spec.like("--", name)) for name, value in layer.items()}
        for layer in (*layers, {name.replace("__", "."): v for name, v in settings.items()})
    ]
    return spec.resolve(*made, also=["rounds", "dataset"])


def text(slot, *layers, **settings):
    return show(chosen(*layers, **settings)[slot])


def factories():
    for contract in finding.CONTRACTS.values():
        yield from finding.find(contract).values()


@pytest.mark.parametrize("factory", [*factories()], ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_what_is_read_from_source_is_what_there_is(factory):
    contract = typing.get_type_hints(factory)["return"].__name__
    found = signatures.lookup(factory.__name__, (contract,))
    assert found is not None and found.module == factory.__module__
    live = finding.options(factory)
    assert [*found.parameters] == [*live]
    for name, option in live.items():
        parameter = found.parameters[name]
        assert (parameter.default is None) == (option.default is inspect.Parameter.empty)
        assert (parameter.by_place, parameter.many) == (option.by_place, option.many)
        assert signatures.help_of(found, name)
        if isinstance(option.default, int | float | str | tuple):
            assert eval(parameter.default) == option.default


def test_optimizers_are_those_of_optax():
    told = signatures.help_of(signatures.of_optax()["sgd"][0], "learning_rate")
    assert told.endswith("see `optax.scale_by_learning_rate`.")
    found = signatures.among(("GradientTransformation",))
    assert {"sgd", "adam", "adamw", "yogi", "chain", "clip_by_global_norm"} <= found.keys()
    for name, signature in found.items():
        assert [*signature.parameters] == [*inspect.signature(getattr(optax, name)).parameters]


def test_every_contract_and_kind_is_known_to_both_readers():
    assert signatures.contracts() == tuple(finding.CONTRACTS)
    for name, contract in finding.CONTRACTS.items():
        assert signatures.among((name,)).keys() == finding.find(contract).keys()


DEFAULT = (
    "fedavg(client_optimizer=sgd(learning_rate=0.1), batching=Batching(), "
    "sampler=uniform(cohort_size=10), server=sgd(learning_rate=1.0)"
)


def test_defaults():
    parts = chosen()
    assert show(parts["partition"]) == "dirichlet(num_clients=100, alpha=0.3)"
    assert show(parts["model"]) == "mlp()"
    assert show(parts["algorithm"]) == DEFAULT + ")"


@pytest.mark.parametrize(
    ("settings", "slot", "wanted"),
    [
        (
            {"aggregator": "krum", "num_byzantine": 2, "attack": "gaussian(1/2)", "malicious": 0},
            "algorithm",
            f"{DEFAULT}, aggregator=krum(num_byzantine=2), attack=gaussian(sigma=0.5), "
            "malicious=[0])",
        ),
        (
            {"num_byzantine": "3", "aggregator": "nnm(trimmed_mean(num_byzantine=1))"},
            "algorithm",
            f"{DEFAULT}, aggregator=nnm(aggregator=trimmed_mean(num_byzantine=1), "
            "num_byzantine=3))",
        ),
        (
            {"aggregator": "nnm(krum, num_byzantine=1)",
             "aggregator.aggregator.num_byzantine": 2},
            "algorithm",
            f"{DEFAULT}, aggregator=nnm(aggregator=krum(num_byzantine=2), num_byzantine=1))",
        ),
        (
            {"server.learning_rate": 0.5, "client_optimizer.momentum": 0.9, "cohort_size": 3,
             "batch_size": "none"},
            "algorithm",
            "fedavg(client_optimizer=sgd(learning_rate=0.1, momentum=0.9), "
            "batching=Batching(batch_size=None), sampler=uniform(cohort_size=3), "
            "server=sgd(learning_rate=0.5))",
        ),
        (
            {"algorithm": "averaging", "rule": "worker_momentum(local_sgd, momentum=0.9)",
             "uplink": "chain(clip(1.0), identity)"},
            "algorithm",
            "averaging(rule=worker_momentum(rule=local_sgd(optimizer=sgd(learning_rate=0.1)), "
            "momentum=0.9), batching=Batching(), sampler=uniform(cohort_size=10), "
            "server=sgd(learning_rate=1.0), uplink=chain(clip(max_norm=1.0), identity()))",
        ),
        (
            {"algorithm": "agnostic", "ascent.projection": "project_capped(high=0.5)"},
            "algorithm",
            "agnostic(optimizer=sgd(learning_rate=0.1), ascent=Ascent(step_size=0.01, "
            "projection=project_capped(high=0.5)), batch_size=32)",
        ),
        (
            {"client_optimizer": "adamw(cosine_decay_schedule(0.1, 10))"},
            "algorithm",
            DEFAULT.replace(
                "sgd(learning_rate=0.1)",
                "adamw(learning_rate=cosine_decay_schedule(init_value=0.1, decay_steps=10))",
            ) + ")",
        ),
        ({"hidden": 20}, "model", "mlp(hidden=[20])"),
        ({"hidden": ("20", "30"), "activation": "gelu"}, "model",
         "mlp(hidden=[20, 30], activation=gelu)"),
        ({"model": "mixed_precision(mlp(hidden=[8]))"}, "model",
         "mixed_precision(model=mlp(hidden=[8]))"),
        ({"partition": "shards"}, "partition", "shards(num_clients=100, shards_per_client=2)"),
        ({"partition": {"part": "iid", "num_clients": 5, "seed": 1}}, "partition",
         "iid(num_clients=5, seed=1)"),
        ({"algorithm": "feddyn", "algorithm.alpha": 0.1, "partition.alpha": 1}, "partition",
         "dirichlet(num_clients=100, alpha=1)"),
    ],
)  # fmt: skip
def test_options_find_their_parts(settings, slot, wanted):
    assert text(slot, settings) == wanted
    assert text(slot, {slot: wanted}) == wanted  # what is complete says the same again


def test_a_later_layer_goes_over_an_earlier_one():
    file = {"aggregator": "krum", "num_byzantine": 2, "alpha": 0.1}
    assert "krum(num_byzantine=3)" in text("algorithm", file, num_byzantine=3)
    assert "coordinate_median()" in text("algorithm", file, aggregator="coordinate_median")
    # A part that is chosen anew has options of its own.
    assert text("partition", file, partition="iid") == "iid(num_clients=100)"
    # What has no place in the file's own parts finds one in those of the next layer.
    later = text("algorithm", {"num_byzantine": 2}, aggregator="trimmed_mean")
    assert "trimmed_mean(num_byzantine=2)" in later
    # None undoes what the file said.
    assert text("algorithm", {"mu": 0.1}, mu=None) == DEFAULT + ")"


def test_finished_parts_stay_as_they_are():
    model, rule = fs.models.mlp(10), fs.aggregators.mean()
    parts = chosen(model=model, aggregator=rule)
    assert parts["model"] is model
    assert spec.value_at(parts, ("algorithm", "aggregator")) is rule


def test_parts_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import jax\n\n\ndef halved(aggregator, *, factor=0.5):\n"
        '    """Half of it.\n\n    Args:\n        factor: how much of it.\n    """\n'
    )
    found = chosen(aggregator=f"{path}:halved", aggregator__aggregator="mean()", factor=0.1)
    assert show(spec.value_at(found, ("algorithm", "aggregator"))) == (
        f"{f'{path}:halved'!r}(aggregator=mean(), factor=0.1)"
    )
    _, told = spec.taken(found, ("algorithm", "aggregator", "factor"))
    assert told == "how much of it."
    with pytest.raises(ValueError, match=r"halved takes no 'factr'\. Did you mean 'factor'"):
        chosen(aggregator=f"'{path}:halved'(mean, factr=1)")
    (tmp_path / "broken.py").write_text("def (")
    with pytest.raises(ValueError, match=r"broken\.py is not Python"):
        chosen(aggregator=f"{tmp_path / 'broken.py'}:f")


def test_arrays_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n\n\ndef inputs(number=2):\n    return np.ones((number, 3))\n"
    )
    for wanted, rows in (("mine.py:inputs", 2), ("'mine.py:inputs'(number=4)", 4)):
        found = chosen(algorithm="feddf", unlabelled=wanted)["algorithm"].options["unlabelled"]
        made = parts.build(found, jax.Array | np.ndarray)
        np.testing.assert_array_equal(made, np.ones((rows, 3)))
    with pytest.raises(ValueError, match=r"--unlabelled must be a list of numbers or file\.py:fun"):
        chosen(algorithm="feddf", unlabelled="fashion_small")


ASKED = {
    "dp_fedavg": "max_norm",
    "dp_ftrl": "max_norm",
    "feddf": "unlabelled",
    "federated": "sampler",
    "ifca": "num_clusters",
}
"""What only the user knows."""


@pytest.mark.parametrize("name", finding.find(fs.base.Algorithm))
def test_the_name_of_an_algorithm_is_enough(name):
    if name in ASKED:
        with pytest.raises(ValueError, match=f"{name} needs {ASKED[name]}: "):
            chosen(algorithm=name)
    else:
        assert chosen(algorithm=name)["algorithm"].name == name


def test_a_file_of_ones_own_is_read_as_it_now_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for option in ("size", "depth"):
        (tmp_path / "mine.py").write_text(f"def net({option}=3):\n    pass\n")
        assert [*chosen(model="mine.py:net")["model"].options] == []
        assert text("model", model="mine.py:net", **{option: 4}) == f"'mine.py:net'({option}=4)"


def test_every_option_has_a_name_that_means_it_alone():
    parts = chosen(algorithm="feddyn", algorithm__alpha=0.1, aggregator=None)
    names = dict(spec.options(parts, ["seed"]))
    assert {"algorithm.alpha", "partition.alpha", "partition.seed", "cohort_size"} <= names.keys()
    for name, path in names.items():
        assert spec.place(parts, name) == path


MISTAKES = {
    ("alhpa", 1): "unknown option '--alhpa'. Did you mean '--alpha'?",
    ("aggregatr", "krum"): "unknown option '--aggregatr'. Did you mean '--aggregator'?",
    ("roudns", 3): "unknown option '--roudns'. Did you mean '--rounds'?",
    ("aggregator.num_byzantin", 3): "unknown option '--aggregator.num-byzantin'.",
    ("aggregator", "krumm"): "--aggregator: there is no aggregator 'krumm'. Did you mean 'krum'?",
    ("aggregator", "krum"): "krum needs num_byzantine: f >= 0",
    ("aggregator", "krum(2)"): "krum takes no values by place, got krum(2)",
    ("aggregator", "krum(num_byzantine=2"): "'(' was never closed",
    ("aggregator", "krum(num_byzantin=2)"): "krum takes no 'num_byzantin'. Did you mean",
    ("aggregator", "krum(num_byzantine=two)"): "must be an integer, got 'two'",
    ("aggregator", "sign_flip"): "there is no aggregator 'sign_flip'",
    ("aggregator", "nnm(mean, aggregator=mean, num_byzantine=1)"): "got aggregator twice",
    ("aggregator", 3): "--aggregator must be an aggregator or none, got 3",
    ("partition", "dirichlt"): "there is no partition 'dirichlt'. Did you mean 'dirichlet'?",
    ("algorithm", "fedprx"): "there is no algorithm 'fedprx'. Did you mean 'fedprox'?",
    ("algorithm", "fedavg(mlp)"): "fedavg takes no values by place",
    ("algorithm", "fedavg(loss=cross_entropy)"): "loss is what the experiment gives to fedavg",
    ("client_optimizer", "sgdd(0.1)"): "there is no optimizer 'sgdd'. Did you mean 'sgd'?",
    ("client_optimizer", "adam"): "adam needs learning_rate",
    ("client_optimizer", 0.1): "--client-optimizer must be an optimizer, got 0.1",
    ("model", "nowhere.py:Net"): "names no file: there is no nowhere.py",
    ("alpha", "abc"): "--alpha must be a number, got 'abc'.",
    ("learning_rate", 0.1): "--client-optimizer.learning-rate or --server.learning-rate",
    (
        "mu",
        0.1,
    ): "--mu belongs to what is not chosen (fednova, fedprox, moon, prox): the partition is",
    (
        "width",
        "autos",
    ): "must be an integer or \"auto\", got 'autos'. Did you mean",
    (
        "algorithm",
        ("fedavg", "fedprox"),
    ): "must be an algorithm, got a list of 2",
    ("batching", 3): "--batching must be a batching, got 3",
    ("activation", 3): "--activation must be a function, got 3",
    ("server.nesterov", (True, False)): "must be true or false, got a list of 2 values",
    ("shuffle", "epochs"): "Did you mean 'epoch'?",
    ("num_epochs", True): "--num-epochs must be a number or none, got True",
}


@pytest.mark.parametrize(("setting", "message"), MISTAKES.items(), ids=lambda x: str(x)[:40])
def test_mistakes_are_told(setting, message):
    with pytest.raises(ValueError) as error:
        chosen(dict([setting]))
    assert message in str(error.value)
    assert "fedjax_sim." not in str(error.value)

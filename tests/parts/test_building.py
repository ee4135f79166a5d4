"""Every public part can be written as text, and mistakes are told in its own names."""

import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import base, parts
from fedjax_sim.clients import Optimizer, Rate
from fedjax_sim.parts import finding
from part_texts import ONE, OWN, TEXTS, UNFINISHED, WITHOUT


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mine.py"
    path.write_text(OWN)
    return path


MODEL = fs.models.logistic(3)
KNOWN = {
    base.Model: MODEL,
    base.Loss: fs.metrics.cross_entropy,
    "num_classes": 3,
    "num_outputs": 3,
    "vocab_size": 90,
    "num_rounds": 9,
}


def population() -> fs.FederatedData:
    rng = np.random.default_rng(0)
    examples = {"x": rng.normal(size=(35, 6)).astype(np.float32), "y": rng.integers(0, 3, 35)}
    return fs.federate(examples, np.split(np.arange(35), 7))


HISTORY = {"server": fs.servers.with_history(fs.servers.server_optimizer(optax.sgd(1.0)))}


def inside(kind: type, text: str, part: Any) -> base.Algorithm:
    """An algorithm around a part."""
    given: dict[str, Any] = {
        "rule": fs.clients.local_sgd(MODEL, optax.sgd(0.1), loss=fs.metrics.cross_entropy),
        "sampler": fs.sampling.everyone(),
        "aggregator": fs.aggregators.mean(),
        "server": fs.servers.server_optimizer(optax.sgd(1.0)),
        "batching": fs.Batching(4),
    }
    if kind is base.Attack:
        given |= {"attack": part, "malicious": [0, 1]}
    elif kind is base.Uplink:
        given |= {"uplink": part}
    elif part.__class__ is base.ClientRule and "poisoning" in text:
        given |= {"rule": fs.clients.malicious(given["rule"], part, [0])} | HISTORY
    elif kind is base.Noise:
        part = fs.aggregators.private_mean(part, max_norm=1.0, expected_size=7)
        given |= {"aggregator": part}
    elif kind is base.Server and "history" in text:
        message = fs.clients.adapt(
            given["rule"], message=lambda m: m._replace(shared=m.shared.params)
        )
        given |= {"rule": message, "server": part}
    elif text.startswith("malicious"):
        given |= {"rule": part} | HISTORY
    else:
        names = {base.ClientRule: "rule", base.Sampler: "sampler", base.Server: "server"}
        given |= {names.get(kind, "aggregator"): part}
    return fs.engine.federated(**given)


def test_every_public_part_is_among_the_texts():
    for contract, texts in TEXTS.items():
        written = {text.partition("(")[0] for text in texts}
        assert parts.find(contract).keys() - WITHOUT.keys() <= written, contract
    assert TEXTS.keys() == {*parts.CONTRACTS.values()}


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in TEXTS.items() for text in texts]
)
def test_a_part_is_built_from_text(own, kind, text):
    part = parts.build(text.format(own=own, one=ONE), kind, known=KNOWN)
    assert isinstance(part, kind)
    if kind in (base.Model, base.ClientMetric) or text.startswith(UNFINISHED):
        return
    algorithm = part if kind is base.Algorithm else inside(kind, text, part)
    data, key = population(), jax.random.key(0)
    params = MODEL.init(key, data.examples["x"][:1])

    def two_rounds(key: jax.Array) -> Any:
        state = algorithm.init(key, params, data)
        for r in range(2):
            state, info = algorithm.step(jax.random.fold_in(key, r), state, data)
        return algorithm.params(state), info.status

    shapes, _ = jax.eval_shape(two_rounds, key)  # what runs is tested where the part is
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)


def test_two_rounds_of_parts_in_parts_are_those_of_python(own):
    text = (
        "averaging(worker_momentum(local_sgd(adam(0.05)), momentum=0.5), batching=Batching(4), "
        f"aggregator=bucketing('{own}:halved'(geometric_median()), bucket_size=2), "
        "server=sgd(0.5), sampler=uniform(6), attack=chain(gaussian(0.1), little_is_enough), "
        "malicious=[0, 3])"
    )
    rule = fs.clients.local_sgd(MODEL, optax.adam(0.05), loss=fs.metrics.cross_entropy)
    halved = finding.own(f"{own}:halved")
    same = fs.algorithms.averaging(
        fs.clients.worker_momentum(rule, momentum=0.5),
        batching=fs.Batching(4),
        aggregator=fs.aggregators.bucketing(
            halved(fs.aggregators.geometric_median()), bucket_size=2
        ),
        server=optax.sgd(0.5),
        sampler=fs.sampling.uniform(6),
        attack=fs.attacks.chain(fs.attacks.gaussian(0.1), fs.attacks.little_is_enough()),
        malicious=[0, 3],
    )
    data, key = population(), jax.random.key(0)
    params = MODEL.init(key, data.examples["x"][:1])
    found, expected = (
        fs.run(algorithm, params, data, key=key, num_rounds=2).params
        for algorithm in (parts.build(text, base.Algorithm, known=KNOWN), same)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("sgd(0.1)", Optimizer, None),
        ("optax.chain(clip_by_global_norm(1.0), adam(cosine_decay_schedule(0.1, 9)))", Optimizer,
         None),
        ("over_rounds(adamw, learning_rate=cosine_decay_schedule(0.1, 9))", Optimizer, None),
        ("adam(0.1)", Optimizer, None),
        ("0.25", Rate, 0.25),
        (0.25, Rate, 0.25),
        ("cosine_decay_schedule(0.5, 10)", Rate, 0.5),
        ("Batching(4, num_epochs=2)", fs.Batching, fs.Batching(4, num_epochs=2)),
        (parts.parse("Batching(4, num_epochs=2)"), Any, fs.Batching(4, num_epochs=2)),
        ({"batch_size": 4, "num_epochs": 2}, fs.Batching, fs.Batching(4, num_epochs=2)),
        ("cross_entropy", base.Loss, fs.metrics.cross_entropy),
        (fs.metrics.cross_entropy, base.Loss, fs.metrics.cross_entropy),
        ("relu", base.Loss | None, ValueError),
    ],
)  # fmt: skip
def test_what_is_no_contract_is_built_too(text, kind, value):
    if value is ValueError:
        with pytest.raises(ValueError, match="there is no function 'relu'"):
            parts.build(text, kind)
        return
    found = parts.build(text, kind, known=KNOWN)
    if callable(found) and isinstance(value, float):
        found = float(found(0))
    if value is None:
        found = found(3) if "over_rounds" in text else found
        assert isinstance(found, optax.GradientTransformation)
    else:
        assert found == value


MISTAKES = {
    "krumm": "there is no Aggregator 'krumm'. Did you mean 'krum'?",
    "krum(num_byzantin=2)": "krum takes no 'num_byzantin'. Did you mean 'num_byzantine'?",
    "krum": "krum needs num_byzantine: f >= 0",
    "krum(num_byzantine=-1)": "aggregator: num_byzantine must be >= 0, got -1",
    "krum(num_byzantine=two)": "num_byzantine must be an integer, got 'two'",
    "krum(num_byzantine=2": "'(' was never closed",
    "mean(3)": "mean takes 0 by place, got mean(3)",
    "nnm(mean, aggregator=mean, num_byzantine=1)": "got aggregator twice, by place and by name",
    "nnm(krumm, num_byzantine=1)": "aggregator.aggregator: there is no Aggregator 'krumm'",
    "nnm(sign_flip, num_byzantine=1)": "there is no Aggregator 'sign_flip'",
    "nnm(num_byzantine=1)": "nnm needs aggregator:",
    "geometric_median(start=middel)": "unknown start 'middel'. Did you mean 'middle'?",
    "missing.py:rule": "there is no missing.py",
    "no_module:rule": "names no module that can be imported",
    "{own}:halvd": "has no function 'halvd' of its own. Did you mean 'halved'?",
    "{own}:nothing": "must make Aggregator, got 3",
    "{own}:halved(mean, factr=2)": "halved takes no 'factr'. Did you mean 'factor'?",
    "mean(3 if x else y)": "is neither a value nor a part",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_told(own, text):
    with pytest.raises((ValueError, TypeError)) as error:
        parts.build(text.format(own=own, one=ONE), base.Aggregator, known=KNOWN, where="aggregator")
    shown = textwrap.shorten(str(error.value), 10_000)
    assert MISTAKES[text] in shown
    assert "fedjax_sim." not in shown and "<function" not in shown

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

OWN = '''
import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_sim import aggregators


def halved(aggregator, *, factor=0.5):
    """Without annotations."""
    def apply(key, state, updates, weights):
        return aggregator.apply(key, state, jax.tree.map(lambda u: factor * u, updates), weights)

    return aggregator._replace(apply=apply)


def nothing():
    return 3


def squared(outputs, labels):
    return (outputs[:, 0] - labels) ** 2


def penalty(params):
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


def accuracy(params):
    return jnp.float32(0.5)


def init(key, inputs):
    return {"w": jnp.zeros((6, 3))}


def apply(params, inputs):
    return inputs @ params["w"]


def same(message):
    return message


def brier(outputs, labels, mask):
    return jnp.float32(0.5)


def objective(leaves, batch, key, message):
    raise NotImplementedError


class Net(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(self.width)(x)))
'''

ONE = "{x: [[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]], y: [1]}"
# Every public part, with what it needs; {own} is a file of the user's, {one} an example.
TEXTS: dict[type, list[str]] = {
    base.Aggregator: [
        "arc(mean, num_byzantine=1)",
        "bucketing(geometric_median, bucket_size=2)",
        "bulyan(num_byzantine=1)",
        "caf(num_byzantine=1)",
        "centered_clipping(radius=1.0)",
        "clipped_clustering(num_remembered=10)",
        "common_descent",
        "coordinate_median",
        "dnc(num_byzantine=1)",
        "flame",
        "fltrust",
        "foolsgold",
        "geometric_median(start=zero)",
        "krum(num_byzantine=1)",
        "mda(num_byzantine=1)",
        "meamed(num_byzantine=1)",
        "mean",
        "monna(num_byzantine=1)",
        "multi_krum(num_byzantine=1, num_selected=3)",
        "nnm(krum(num_byzantine=1), num_byzantine=1)",
        "norm_clipping(mean(), max_norm=1/2)",
        "signguard(lower=0.2)",
        "smea(num_byzantine=1)",
        "trimmed_mean(num_byzantine=1)",
        "uniform_mean",
        "nnm('{own}:halved'(trimmed_mean(num_byzantine=1), factor=0.1), num_byzantine=1)",
    ],
    base.Attack: [
        "adaptive(inner_product, krum(num_byzantine=1), strengths=[0.5, 2])",
        "chain(gaussian(0.1), sign_flip)",
        "choice([gaussian(0.1), sign_flip(scale=2.0), no_attack], 1)",
        "delayed(sign_flip, num_rounds=1)",
        "deviation(1.5, direction=unit)",
        "fang_krum(krum(num_byzantine=1))",
        "fang_trimmed_mean",
        "free_rider",
        "gaussian(0.1)",
        "inner_product(0.5)",
        "little_is_enough",
        "mimic(warmup=2)",
        "min_max(knows=own)",
        "min_sum",
        "monitored(sign_flip, accuracy='{own}:accuracy')",
        "neurotoxin(0.1)",
        "no_attack",
        "scaling(2.0)",
        "sign_flip",
    ],
    base.Sampler: [
        "by_weight(3, weights=[1, 2, 3, 1, 1, 1, 1])",
        "everyone",
        "uniform(5)",
        "with_root(uniform(5))",
    ],
    base.Uplink: ["chain(clip(1.0), identity)", "clip(0.5)", "identity"],
    base.Server: ["server_optimizer(adam(0.1))", "with_history(server_optimizer(sgd(1.0)))"],
    base.ClientRule: [
        "adapt(local_sgd(sgd(0.1)), message='{own}:same')",
        "alternating_poisoning(sgd(0.1), targets={one}, boost=2.0)",
        "ditto(sgd(0.1), personal_learning_rate=0.1, pull=1.0)",
        "local_sgd(sgd(0.1, momentum=0.9), regularizer='{own}:penalty')",
        "local_steps('{own}:objective', sgd(0.1))",
        "malicious(local_sgd(sgd(0.1)), stealthy_poisoning(sgd(0.1), "
        "targets={one}, boost=2.0), [0, 1])",
        "prox(sgd(0.1), mu=0.1)",
        "scaffold(learning_rate=cosine_decay_schedule(0.1, 10))",
        "stealthy_poisoning(sgd(0.1), targets={one}, boost=2.0)",
        "targeted_poisoning(sgd(0.1), targets={one}, boost=2.0)",
        "worker_momentum(local_sgd(adamw(0.1)), momentum=0.9)",
    ],
    base.Model: [
        "build(mlp)",
        "char_lstm(hidden=8)",
        "emnist_cnn(dropout=[0, 0])",
        "freeze(mlp, 'dense_0/*')",
        "from_functions('{own}:init', '{own}:apply')",
        "from_linen('{own}:Net'(width=5))",
        "lenet(channels=[2, 3], hidden=4)",
        "lens_cnn(activation=tanh)",
        "logistic(init=zeros)",
        "mixed_precision(mlp(hidden=[8]), dtype=bfloat16)",
        "mlp(hidden=[8], activation=gelu)",
        "mnist_cnn",
        "scaled_outputs(mlp, shift=[0, 0, 1], scale=2.0)",
        "simple_cnn",
    ],
    base.ClientMetric: [
        "calibration_error(num_bins=5)",
        "each_client('{own}:brier')",
        "f1(micro)",
    ],
    base.Algorithm: [
        "agnostic(optimizer=sgd(0.1), ascent=Ascent(0.01), batch_size=4)",
        "agnostic_fedavg(client_optimizer=sgd(0.1), ascent=Ascent(0.01), batching=Batching(4))",
        "averaging(worker_momentum(local_sgd(sgd(0.1)), momentum=0.9), batching=Batching(4))",
        "ditto(client_optimizer=sgd(0.1), personal_learning_rate=0.1, pull=1.0, "
        "batching=Batching(4))",
        "drfa(client_optimizer=sgd(0.1), mixture_step_size=0.1, cohort_size=3, "
        "batching=Batching(4, num_steps=3))",
        "fair_flearn_afl(learning_rate=0.1, mixture_step_size=0.1)",
        "fedavg(client_optimizer=sgd(0.1), batching=Batching(4), sampler=uniform(5), "
        "aggregator=krum(num_byzantine=1), attack=little_is_enough, malicious=[0])",
        "feddyn(alpha=0.1, client_optimizer=sgd(0.1), batching=Batching(4))",
        "federated(rule=local_sgd(sgd(0.1)), sampler=everyone, aggregator=mean, "
        "server=server_optimizer(sgd(1.0)), batching=Batching(4), uplink=clip(1.0))",
        "fedavgm(client_optimizer=sgd(0.1), batching=Batching(4))",
        "fedadam(client_optimizer=sgd(0.1), batching=Batching(4), server_learning_rate=0.1)",
        "fedyogi(client_optimizer=sgd(0.1), batching=Batching(4))",
        "fedadagrad(client_optimizer=sgd(0.1), batching=Batching(4))",
        "fedmgda(client_optimizer=sgd(0.1), server_learning_rate=1.0, batching=Batching(4))",
        "fedprox(mu=0.1, client_optimizer=adamw(cosine_decay_schedule(0.1, 10)), "
        "batching={{batch_size: 4, num_epochs: 2}})",
        "q_fedavg(q=1.0, client_learning_rate=cosine_decay_schedule(0.1, 10), "
        "batching=Batching(4))",
        "scaffold(client_learning_rate=0.1, batching=Batching(4))",
        "term(t=1.0, client_optimizer=sgd(0.1), batching=Batching(4))",
    ],
}
UNFINISHED = ("local_steps", "scaffold(learning_rate")
"""Rules that need an objective, or a server, of their own."""
WITHOUT = {
    "from_nnx": "takes a module that is made with keys of its own",
    "pfnm": "needs a model of bare layers, which is below",
}


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

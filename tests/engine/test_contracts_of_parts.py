"""A part that breaks its contract is refused when it is traced, by name and with the right form."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.base import Upload
from fedjax_sim.engine import contracts
from fedjax_sim.ops import trees

KEY = jax.random.key(3)
DATA = fs.federate(
    {"x": np.ones((6, 2), np.float32), "y": np.zeros(6, np.int32)}, np.split(np.arange(6), 3)
)
MODEL = fs.models.logistic(2)
PARAMS = MODEL.init(KEY, DATA.examples["x"])
PARTS: dict[str, Any] = {
    "rule": fs.clients.local_sgd(MODEL, optax.sgd(0.1), loss=fs.metrics.cross_entropy),
    "sampler": fs.sampling.uniform(2),
    "aggregator": fs.aggregators.mean(),
    "server": fs.servers.server_optimizer(optax.sgd(1.0)),
    "batching": fs.Batching(2),
}


def traced(**parts: Any) -> None:
    """Compose and trace a round; nothing is compiled."""
    algorithm = fs.engine.federated(**(PARTS | {"width": 1} | parts))
    state = jax.eval_shape(algorithm.init, KEY, PARAMS, DATA)
    jax.eval_shape(algorithm.step, KEY, state, DATA)


def rule(**changes: Any) -> dict[str, Any]:
    return {"rule": PARTS["rule"]._replace(**changes)}


def finishing(change: Any) -> dict[str, Any]:
    """The rule whose `finish` returns change(client_state, upload, info)."""

    def finish(*args: Any) -> Any:
        return change(*PARTS["rule"].finish(*args))

    return rule(finish=finish)


def uploading(**fields: Any) -> dict[str, Any]:
    return finishing(lambda state, upload, info: (state, upload._replace(**fields), info))


def sampling(change: Any) -> dict[str, Any]:
    """The sampler that returns change(state, cohort)."""
    part = PARTS["sampler"]
    return {"sampler": part._replace(apply=lambda *args: change(*part.apply(*args)))}


def serving(change: Any) -> dict[str, Any]:
    part = PARTS["server"]
    return {"server": part._replace(apply=lambda *args: change(*part.apply(*args)))}


def broadcasting(change: Any) -> dict[str, Any]:
    """The server that sends change(message)."""
    part = PARTS["server"]
    return {"server": part._replace(broadcast=lambda *args: change(part.broadcast(*args)))}


def summing(change: Any) -> dict[str, Any]:
    """The mean that returns change(state, aggregate, info), of a sum and of a stack."""
    part = PARTS["aggregator"]
    return {"aggregator": part._replace(from_sum=lambda *args: change(*part.from_sum(*args)))}


def stacking(change: Any) -> dict[str, Any]:
    part = fs.aggregators.coordinate_median()
    return {"aggregator": part._replace(apply=lambda *args: change(*part.apply(*args)))}


def attacking(change: Any) -> dict[str, Any]:
    part = fs.attacks.sign_flip()
    attack = part._replace(apply=lambda *args: change(*part.apply(*args)))
    return {"attack": attack, "malicious": [0]}


def linking(change: Any = None, **fields: Any) -> dict[str, Any]:
    part = fs.uplink.clip(1.0)
    if change is not None:
        part = part._replace(apply=lambda *args: change(*part_apply(*args)))
    part_apply = fs.uplink.clip(1.0).apply
    return {"uplink": part._replace(**fields)}


def widened(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.stack([x, x]), tree)


def halved(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float16), tree)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    # What is no such part at all.
    "rule": ({"rule": MODEL}, "rule must be a ClientRule, got a Model"),
    "sampler": ({"sampler": 10}, "sampler must be a Sampler, got 10"),
    "aggregator": ({"aggregator": fs.aggregators.mean}, r"the function mean: call it, mean\(\)"),
    "batching": ({"batching": 32}, r"batching must be a Batching, got 32. Such as fs.Batching"),
    # Rules.
    "step": (
        rule(step=lambda key, work, message, batch: work._replace(params=halved(work.params))),
        r"rule.step must give the work.*float32\[2\] for 'params/bias', got float16\[2\]",
    ),
    "step, structure": (
        rule(step=lambda key, work, message, batch: work.params),
        "rule.step must give the work in the structure",
    ),
    "finish": (
        finishing(lambda state, upload, info: (upload, info)),
        r"rule.finish must return \(client_state, Upload, info\), got a tuple of 2",
    ),
    "finish, upload": (
        finishing(lambda state, upload, info: (state, upload.update, info)),
        r"rule.finish must give an Upload\(update, weight\) second, got a dict",
    ),
    "finish, state": (
        finishing(lambda state, upload, info: (upload.update, upload, info)),
        "rule.finish must give the client_state in the structure",
    ),
    "update": (
        uploading(update={"w": jnp.zeros(2, jnp.int32)}),
        r"rule.finish must give the update as arrays of floating point, got int32\[2\] for 'w'",
    ),
    "weight": (
        uploading(weight=jnp.ones(3)),
        r"rule.finish must give the weight as one number, a scalar, got float32\[3\]",
    ),
    "weight, none": (uploading(weight=None), "the weight as one number, a scalar, got None"),
    "weight, truth": (uploading(weight=jnp.bool_(True)), r"the weight.*got bool\[\]"),
    "loss": (uploading(loss=jnp.ones((2, 1))), r"rule.finish must give the loss.*float32\[2, 1\]"),
    "statistics": (
        uploading(statistics={"mean": jnp.ones(2)}),
        "rule.finish must give the statistics in the structure",
    ),
    "info": (
        finishing(lambda state, upload, info: (state, upload, None)),
        r"rule.finish must give info as a dict of arrays, \{\} for none, got None",
    ),
    "info, text": (
        finishing(lambda state, upload, info: (state, upload, {"name": "x"})),
        "rule.finish must give info as name -> array, got 'name': 'x'",
    ),
    # Samplers.
    "cohort": (
        sampling(lambda state, cohort: (state, cohort.ids)),
        r"sampler.apply must give a Cohort\(ids, mask\) second, got int32\[2\]",
    ),
    "ids": (
        sampling(lambda state, cohort: (state, cohort._replace(ids=cohort.ids * 1.0))),
        r"sampler.apply must give ids \[C\] of integers with C >= 1, got float32\[2\]",
    ),
    "no ids": (
        sampling(lambda state, cohort: (state, jax.tree.map(lambda x: x[:0], cohort))),
        r"C >= 1, got int32\[0\]",
    ),
    "mask": (
        sampling(lambda state, cohort: (state, cohort._replace(mask=cohort.mask * 1))),
        r"sampler.apply must give a mask \[C\] of truth values, bool\[2\].*got int32\[2\]",
    ),
    "sampler, state": (
        sampling(lambda state, cohort: (cohort.ids, cohort)),
        "sampler.apply must give the state in the structure",
    ),
    # Servers.
    "message": (
        broadcasting(lambda message: message.shared),
        "server.broadcast must give a Message, got a dict. Complete the draft",
    ),
    "message of one's own": (
        broadcasting(lambda message: fs.Message(message.shared)),
        "server.broadcast must keep the round, statistics and frozen leaves of its draft",
    ),
    "rows": (
        broadcasting(lambda message: message._replace(per_slot={"w": jnp.ones((3, 2))})),
        r"server.broadcast must give per_slot leaves.*\[2, ...\], got float32\[3, 2\] for 'w'",
    ),
    "bytes": (
        broadcasting(lambda message: message._replace(num_bytes=jnp.float32(1))),
        r"server.broadcast must give num_bytes \[2\], one number a slot, or None",
    ),
    "server, state": (
        serving(lambda state, info: (halved(state), info)),
        r"server.apply must give the state.*float32\[2\] for 'params/bias', got float16\[2\]",
    ),
    "server, info": (serving(lambda state, info: state), "server.apply must return"),
    # Aggregators.
    "aggregate of a sum": (
        summing(lambda state, aggregate, info: (state, aggregate["bias"], info)),
        r"aggregator must give an aggregate shaped like one update, bias: \[2\]",
    ),
    "aggregate": (
        stacking(lambda state, aggregate, info: (state, widened(widened(aggregate)), info)),
        r"aggregator must give.*kernel: \[2, 2\], got bias: \[2, 2, 2\]",
    ),
    "aggregate, scalars": (
        stacking(lambda state, x, info: (state, jax.tree.map(jnp.sum, x), info)),
        r"aggregator must give.*got bias: \[\], kernel: \[\]",
    ),
    "aggregator, state": (
        stacking(lambda state, aggregate, info: (aggregate, aggregate, info)),
        "aggregator.apply must give the state in the structure",
    ),
    "aggregator, info": (
        stacking(lambda state, aggregate, info: (state, aggregate)),
        r"aggregator.apply must return \(state, aggregate, info\), got a tuple of 2",
    ),
    "half a sum": (
        {"aggregator": fs.aggregators.mean()._replace(from_sum=None)},
        "aggregator must have both summand and from_sum, or neither",
    ),
    # Attacks.
    "attacked": (
        attacking(lambda state, updates, info: (state, trees.sum_rows(updates), info)),
        r"attack.apply must give the updates.*float32\[2, 2\] for 'bias', got float32\[2\]",
    ),
    "attacked, info": (
        attacking(lambda state, updates, info: (state, updates, 1.0)),
        "attack.apply must give info as a dict of arrays",
    ),
    # Uplinks.
    "sent": (
        linking(lambda state, sent, num_bytes, info: (state, halved(sent), num_bytes, info)),
        r"uplink.apply must give what is sent, without a receive,.*float32\[2\] for 'bias'",
    ),
    "bytes sent": (
        linking(lambda state, sent, num_bytes, info: (state, sent, sent, info)),
        "uplink.apply must give num_bytes as one number, a scalar, got a dict",
    ),
    "received": (
        linking(receive=lambda key, message, sent: sent["bias"]),
        "uplink.receive must give the update in the structure",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_its_contract_is_refused_by_name(name):
    parts, message = BROKEN[name]
    with pytest.raises((TypeError, ValueError), match=message):
        traced(**parts)


def test_parts_that_keep_their_contracts_are_not_refused():
    traced()
    traced(uplink=fs.uplink.clip(1.0), attack=fs.attacks.sign_flip(), malicious=[1])


def test_checks_leave_nothing_in_the_program(monkeypatch):
    def program() -> str:
        link, attack = fs.uplink.clip(1.0), fs.attacks.sign_flip()
        more: dict[str, Any] = {"uplink": link, "attack": attack, "malicious": [1], "width": 2}
        algorithm = fs.engine.federated(**PARTS, **more)
        state = jax.eval_shape(algorithm.init, KEY, PARAMS, DATA)
        text = str(jax.make_jaxpr(algorithm.step)(KEY, state, DATA))
        return re.sub("0x[0-9a-f]+", "", text)

    checked = program()
    for name in ("rule", "sampler", "aggregator", "server", "uplink", "attack"):
        monkeypatch.setattr(contracts, name, lambda part: part)
    assert program() == checked


@pytest.mark.parametrize(
    ("key", "data", "message"),
    [
        (1, DATA, r"key must be a typed JAX key, such as jax.random.key\(0\), got 1"),
        (np.zeros(2, np.uint32), DATA, r"jax.random.wrap_key_data\(key\), got uint32\[2\]"),
        (KEY, {"x": 1}, r"data must be .*FederatedData.* as federate\(examples, partition\)"),
        (KEY, DATA.examples["x"], r"data must be .*FederatedData.*got .*6, 2"),
    ],
    ids=["number", "old key", "dict", "array"],
)
def test_keys_and_data_that_are_none_are_refused(key, data, message):
    algorithm = fs.engine.federated(**PARTS)
    with pytest.raises(TypeError, match=message):
        algorithm.init(key, PARAMS, data)
    agnostic = fs.algorithms.agnostic(
        MODEL, optimizer=optax.sgd(0.1), ascent=fs.algorithms.Ascent(0.1)
    )
    with pytest.raises(TypeError, match=message):
        agnostic.init(key, PARAMS, data)
    with pytest.raises(TypeError, match=message):
        fs.run(algorithm, PARAMS, data, key=key, num_rounds=1)


def test_an_upload_needs_no_loss():
    assert Upload(PARAMS, 1.0).loss is None

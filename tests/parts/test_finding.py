"""Parts are found by the contract they return, the user's own as those of the package."""

import inspect
import json
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.parts import finding as parts

OWN = '''
"""A rule of one's own."""

import jax
import jax.numpy as jnp

from fedjax_sim.base import Aggregator, Array, Sampler


def middle(low: float = 0.25, *, high: float | Array) -> Aggregator:
    """The mean of two quantiles.

    Args:
        low, high: which ones, in [0, 1].
    """

    def apply(key, state, updates, weights):
        def of(leaf):
            rows = jnp.where((weights > 0).reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, jnp.nan)
            return (jnp.nanquantile(rows, low, 0) + jnp.nanquantile(rows, high, 0)) / 2

        return state, jax.tree.map(of, updates), {}

    return Aggregator(lambda update: (), apply)


def untyped():
    return middle(high=0.75)
'''


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "my_rules.py"
    path.write_text(OWN)
    return path


def test_every_contract_is_known():
    assert parts.CONTRACTS["Aggregator"] is fs.Aggregator
    kinds = {"Sampler", "ClientRule", "Uplink", "Attack", "Server", "Algorithm", "Model"}
    kinds |= {"ClientMetric", "Noise"}
    assert set(parts.CONTRACTS) == kinds | {"Aggregator"}


@pytest.mark.parametrize(
    ("contract", "some"),
    [
        (fs.Aggregator, {"mean": fs.aggregators.mean, "krum": fs.aggregators.krum}),
        (fs.Uplink, {"clip": fs.uplink.clip}),
        (fs.Sampler, {"uniform": fs.sampling.uniform}),
        (fs.Algorithm, {"fedavg": fs.algorithms.fedavg, "feddyn": fs.algorithms.feddyn}),
        (fs.Model, {"mlp": fs.models.mlp}),
    ],
)
def test_parts_of_the_package_are_found(contract, some):
    found = parts.find(contract)
    assert {name: found[name] for name in some} == some
    assert not any(name.startswith("_") for name in found)


def test_what_a_part_takes_is_read_from_its_code():
    taken = parts.options(fs.aggregators.trimmed_mean)
    assert taken["num_byzantine"].default is inspect.Parameter.empty
    assert "f" in taken["num_byzantine"].help
    taken = parts.options(fs.algorithms.fedavg)
    assert taken["loss"].default is fs.metrics.cross_entropy
    # What is passed on to the engine is named as well.
    assert set(fs.engine.Options.__annotations__) <= set(taken)
    assert taken["mesh"].default is None


def test_a_part_in_a_file_of_ones_own_is_no_different(own):
    factory = parts.own(f"{own}:middle")
    low, high = parts.options(factory).values()
    assert (low.default, high.default) == (0.25, inspect.Parameter.empty)
    assert low.help == high.help == "which ones, in [0, 1]."
    data = fs.federate({"x": np.eye(6), "y": np.arange(6) % 2}, np.split(np.arange(6), 3))
    model = fs.models.logistic(2)
    algorithm = fs.algorithms.fedavg(
        model,
        client_optimizer=optax.sgd(0.1),
        batching=fs.Batching(2),
        aggregator=factory(high=0.75),
    )
    params = model.init(jax.random.key(0), jnp.zeros((1, 6)))
    result = fs.run(algorithm, params, data, key=jax.random.key(1), num_rounds=2)
    assert (np.asarray(result.info.status) == 0).all()


def test_a_module_is_named_like_a_file(own, monkeypatch):
    monkeypatch.syspath_prepend(own.parent)
    assert parts.own("my_rules:middle").__name__ == "middle"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:rule", "names no module that can be imported"),
        ("missing.py:rule", "there is no missing.py"),
        ("{own}:midle", r"no function 'midle' of its own\. Did you mean 'middle'"),
    ],
)
def test_mistakes_are_named(own, name, message):
    with pytest.raises(ValueError, match=message):
        parts.own(name.format(own=own))


def test_every_part_describes_what_it_takes():
    """Help for an option comes from the docstring alone."""
    silent = {
        f"{factory.__name__}({option.name})"
        for contract in parts.CONTRACTS.values()
        for factory in parts.find(contract).values()
        for option in parts.options(factory).values()
        if not option.help
    }
    assert silent == set(), textwrap.shorten(str(silent), 2000)


def test_a_file_takes_no_other_modules_name(tmp_path):
    path = tmp_path / "json.py"
    path.write_text(OWN)
    assert parts.own(f"{path}:middle").__name__ == "middle"
    assert sys.modules["json"] is json

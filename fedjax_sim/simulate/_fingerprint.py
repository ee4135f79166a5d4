"""By what a checkpoint tells whether it belongs to a run: digests of what the run is made of."""

import hashlib
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np

from fedjax_sim import __version__
from fedjax_sim.base import Algorithm, Key, Params, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.data.disk import Population
from fedjax_sim.engine.width import plain_tracing
from fedjax_sim.ops import trees
from fedjax_sim.simulate._evaluating import models_of, scores_of
from fedjax_sim.simulate._feeding import facts_of
from fedjax_sim.simulate.result import Evaluate

MADE_BY = "software"
"""Programs and computed numbers of different software cannot be compared."""


def fingerprint(
    algorithm: Algorithm,
    key: Key,
    params: Params,
    data: FederatedData | Population,
    evaluate: Evaluate | None,
    eval_data: Mapping[str, FederatedData | Population],
) -> dict[str, str]:
    """What a run is made of -> its digest, the same in every process and on every device.

    Cost: a trace of a round and of an evaluation, and a pass over the data.
    """
    seen: dict[int, str] = {}  # splits are often the training data once more

    def data_digest(data: FederatedData | Population) -> str:
        if id(data) not in seen:
            seen[id(data)] = _of_population(data) if isinstance(data, Population) else digest(data)
        return seen[id(data)]

    facts = facts_of(data)
    with plain_tracing():
        state = jax.eval_shape(lambda *args: algorithm.init(*args), key, params, facts)
        models = jax.eval_shape(models_of(algorithm), key, state, facts, np.int32(0))
        found = {
            MADE_BY: f"fedjax_sim {__version__}, jax {jax.__version__}, {jax.default_backend()}",
            "key": digest(jax.random.key_data(key)),
            "initial parameters": digest(params),
            "training data": data_digest(data),
            "algorithm": _of_program(lambda *args: algorithm.step(*args), key, state, facts),
        }
        if evaluate is not None:
            split = next(iter(eval_data.values()))
            scores = scores_of(evaluate, key.shape)
            found["evaluation"] = _of_program(scores, models, facts_of(split))
            if algorithm.adapted is not None:
                made = _of_program(models_of(algorithm), key, state, facts, np.int32(0))
                found["evaluation"] += made
    return found | {f"{name} data": data_digest(split) for name, split in eval_data.items()}


def differences(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of what differs, as far as the two can be compared."""
    computed = ("initial parameters", "algorithm", "evaluation")
    left_out = (MADE_BY, *computed * (saved.get(MADE_BY) != now.get(MADE_BY)))
    names = dict.fromkeys([*saved, *now])
    return [name for name in names if name not in left_out and saved.get(name) != now.get(name)]


def digest(tree: PyTree) -> str:
    """A digest of arrays: names, dtypes, shapes and every byte."""
    total = hashlib.sha256()
    for name, leaf in trees.flat_dict(tree).items():
        is_key = jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)
        array = np.ascontiguousarray(jax.random.key_data(leaf) if is_key else leaf)
        total.update(f"{name} {array.dtype} {np.shape(leaf)} ".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _of_population(population: Population) -> str:
    """Of one on disk: every client's size, and how large its files are."""
    files = sorted((path.name, path.stat().st_size) for path in population.path.iterdir())
    return hashlib.sha256(f"{files} {digest(population.sizes)}".encode()).hexdigest()


def _of_program(function: Callable, *args: PyTree) -> str:
    """A digest of what a function computes, as JAX traces it, and of the arrays it holds."""
    # A function of its own, which JAX has not traced before in another way.
    closed = jax.make_jaxpr(lambda *args: function(*args))(*args)
    text = re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr))  # addresses of functions
    return hashlib.sha256((text + digest(closed.consts)).encode()).hexdigest()

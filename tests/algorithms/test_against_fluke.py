"""Four rounds of fluke's methods, number by number.

fluke (makgyver/fluke, commit 261f1b1, version 0.8.1) in float64: `scripts/bench/peers/
fluke_numbers.py` runs it and writes golden/fluke.json. Clients of 2, 3 and 5 examples of two
numbers make three steps of rate 0.25 on all that they have, by cross-entropy and from a given
start; everybody takes part. Convex methods train one dense layer, the others one of two tanh below
it as well. Servers are "weighted" by size except those of SCAFFOLD and FedRep.

Settings in which fluke has the method of the paper:

* SCAFFOLD's "global_step" scales the mean model and not the mean update: it is 1.
* FedExP's step size weighs clients alike also where its mean does not: sizes are equal. It keeps
  the last model, and the mean of the last two was taken of it.
* FedSAM adds the gradient of the step before to that along which it climbs: it is cleared.
* FedROD's personal heads start as copies of the generic one in place of zero: that starts at zero.
* FedALA learns its weights until the loss stands still: its window is one step.
* FedProto averages prototypes without their counts, and pulls a class without one to zero: clients
  that have a class have as many of it, and all classes take part in the first round.
* FedRep and FedProto give one network to all clients, who train it in turn: each has its own.
* FedBABU fine-tunes what a client trained last, not the server's model: only rounds are compared.

Where it is another method, there is nothing to compare:

* FedNova averages models with weights p_k tau / tau_k, which do not sum to one when clients make
  unlike numbers of steps, where the paper averages updates: at a rate of 0 the model still moves.
* FedDyn adds <g_k, v> where the paper subtracts it, scaled by alpha once more, and the server adds
  the mean of g_k to the mean model in place of subtracting it over alpha.
* APFL takes the gradient of a copy, which never reaches the personal model: it only mixes.
* PerFedAVG subtracts the second gradient from the adapted model, and not from that of before.
* PFedMe pulls a personal model to itself, which is nothing at any "lamda", and sends it.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_sim import algorithms, models
from fedjax_sim.base import Algorithm, Model
from fedjax_sim.data import Batching, federate

KEY = jax.random.key(0)
FLUKE = json.loads((Path(__file__).parents[1] / "golden" / "fluke.json").read_text("utf-8"))
X = np.array(FLUKE.pop("x"), np.float32)
SGD = {"client_optimizer": optax.sgd(0.25)}
RATE = {"client_learning_rate": 0.25}

METHODS: dict[str, Callable[..., Algorithm]] = {
    "FedAVG": functools.partial(algorithms.fedavg, **SGD),
    "FedProx": functools.partial(algorithms.fedprox, mu=0.5, **SGD),
    "SCAFFOLD": functools.partial(algorithms.scaffold, **RATE),
    "FedLC": functools.partial(algorithms.fedlc, temperature=1.0, **SGD),
    "FedSAM": functools.partial(algorithms.fedsam, rho=0.5, **SGD),
    "FedExP": functools.partial(algorithms.fedexp, server_epsilon=1e-4, **SGD),
    "MOON": functools.partial(algorithms.moon, mu=1.0, temperature=0.5, **SGD),
    "Ditto": functools.partial(algorithms.ditto, pull=0.5, personal_learning_rate=0.25, **SGD),
    "FedPer": functools.partial(algorithms.fedper, **SGD),
    "FedRep": functools.partial(algorithms.fedrep, head_fraction=0.6, **SGD),
    "LGFedAVG": functools.partial(algorithms.lg_fedavg, **SGD),
    "FedBABU": functools.partial(algorithms.fedbabu, **SGD),
    "FedROD": functools.partial(algorithms.fedrod, **SGD),
    "FedALA": functools.partial(algorithms.fedala, adapted="last_layer", **SGD),
    "FedProto": functools.partial(algorithms.fedproto, pull=1.0, **SGD),
}
STEPS = {"FedRep": 5}


def in_shape(rows: dict[str, list[float]]) -> dict[str, Any]:
    """The layers of a network of two inputs, of which each row has the kernel and the bias."""
    layers = {name: np.float32(row).reshape(3, -1) for name, row in rows.items()}
    return {
        name: {"kernel": jnp.asarray(each[:2]), "bias": jnp.asarray(each[2])}
        for name, each in layers.items()
    }


def flat(layer: dict[str, jax.Array]) -> np.ndarray:
    """Kernel and bias as one row, for every leading index."""
    kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
    return np.concatenate([kernel.reshape(*bias.shape[:-1], -1), bias], axis=-1)


def network(start: dict[str, Any]) -> Model:
    *hidden, output = (len(layer["bias"]) for layer in start.values())
    return models.mlp(output, hidden=hidden, activation=jnp.tanh)


def agree(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FLUKE)
def test_four_rounds(name: str) -> None:
    case = FLUKE[name]
    start, sizes = in_shape(case["start"]), case["sizes"]
    number = sum(sizes)
    examples = {"x": X[:number], "y": np.array(case["labels"])[:number]}
    data = federate(examples, np.split(np.arange(number), np.cumsum(sizes)[:-1]))
    steps = Batching(None, num_steps=STEPS.get(name, 3))
    algorithm = METHODS[name](network(start), batching=steps)
    state, step = algorithm.init(KEY, start, data), jax.jit(algorithm.step)
    for r in range(4):
        state, _ = step(jax.random.fold_in(KEY, r), state, data)
    for layer, expected in case["shared"].items():
        agree(flat(algorithm.params(state)[layer]), expected)
    for layer, expected in case["own"].items():
        assert algorithm.personal_params is not None
        agree(flat(algorithm.personal_params(state)[layer]), expected)
    if "prototypes" in case:
        agree(state.server.prototypes.means, case["prototypes"])

"""Four rounds of the code of pFedMe's authors, which has a Per-FedAvg as well, number by number.

CharlieDinh/pFedMe, commit caf24b1, in float64: `scripts/bench/peers/pfedme_numbers.py` runs it and
writes golden/pfedme.json. One dense layer with cross-entropy; three clients of three examples make
three steps on all of them; everybody takes part. Where it is not the method of its paper:

* pFedMe has weight decay on personal models, 0.001, which is 0 here.
* It loses a personal model at the end of a round, by writing the client's copy of the global one
  over it, and evaluates that copy. The numbers are those of before.
* It weighs clients by size; sizes are equal.

Both gradients of its Per-FedAvg see all examples, so ours get every example twice, to deal out.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import algorithms, models
from fedjax_sim.base import Algorithm
from fedjax_sim.data import Batching, federate

NUMBERS = json.loads((Path(__file__).parents[1] / "golden" / "pfedme.json").read_text("utf-8"))
KEY = jax.random.key(0)
MODEL = models.logistic(3)
ALL = Batching(None, num_steps=3, shuffle="none")


def trained(algorithm: Algorithm, copies: int = 1) -> Any:
    """The state after four rounds, of clients that have each example so many times."""
    examples = {"x": np.array(NUMBERS["x"], np.float32), "y": np.array(NUMBERS["labels"])}
    data = federate(
        {name: np.repeat(each, copies, axis=0) for name, each in examples.items()},
        np.split(np.arange(9 * copies), 3),
    )
    start = {"kernel": jnp.array(NUMBERS["kernel"], jnp.float32), "bias": jnp.zeros(3)}
    state, step = algorithm.init(KEY, start, data), jax.jit(algorithm.step)
    for _ in range(4):
        state, _ = step(KEY, state, data)
    return state


def agree(params: dict[str, jax.Array], expected: Any) -> None:
    kernel, bias = np.asarray(params["kernel"]), np.asarray(params["bias"])
    found = np.concatenate([kernel.reshape(*bias.shape[:-1], 6), bias], axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_pfedme() -> None:
    algorithm = algorithms.pfedme(
        MODEL,
        pull=2.0,
        personal_learning_rate=0.125,
        client_learning_rate=0.25,
        num_personal_steps=2,
        beta=1.5,
        batching=ALL,
    )
    state = trained(algorithm)
    agree(algorithm.params(state), NUMBERS["pFedMe"]["shared"])
    assert algorithm.personal_params is not None
    agree(algorithm.personal_params(state), NUMBERS["pFedMe"]["own"])


def test_per_fedavg() -> None:
    algorithm = algorithms.per_fedavg(MODEL, alpha=0.5, client_learning_rate=0.25, batching=ALL)
    agree(algorithm.params(trained(algorithm, copies=2)), NUMBERS["Per-FedAvg"]["shared"])

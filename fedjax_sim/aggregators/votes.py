"""Votes, which are sums: the engine adds them up while it walks the cohort."""

import jax
import jax.numpy as jnp

from fedjax_sim.aggregators._sums import summed
from fedjax_sim.base import Aggregator, Array, Key, PyTree
from fedjax_sim.ops import trees
from fedjax_sim.ops.arguments import checked


@checked
def majority_vote() -> Aggregator:
    """The sign that most updates have, coordinate by coordinate: +1, -1, or 0 for a tie.

    Every client of positive weight has one vote; a coordinate of 0 has none. What comes of it is of
    the size of the server's learning rate alone, whatever the updates' is, so that a client cannot
    gain by sending a long one: less than half of the clients cannot turn a vote that all others
    agree in. With `uplink.sign(scaled=False)` it is signSGD with majority vote.

    Returns:
        An aggregator without state; the aggregate is 0 where all weights are 0.

    References:
        Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with Majority Vote is Communication
        Efficient and Fault Tolerant", ICLR 2019, algorithm 1.
    """

    def summand(key: Key, state: PyTree, slot: Array, update: PyTree, weight: Array) -> PyTree:
        return jax.tree.map(lambda u: jnp.where(weight > 0, jnp.sign(trees.wide(u)), 0), update)

    def from_sum(key: Key, state: PyTree, total: PyTree) -> tuple[PyTree, PyTree, dict[str, Array]]:
        return state, jax.tree.map(jnp.sign, total), {}

    return summed(summand, from_sum)

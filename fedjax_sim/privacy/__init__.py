"""Differential privacy of clients: what is added to sums, and what that is worth.

`aggregators.private_mean` clips, adds up and adds the noise; `algorithms.dp_fedavg` and `dp_ftrl`
bind it to the sampling that the accounting is for. The functions below need the extra `privacy`.

    accounting    epsilon, noise_multiplier: one from the other; rdp, epsilon_after: round by round;
                  sensitivity: for noise that hangs together
    noise         gaussian, laplace, tree, banded
    discrete      distributed_epsilon: integer noise of which clients add a part each, as
                  `aggregators.distributed_dp` has it; its samplers. Needs no extra
"""

from fedjax_sim.privacy.accounting import (
    epsilon,
    epsilon_after,
    noise_multiplier,
    orders,
    rdp,
    sensitivity,
)
from fedjax_sim.privacy.discrete import distributed_epsilon
from fedjax_sim.privacy.noise import banded, gaussian, laplace, tree

__all__ = [
    "banded",
    "distributed_epsilon",
    "epsilon",
    "epsilon_after",
    "gaussian",
    "laplace",
    "noise_multiplier",
    "orders",
    "rdp",
    "sensitivity",
    "tree",
]

"""What PFNM assumes before it has seen a neuron."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedjax_sim.base import Array
from fedjax_sim.ops import checks

PerLayer = float | Array | NDArray | Sequence[float] | Mapping[str, float | Array]
"""One number for all hidden layers, or one for each: in order for `pfnm`, by name for `fedma`."""


class Prior(NamedTuple):
    """A Beta-Bernoulli process over the neurons of a layer; numbers may be traced.

    What is far apart depends on how many weights a neuron is known by, and of the last hidden layer
    of `pfnm` these are few: sigma, sigma0 and gamma are one number or one for each hidden layer.

    sigma: variance of clients around the global neurons, > 0. Smaller: neurons must be more alike
        to be merged.
    sigma0: variance of the global neurons around their mean, > 0. Larger: more neurons.
    gamma: mass of the Beta process, > 0. Larger: more neurons.
    scale: factor, >= 0, of a neuron's log-odds log(m / (J - m)) when m of J clients share it: 1 as
        in the authors' code, 2 as their derivation gives it.
    popularity_cap: m counts as at most this, >= 1; 10 in the authors' code, where it punishes
        neurons that more than 10 clients share. None or infinity for no cap, as in the derivation.
    bias: prior mean of all biases in `pfnm`; 0.1 where they start at 0.1 as in the paper. In
        `fedma` all means are 0.
    """

    sigma: PerLayer
    sigma0: PerLayer
    gamma: PerLayer
    scale: float | Array = 1.0
    popularity_cap: float | Array | None = 10.0
    bias: float | Array = 0.1


class LayerPrior(NamedTuple):
    """The hyperparameters of one layer, scalars; see `Prior`."""

    sigma: Any
    sigma0: Any
    gamma: Any
    scale: Any
    popularity_cap: Any


def cap_of(prior: Prior) -> float | Array:
    """The cap as a number: infinity for none."""
    return np.inf if prior.popularity_cap is None else prior.popularity_cap


def check_common(prior: Prior) -> None:
    """Raise if what all layers share is out of range; traced values pass."""
    checks.in_range("scale", prior.scale, 0.0)
    cap = cap_of(prior)
    if checks.is_traced(cap) or cap != np.inf:
        checks.in_range("popularity_cap", cap, 1.0, hint="None is no cap.")

"""Which neurons of different networks are the same, and what they are together.

`pfnm` merges fully connected networks that were trained apart; `pfnm_stacked` is the same on
stacked arrays, to use inside jit, scan and vmap. `fedma` merges networks of any architecture layer
by layer, given which axes of their weights number the neurons of which layer (`neuron_axes` knows
it for the package's own), and `compact` leaves out what nobody uses. `matched_average` is the
simpler way that keeps a client's width; `assignment` is the exact linear assignment that all rest
on.

    networks      pfnm, pfnm_stacked: fully connected networks
    layerwise     fedma, compact: networks of any architecture, layer by layer
    averages      matched_average: at a client's width
    prior         Prior: how alike neurons must be to be merged, and how many there may be
    axes          neuron_axes: which axes number the neurons of which layer
    neurons       one layer, matched by coordinate descent over the clients
    assignment    assignment: the exact solver inside jit
"""

from fedjax_sim.matching.assignment import assignment
from fedjax_sim.matching.averages import matched_average
from fedjax_sim.matching.axes import Axes, neuron_axes
from fedjax_sim.matching.layerwise import LayerwiseMatching, Retrain, compact, fedma
from fedjax_sim.matching.networks import (
    Absent,
    Matching,
    layers_of,
    params_of,
    pfnm,
    pfnm_stacked,
    sub_network,
)
from fedjax_sim.matching.prior import Prior

__all__ = [
    "Absent",
    "Axes",
    "LayerwiseMatching",
    "Matching",
    "Prior",
    "Retrain",
    "assignment",
    "compact",
    "fedma",
    "layers_of",
    "matched_average",
    "neuron_axes",
    "params_of",
    "pfnm",
    "pfnm_stacked",
    "sub_network",
]

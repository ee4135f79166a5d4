"""Which neurons of different networks are the same, and what they are together.

`pfnm` merges networks that were trained apart; `pfnm_stacked` is the same on stacked arrays, to use
inside jit, scan and vmap; `matched_average` is the simpler way that keeps a client's width;
`assignment` is the exact linear assignment that all rest on.
"""

from fedjax_sim.matching.assignment import assignment
from fedjax_sim.matching.averages import matched_average
from fedjax_sim.matching.networks import Matching, pfnm, pfnm_stacked

__all__ = ["Matching", "assignment", "matched_average", "pfnm", "pfnm_stacked"]

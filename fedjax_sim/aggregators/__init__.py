"""How the server combines a cohort's updates: means, and rules that bear byzantine clients.

An aggregator is a pure function of stacked updates [C, ...] and weights [C]; see `base.Aggregator`.
To write your own, write `apply`; give `summand` and `from_sum` too if it is a sum, and the engine
never holds more than `width` updates.

The robust rules count every client of positive weight the same, unless they say otherwise, and need
all updates of a cohort at once: C times the memory of a model. `num_byzantine` is f, how many
clients of a cohort may send anything at all; it may be traced where that is said, and a rule that
cannot bear so many refuses when it is traced. Of fewer clients than expected (dropped, or not
there) a rule takes as many for byzantine as it can bear. Updates that are not finite never count.
"""

from fedjax_sim.aggregators.centers import caf, centered_clipping, geometric_median
from fedjax_sim.aggregators.coordinates import coordinate_median, meamed, trimmed_mean
from fedjax_sim.aggregators.descent import common_descent
from fedjax_sim.aggregators.filters import (
    NormHistory,
    clipped_clustering,
    dnc,
    flame,
    fltrust,
    foolsgold,
    signguard,
)
from fedjax_sim.aggregators.means import mean, uniform_mean
from fedjax_sim.aggregators.preaggregation import arc, bucketing, nnm, norm_clipping
from fedjax_sim.aggregators.selection import bulyan, krum, mda, monna, multi_krum, smea

__all__ = [
    "NormHistory",
    "arc",
    "bucketing",
    "bulyan",
    "caf",
    "centered_clipping",
    "clipped_clustering",
    "common_descent",
    "coordinate_median",
    "dnc",
    "flame",
    "fltrust",
    "foolsgold",
    "geometric_median",
    "krum",
    "mda",
    "meamed",
    "mean",
    "monna",
    "multi_krum",
    "nnm",
    "norm_clipping",
    "signguard",
    "smea",
    "trimmed_mean",
    "uniform_mean",
]

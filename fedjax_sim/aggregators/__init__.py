"""How the server combines a cohort's updates: means, and rules that tolerate Byzantine clients.

An aggregator is a pure function of stacked updates [C, ...] and weights [C]; see `base.Aggregator`.
To write your own, write `apply`; give `summand` and `from_sum` too if it is a sum, and the engine
never holds more than `width` updates.

The robust rules count every client of positive weight the same, unless they say otherwise, and need
all updates of a cohort at once: C times the memory of a model. `num_byzantine` is f, how many
clients of a cohort may send anything at all; it may be traced where that is said. A rule that does
not tolerate so many in a cohort of its size raises a ValueError when it is traced. If fewer clients
turn up than there are slots, it assumes the largest f <= `num_byzantine` that it tolerates among
them. Updates that are not finite never count.

    means             mean, uniform_mean: sums, not robust
    votes             majority_vote: the sign that most updates have, also a sum
    private           private_mean: clipped, with noise for differential privacy
    coordinates       coordinate_median, trimmed_mean, meamed: each coordinate by itself
    selection         krum, multi_krum, bulyan, mda, smea, monna: choose whole updates
    centers           geometric_median, centered_clipping, caf: the middle of the cohort
    filters           fltrust, foolsgold, flame, dnc, signguard, clipped_clustering: by direction,
                      sign or history
    preaggregation    norm_clipping, arc, nnm, bucketing: in front of any of them
    descent           common_descent: a direction that is good for every client
    secure            secure, distributed_dp: sums of which the server sees nothing else, and
                      private ones
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
from fedjax_sim.aggregators.private import AdaptiveClipping, PrivateState, private_mean
from fedjax_sim.aggregators.secure import distributed_dp, secure
from fedjax_sim.aggregators.selection import bulyan, krum, mda, monna, multi_krum, smea
from fedjax_sim.aggregators.votes import majority_vote

__all__ = [
    "AdaptiveClipping",
    "NormHistory",
    "PrivateState",
    "arc",
    "bucketing",
    "bulyan",
    "caf",
    "centered_clipping",
    "clipped_clustering",
    "common_descent",
    "coordinate_median",
    "distributed_dp",
    "dnc",
    "flame",
    "fltrust",
    "foolsgold",
    "geometric_median",
    "krum",
    "majority_vote",
    "mda",
    "meamed",
    "mean",
    "monna",
    "multi_krum",
    "nnm",
    "norm_clipping",
    "private_mean",
    "secure",
    "signguard",
    "smea",
    "trimmed_mean",
    "uniform_mean",
]

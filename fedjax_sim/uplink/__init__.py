"""What happens to ONE client's update on its way to the server; see `base.Uplink`.

It stands between the client rule and the aggregator: `federated(uplink=clip(1.0))`.

    clip           clip: no update is longer than a bound
    noise          gaussian_noise, laplace_noise: for privacy from the server itself
    combinators    chain, identity: several uplinks one after another, and none
"""

from fedjax_sim.uplink.clip import clip
from fedjax_sim.uplink.combinators import chain, identity
from fedjax_sim.uplink.noise import gaussian_noise, laplace_noise

__all__ = ["chain", "clip", "gaussian_noise", "identity", "laplace_noise"]

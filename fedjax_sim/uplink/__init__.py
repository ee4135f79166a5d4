"""What happens to ONE client's update on its way to the server; see `base.Uplink`.

It stands between the client rule and the aggregator: `federated(uplink=clip(1.0))`.

    clip           clip: no update is longer than a bound
    combinators    chain, identity: several uplinks one after another, and none
"""

from fedjax_sim.uplink.clip import clip
from fedjax_sim.uplink.combinators import chain, identity

__all__ = ["chain", "clip", "identity"]

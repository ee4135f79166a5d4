"""What happens to ONE client's update on its way to the server; see `base.Uplink`.

clip           no update longer than a bound
combinators    several uplinks one after another, and none
"""

from fedjax_sim.uplink.clip import clip
from fedjax_sim.uplink.combinators import chain, identity

__all__ = ["chain", "clip", "identity"]

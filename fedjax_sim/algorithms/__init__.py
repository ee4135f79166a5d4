"""Named algorithms: recipes that bind parts into the engine. Copy one to make your own."""

from fedjax_sim.algorithms.averaging import (
    ScaffoldState,
    ServerState,
    fedavg,
    scaffold,
    server_optimizer,
)
from fedjax_sim.algorithms.mixtures import AgnosticState, agnostic

__all__ = [
    "AgnosticState",
    "ScaffoldState",
    "ServerState",
    "agnostic",
    "fedavg",
    "scaffold",
    "server_optimizer",
]

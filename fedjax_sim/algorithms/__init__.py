"""Named algorithms: recipes that bind parts into the engine. Copy one to make your own."""

from fedjax_sim.algorithms.averaging import (
    RememberingState,
    ScaffoldState,
    ServerState,
    fedavg,
    remembering,
    scaffold,
    server_optimizer,
)
from fedjax_sim.algorithms.mixtures import AgnosticState, agnostic

__all__ = [
    "AgnosticState",
    "RememberingState",
    "ScaffoldState",
    "ServerState",
    "agnostic",
    "fedavg",
    "remembering",
    "scaffold",
    "server_optimizer",
]

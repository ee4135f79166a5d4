"""The server's side of a round: whom it asks, what it keeps, sends and does with the aggregate.

Most algorithms use `server_optimizer`; see `base.Server` and `base.Sampler` for the contracts.

    optimizer     server_optimizer: the aggregate is a gradient of an optax optimizer
    sharing       sharing: a rule of one's own, told by how its state begins and moves
    compression   compressed: the change of the model is sent, compressed
    history       with_history: clients are also told where the model was a round ago
    distillation  distil: a model learns to answer as several do together
    sampling      who takes part
"""

from fedjax_sim.servers.compression import CompressedState, compressed
from fedjax_sim.servers.distillation import Distilled, distil
from fedjax_sim.servers.history import HistoryState, with_history
from fedjax_sim.servers.optimizer import ServerState, server_optimizer, stepped
from fedjax_sim.servers.sharing import Served, sharing

__all__ = [
    "CompressedState",
    "Distilled",
    "HistoryState",
    "Served",
    "ServerState",
    "compressed",
    "distil",
    "server_optimizer",
    "sharing",
    "stepped",
    "with_history",
]

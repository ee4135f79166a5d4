"""Named algorithms: recipes that bind parts into the engine. Copy one to make your own."""

from fedjax_sim.algorithms.fairness import (
    DrfaState,
    WeightedState,
    common_descent,
    ditto,
    drfa,
    fedmgda,
    personal_evaluator,
    q_fedavg,
    term,
)
from fedjax_sim.algorithms.fedavg import (
    RememberingState,
    ScaffoldState,
    ServerState,
    fedavg,
    remembering,
    scaffold,
    server_optimizer,
)
from fedjax_sim.algorithms.mixtures import (
    AgnosticAveragingState,
    AgnosticState,
    FairFlearnState,
    agnostic,
    agnostic_fedavg,
    fair_flearn_afl,
)
from fedjax_sim.algorithms.pfnm import PfnmState, pfnm

__all__ = [
    "AgnosticAveragingState",
    "AgnosticState",
    "DrfaState",
    "FairFlearnState",
    "PfnmState",
    "RememberingState",
    "ScaffoldState",
    "ServerState",
    "WeightedState",
    "agnostic",
    "agnostic_fedavg",
    "common_descent",
    "ditto",
    "drfa",
    "fair_flearn_afl",
    "fedavg",
    "fedmgda",
    "personal_evaluator",
    "pfnm",
    "q_fedavg",
    "remembering",
    "scaffold",
    "server_optimizer",
    "term",
]

"""The engine: it composes parts into an Algorithm and names no concrete part.

Recipes in `algorithms` call `federated`; the rest serves them, and evaluations.

    round         federated: sample, broadcast, work locally, aggregate, update the server
    contracts     what parts must give back, checked when a round is traced
    local_work    clients batched into chunks, chunks into a scan, over devices
    width         how many clients train at once, measured where that matters
    evaluation    evaluator, personal_evaluator, cohort_loss: how well models serve clients
"""

from fedjax_sim.engine.evaluation import (
    CohortLoss,
    Evaluator,
    cohort_loss,
    evaluator,
    personal_evaluator,
)
from fedjax_sim.engine.round import FederatedState, Options, federated
from fedjax_sim.engine.width import Width

__all__ = [
    "CohortLoss",
    "Evaluator",
    "FederatedState",
    "Options",
    "Width",
    "cohort_loss",
    "evaluator",
    "federated",
    "personal_evaluator",
]

"""What ONE client does in a round. Nothing here is batched over clients; the engine does that.

A rule is `begin` (message -> work), `step` (one batch) and `finish` (work -> Upload); see
`base.ClientRule`. To write your own objective, copy `prox`: it is `local_sgd` plus one term. A rule
that reads another server's message, keeps something between rounds, or weighs its update otherwise,
is `adapt` around one that stands here. Malicious clients are rules as well: `malicious` says who
follows which.

    local_sgd    local_sgd; local_steps, mean_loss, gradient_of and at_round, of which it is made;
                 leafwise: the formula of a corrected step
    over_rounds  over_rounds: optimizers whose schedules count rounds
    prox         prox: FedProx
    scaffold     scaffold: gradients corrected by control variates
    sam          sharpness_aware: FedSAM
    dp_sgd       dp_sgd: gradients clipped example by example, and noised
    ditto        ditto: a personal model beside the one that is sent
    own_model    to_keep, kept_leaves, whole_leaves: a model that a client keeps between rounds
    local_parts  local_parts: leaves that stay with the client
    momentum     worker_momentum: send a running mean of one's updates
    adapt        adapt: a rule with other things to read, to keep and to send
    malicious    malicious; targeted_poisoning, stealthy_poisoning, alternating_poisoning: what
                 attackers do
"""

from fedjax_sim.clients.adapt import adapt
from fedjax_sim.clients.alternating_poisoning import alternating_poisoning
from fedjax_sim.clients.ditto import ditto
from fedjax_sim.clients.dp_sgd import dp_sgd
from fedjax_sim.clients.local_parts import LocalParts, local_parts
from fedjax_sim.clients.local_sgd import (
    Correction,
    Evaluated,
    Finished,
    Optimizer,
    Rate,
    Regularizer,
    Work,
    at_round,
    check_rate,
    gradient_of,
    leafwise,
    local_sgd,
    local_steps,
    mean_loss,
)
from fedjax_sim.clients.malicious import malicious
from fedjax_sim.clients.momentum import MomentumState, worker_momentum
from fedjax_sim.clients.over_rounds import over_rounds
from fedjax_sim.clients.own_model import kept_leaves, to_keep, whole_leaves
from fedjax_sim.clients.prox import prox
from fedjax_sim.clients.sam import sharpness_aware
from fedjax_sim.clients.scaffold import ControlledModel, scaffold
from fedjax_sim.clients.stealthy_poisoning import stealthy_poisoning
from fedjax_sim.clients.targeted_poisoning import targeted_poisoning

__all__ = [
    "ControlledModel",
    "Correction",
    "Evaluated",
    "Finished",
    "LocalParts",
    "MomentumState",
    "Optimizer",
    "Rate",
    "Regularizer",
    "Work",
    "adapt",
    "alternating_poisoning",
    "at_round",
    "check_rate",
    "ditto",
    "dp_sgd",
    "gradient_of",
    "kept_leaves",
    "leafwise",
    "local_parts",
    "local_sgd",
    "local_steps",
    "malicious",
    "mean_loss",
    "over_rounds",
    "prox",
    "scaffold",
    "sharpness_aware",
    "stealthy_poisoning",
    "targeted_poisoning",
    "to_keep",
    "whole_leaves",
    "worker_momentum",
]

"""What malicious clients send instead of their updates, knowing those of everybody else.

An attack stands between local work and aggregation: `federated(attack=..., malicious=ids)`.
Malicious clients collude and, unless a factory says otherwise, know every honest update. Attacks on
a client's own training are in `clients` (`malicious`), on its data in `poisoning`.

    own_update     sign_flip, scaling, gaussian, free_rider, neurotoxin, no_attack
    statistics     inner_product, little_is_enough, deviation; min_max and min_sum, which go as far
                   as goes unnoticed
    adaptive       fang_trimmed_mean, fang_krum, adaptive: against a rule that is known
    mimic          mimic: harmless updates that overweight one honest client
    combinators    chain, delayed, choice: attacks made of attacks
    monitoring     monitored: what a watchful server would see
"""

from fedjax_sim.attacks._crafting import Knowledge
from fedjax_sim.attacks.adaptive import adaptive, fang_krum, fang_trimmed_mean
from fedjax_sim.attacks.combinators import chain, choice, delayed
from fedjax_sim.attacks.mimic import MimicState, mimic
from fedjax_sim.attacks.monitoring import monitored
from fedjax_sim.attacks.own_update import (
    free_rider,
    gaussian,
    neurotoxin,
    no_attack,
    scaling,
    sign_flip,
)
from fedjax_sim.attacks.statistics import (
    Direction,
    deviation,
    inner_product,
    little_is_enough,
    min_max,
    min_sum,
)

__all__ = [
    "Direction",
    "Knowledge",
    "MimicState",
    "adaptive",
    "chain",
    "choice",
    "delayed",
    "deviation",
    "fang_krum",
    "fang_trimmed_mean",
    "free_rider",
    "gaussian",
    "inner_product",
    "little_is_enough",
    "mimic",
    "min_max",
    "min_sum",
    "monitored",
    "neurotoxin",
    "no_attack",
    "scaling",
    "sign_flip",
]

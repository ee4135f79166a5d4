"""Named algorithms, one a file, each as its paper states it. Copy one to make your own.

A recipe binds a client rule, a server and an aggregator into the engine. `averaging` is the general
one: any client rule, any server optimizer.
"""

from fedjax_sim.algorithms._ascent import Ascent, Domains
from fedjax_sim.algorithms._loss_weighted import WeightedState
from fedjax_sim.algorithms._private import PrivateRounds
from fedjax_sim.algorithms.agnostic import AgnosticState, agnostic
from fedjax_sim.algorithms.agnostic_fedavg import AgnosticAveragingState, agnostic_fedavg
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.algorithms.ditto import ditto
from fedjax_sim.algorithms.dp_fedavg import dp_fedavg
from fedjax_sim.algorithms.dp_ftrl import dp_ftrl
from fedjax_sim.algorithms.drfa import DrfaState, drfa
from fedjax_sim.algorithms.fair_flearn import FairFlearnState, fair_flearn_afl
from fedjax_sim.algorithms.fedavg import fedavg
from fedjax_sim.algorithms.fedbabu import fedbabu
from fedjax_sim.algorithms.fedbn import fedbn
from fedjax_sim.algorithms.feddyn import FedDynState, feddyn
from fedjax_sim.algorithms.fedmgda import fedmgda
from fedjax_sim.algorithms.fedopt import fedadagrad, fedadam, fedavgm, fedyogi
from fedjax_sim.algorithms.fedper import fedper
from fedjax_sim.algorithms.fedprox import fedprox
from fedjax_sim.algorithms.fedrep import fedrep
from fedjax_sim.algorithms.fedrod import fedrod
from fedjax_sim.algorithms.fine_tuned import fine_tuned
from fedjax_sim.algorithms.lg_fedavg import lg_fedavg
from fedjax_sim.algorithms.pfnm import PfnmState, pfnm
from fedjax_sim.algorithms.q_fedavg import q_fedavg
from fedjax_sim.algorithms.scaffold import ScaffoldState, scaffold
from fedjax_sim.algorithms.term import term

__all__ = [
    "AgnosticAveragingState",
    "AgnosticState",
    "Ascent",
    "Domains",
    "DrfaState",
    "FairFlearnState",
    "FedDynState",
    "PfnmState",
    "PrivateRounds",
    "ScaffoldState",
    "WeightedState",
    "agnostic",
    "agnostic_fedavg",
    "averaging",
    "ditto",
    "dp_fedavg",
    "dp_ftrl",
    "drfa",
    "fair_flearn_afl",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedavgm",
    "fedbabu",
    "fedbn",
    "feddyn",
    "fedmgda",
    "fedper",
    "fedprox",
    "fedrep",
    "fedrod",
    "fedyogi",
    "fine_tuned",
    "lg_fedavg",
    "pfnm",
    "q_fedavg",
    "scaffold",
    "term",
]

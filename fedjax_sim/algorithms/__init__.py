"""Named algorithms, one a file, each as its paper states it. Copy one to make your own.

A recipe binds a client rule, a server and an aggregator into the engine. `averaging` is the general
one: any client rule, any server optimizer.
"""

from fedjax_sim.algorithms._ascent import Ascent, Domains
from fedjax_sim.algorithms._loss_weighted import WeightedState
from fedjax_sim.algorithms._private import PrivateRounds
from fedjax_sim.algorithms.agnostic import AgnosticState, agnostic
from fedjax_sim.algorithms.agnostic_fedavg import AgnosticAveragingState, agnostic_fedavg
from fedjax_sim.algorithms.apfl import ApflState, apfl
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.algorithms.ditto import ditto
from fedjax_sim.algorithms.dp_fedavg import dp_fedavg
from fedjax_sim.algorithms.dp_ftrl import dp_ftrl
from fedjax_sim.algorithms.drfa import DrfaState, drfa
from fedjax_sim.algorithms.fair_flearn import FairFlearnState, fair_flearn_afl
from fedjax_sim.algorithms.fedala import FedAlaState, fedala
from fedjax_sim.algorithms.fedavg import fedavg
from fedjax_sim.algorithms.feddyn import FedDynState, feddyn
from fedjax_sim.algorithms.fedmgda import fedmgda
from fedjax_sim.algorithms.fedopt import fedadagrad, fedadam, fedavgm, fedyogi
from fedjax_sim.algorithms.fedproto import FedProtoState, Prototypes, fedproto
from fedjax_sim.algorithms.fedprox import fedprox
from fedjax_sim.algorithms.ifca import IfcaState, ifca
from fedjax_sim.algorithms.per_fedavg import per_fedavg
from fedjax_sim.algorithms.pfedme import pfedme
from fedjax_sim.algorithms.pfnm import PfnmState, pfnm
from fedjax_sim.algorithms.q_fedavg import q_fedavg
from fedjax_sim.algorithms.scaffold import ScaffoldState, scaffold
from fedjax_sim.algorithms.term import term

__all__ = [
    "AgnosticAveragingState",
    "AgnosticState",
    "ApflState",
    "Ascent",
    "Domains",
    "DrfaState",
    "FairFlearnState",
    "FedAlaState",
    "FedDynState",
    "FedProtoState",
    "IfcaState",
    "PfnmState",
    "PrivateRounds",
    "Prototypes",
    "ScaffoldState",
    "WeightedState",
    "agnostic",
    "agnostic_fedavg",
    "apfl",
    "averaging",
    "ditto",
    "dp_fedavg",
    "dp_ftrl",
    "drfa",
    "fair_flearn_afl",
    "fedadagrad",
    "fedadam",
    "fedala",
    "fedavg",
    "fedavgm",
    "feddyn",
    "fedmgda",
    "fedproto",
    "fedprox",
    "fedyogi",
    "ifca",
    "per_fedavg",
    "pfedme",
    "pfnm",
    "q_fedavg",
    "scaffold",
    "term",
]

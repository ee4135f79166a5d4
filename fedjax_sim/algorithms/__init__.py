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
from fedjax_sim.algorithms.fedadagrad import fedadagrad
from fedjax_sim.algorithms.fedadam import fedadam
from fedjax_sim.algorithms.fedala import FedAlaState, fedala
from fedjax_sim.algorithms.fedavg import fedavg
from fedjax_sim.algorithms.fedavgm import fedavgm
from fedjax_sim.algorithms.fedbabu import fedbabu
from fedjax_sim.algorithms.fedbn import fedbn
from fedjax_sim.algorithms.fedcm import FedCmState, fedcm
from fedjax_sim.algorithms.feddf import FedDfState, feddf
from fedjax_sim.algorithms.feddyn import FedDynState, feddyn
from fedjax_sim.algorithms.fedexp import FedExpState, fedexp
from fedjax_sim.algorithms.fedfv import FedFvState, fedfv
from fedjax_sim.algorithms.fedlc import fedlc
from fedjax_sim.algorithms.fedmgda import fedmgda
from fedjax_sim.algorithms.fednova import fednova
from fedjax_sim.algorithms.fedper import fedper
from fedjax_sim.algorithms.fedproto import FedProtoState, Prototypes, fedproto
from fedjax_sim.algorithms.fedprox import fedprox
from fedjax_sim.algorithms.fedrep import fedrep
from fedjax_sim.algorithms.fedrod import fedrod
from fedjax_sim.algorithms.fedsam import fedsam
from fedjax_sim.algorithms.fedyogi import fedyogi
from fedjax_sim.algorithms.fine_tuned import fine_tuned
from fedjax_sim.algorithms.ifca import IfcaState, ifca
from fedjax_sim.algorithms.lg_fedavg import lg_fedavg
from fedjax_sim.algorithms.mime import mime, mimelite
from fedjax_sim.algorithms.moon import MoonClient, moon
from fedjax_sim.algorithms.per_fedavg import per_fedavg
from fedjax_sim.algorithms.pfedme import pfedme
from fedjax_sim.algorithms.pfnm import PfnmState, pfnm
from fedjax_sim.algorithms.propfair import propfair
from fedjax_sim.algorithms.q_fedavg import q_fedavg
from fedjax_sim.algorithms.scaffnew import ScaffnewClient, scaffnew
from fedjax_sim.algorithms.scaffold import ScaffoldState, scaffold
from fedjax_sim.algorithms.simplicial_fl import simplicial_fl
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
    "FedCmState",
    "FedDfState",
    "FedDynState",
    "FedExpState",
    "FedFvState",
    "FedProtoState",
    "IfcaState",
    "MoonClient",
    "PfnmState",
    "PrivateRounds",
    "Prototypes",
    "ScaffnewClient",
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
    "fedbabu",
    "fedbn",
    "fedcm",
    "feddf",
    "feddyn",
    "fedexp",
    "fedfv",
    "fedlc",
    "fedmgda",
    "fednova",
    "fedper",
    "fedproto",
    "fedprox",
    "fedrep",
    "fedrod",
    "fedsam",
    "fedyogi",
    "fine_tuned",
    "ifca",
    "lg_fedavg",
    "mime",
    "mimelite",
    "moon",
    "per_fedavg",
    "pfedme",
    "pfnm",
    "propfair",
    "q_fedavg",
    "scaffnew",
    "scaffold",
    "simplicial_fl",
    "term",
]

"""What is compared, a line a method; add yours here.

A method is how it is made from a learning rate, and what else is tried of it: every method is tried
at equally many points. Those whose clients have models of their own are evaluated by these.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax

from fedjax_sim import algorithms, clients, metrics
from fedjax_sim.base import Algorithm, Array, Model, Sampler
from fedjax_sim.data import Batching


class Method(NamedTuple):
    """A row of the leaderboard.

    make: make(rate, **own) -> Algorithm; the learning rate of clients and what is the method's own,
        scalars that may be traced.
    own: name -> values to try, the paper's first.
    """

    make: Callable[..., Algorithm]
    own: Mapping[str, Sequence[float]]

    def axes(self, trials: int) -> dict[str, Sequence[float]]:
        """name -> values, `trials` points in all; as many rates as that leaves room for."""
        own, number = dict(self.own), math.prod(map(len, self.own.values()))
        if trials % number or trials < 2 * number:  # else it would be tried at fewer points
            own, number = {name: values[:1] for name, values in own.items()}, 1
        return {"rate": np.geomspace(0.02, 0.2, trials // number).tolist(), **own}


def methods(model: Model, cohort: Sampler, batching: Batching) -> dict[str, Method]:
    """name -> Method.

    Args:
        model: what is trained; it has a body and a head.
        cohort: who takes part in a round. Scaffnew and DRFA choose by themselves.
        batching: the local work of a round, equally many steps for everybody.
    """
    some: dict[str, Any] = {"model": model, "sampler": cohort, "batching": batching}
    local = functools.partial(_with_optimizer, some)
    rated = functools.partial(_with_rate, some)
    return {
        "FedAvg": local(algorithms.fedavg),
        # Optimisation.
        "FedAvgM": local(algorithms.fedavgm, server_momentum=(0.9, 0.5)),
        "FedAdam": local(algorithms.fedadam, server_learning_rate=(0.01, 0.003)),
        "FedYogi": local(algorithms.fedyogi, server_learning_rate=(0.01, 0.003)),
        "FedAdagrad": local(algorithms.fedadagrad, server_learning_rate=(0.1, 0.03)),
        "FedProx": local(algorithms.fedprox, mu=(0.01, 0.1)),
        "SCAFFOLD": rated(algorithms.scaffold),
        "FedDyn": local(algorithms.feddyn, alpha=(0.1, 0.01)),
        "FedNova": rated(algorithms.fednova, client_momentum=(0.0, 0.5)),
        "FedExP": local(algorithms.fedexp, server_epsilon=(1e-3, 1e-1)),
        "FedCM": rated(algorithms.fedcm, alpha=(0.1, 0.3)),
        "Mime": local(algorithms.mime, optimizer=_momentum),
        "MimeLite": local(algorithms.mimelite, optimizer=_momentum),
        "Scaffnew": Method(
            lambda rate: algorithms.scaffnew(model, client_learning_rate=rate, batching=batching),
            {},
        ),
        "FedSAM": local(algorithms.fedsam, rho=(0.05, 0.02)),
        "FedLC": local(algorithms.fedlc, temperature=(1.0, 0.1)),
        "MOON": local(algorithms.moon, mu=(1.0, 0.1)),
        # Fairness.
        "q-FedAvg": rated(algorithms.q_fedavg, q=(0.1, 1.0)),
        "TERM": local(algorithms.term, t=(0.1, 1.0)),
        "DRFA": Method(
            lambda rate, step: algorithms.drfa(
                model,
                client_optimizer=optax.sgd(rate),
                mixture_step_size=step,
                cohort_size=COHORT,
                batching=batching,
            ),
            {"step": (0.008, 0.001)},
        ),
        "FedMGDA+": local(algorithms.fedmgda, server_learning_rate=(1.0, 0.3)),
        "Simplicial-FL": local(algorithms.simplicial_fl, theta=(0.5, 0.8)),
        "PropFair": local(algorithms.propfair, baseline=(5.0, 3.0)),
        "FedFV": local(algorithms.fedfv, alpha=(0.1, 0.5)),
        # Clients with models of their own.
        "local training": Method(functools.partial(_ditto, some, pull=0.0), {}),
        "FedAvg, fine-tuned": Method(
            lambda rate: algorithms.fine_tuned(
                algorithms.fedavg(client_optimizer=optax.sgd(rate), **some),
                clients.local_sgd(model, optax.sgd(rate), loss=metrics.cross_entropy),
                batching=batching,
            ),
            {},
        ),
        "Ditto": Method(functools.partial(_ditto, some), {"pull": (0.1, 1.0)}),
        "pFedMe": Method(functools.partial(_pfedme, some), {"pull": (15.0, 5.0)}),
        "Per-FedAvg": rated(algorithms.per_fedavg, alpha=(0.01, 0.1)),
        "APFL": rated(algorithms.apfl, alpha=(0.5, 0.25)),
        "FedPer": local(algorithms.fedper),
        "FedRep": local(algorithms.fedrep, head_fraction=(0.5, 0.8)),
        "LG-FedAvg": local(algorithms.lg_fedavg),
        "FedBABU": local(algorithms.fedbabu),
        "FedRoD": local(algorithms.fedrod),
        "FedALA": local(algorithms.fedala, weight_learning_rate=(1.0, 0.1)),
        "FedProto": local(algorithms.fedproto, pull=(1.0, 0.1)),
        "IFCA": local(algorithms.ifca, num_clusters=4, spread=(0.01, 0.1)),
    }


COHORT = 10
"""Clients that take part in a round."""


def _with_optimizer(
    some: Mapping[str, Any],
    factory: Callable[..., Algorithm],
    *,
    optimizer: Callable[[Array], optax.GradientTransformation] = optax.sgd,
    **options: Any,
) -> Method:
    """A method that takes a `client_optimizer`; of its options, tuples are tried."""
    fixed, own = _divided(options)
    return Method(
        lambda rate, **given: factory(client_optimizer=optimizer(rate), **some, **fixed, **given),
        own,
    )


def _with_rate(
    some: Mapping[str, Any], factory: Callable[..., Algorithm], **options: Any
) -> Method:
    """A method that takes a `client_learning_rate`; of its options, tuples are tried."""
    fixed, own = _divided(options)
    return Method(
        lambda rate, **given: factory(client_learning_rate=rate, **some, **fixed, **given),
        own,
    )


def _divided(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What stays as it is, and what is tried."""
    for tried in (False, True):
        yield {name: each for name, each in options.items() if isinstance(each, tuple) is tried}


def _momentum(rate: Array) -> optax.GradientTransformation:
    """In the long run it steps as far as plain SGD of this rate."""
    return optax.sgd(0.1 * rate, momentum=0.9)


def _ditto(some: Mapping[str, Any], rate: Array, pull: Array | float) -> Algorithm:
    return algorithms.ditto(
        client_optimizer=optax.sgd(rate), personal_learning_rate=rate, pull=pull, **some
    )


def _pfedme(some: Mapping[str, Any], rate: Array, pull: Array) -> Algorithm:
    return algorithms.pfedme(
        pull=pull,
        personal_learning_rate=0.2 * rate,
        client_learning_rate=0.5 / pull,  # half the way to the personal model in every local step
        **some,
    )

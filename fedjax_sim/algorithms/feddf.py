"""FedDF: the server makes the mean model answer as the cohort's models do together."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import clients, engine, metrics, servers
from fedjax_sim.algorithms._stack import stack
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import Algorithm, Array, Key, Loss, Model, Params, Report, Sampler, on_screen
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@on_screen
class FedDfState(NamedTuple):
    """params: the global model. unlabelled: [M, ...], inputs on which the server distils."""

    params: Params
    unlabelled: Array


@checked
def feddf(
    model: Model,
    *,
    unlabelled: Array | np.ndarray,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    distillation_optimizer: optax.GradientTransformation | None = None,
    num_distillation_steps: int = 1000,
    distillation_batch_size: int | None = 128,
    temperature: float | Array = 1.0,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedDF: FedAvg whose mean model then learns to answer as the cohort's models do on average.

        w_k <- local_sgd(w) for every client k of the cohort
        w <- sum_k n_k w_k / sum_k n_k
        repeat: w <- w - step along the gradient of
                KL(softmax(mean_k f(w_k, x)) || softmax(f(w, x))) for a batch of unlabelled x

    Prefer it to `fedavg` where clients are so unlike, or train so long, that the mean of their
    models is worse than what they say together, and the server has inputs without labels that need
    not be the clients'. For one round of models that exist already, see `servers.distil`.

    Args:
        model: without statistics or frozen leaves.
        unlabelled: [M, ...], inputs such as the clients' "x".
        client_optimizer, batching, sampler, loss, **options: as in `fedavg`.
        distillation_optimizer, num_distillation_steps, distillation_batch_size, temperature: as
            `optimizer`, `num_steps`, `batch_size` and `temperature` of `servers.distil`. The paper
            takes up to 10,000 steps of Adam.

    Returns:
        An Algorithm whose server state is a FedDfState, which holds the inputs;
        `info.server["divergence"]` [2] is that of the first and of the last batch.

    Cost: `fedavg`, and C + 3 passes over the distillation batches on the server; needs the stack.

    References:
        Lin, Kong, Stich, Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated
        Learning", NeurIPS 2020, algorithm 1. The authors' code takes the mean of the divergences
        from every teacher by default, stops early and returns the best student, by accuracy on
        labelled examples of the server.
    """
    shape = np.shape(unlabelled)
    if len(shape) == 0 or shape[0] == 0:
        raise ValueError(f"unlabelled must be inputs [M, ...] with M >= 1, got shape {shape}.")
    checks.positive_int("num_distillation_steps", num_distillation_steps)
    checks.in_range("temperature", temperature, 0.0, open_low=True)

    def apply(key: Key, state: FedDfState, sent: Params, report: Report) -> servers.Served:
        total = report.weights.sum()
        share = report.weights / jnp.where(total > 0, total, 1)
        found = servers.distil(
            key,
            model,
            jax.tree.map(lambda w, d: w[None] + d, state.params, sent),
            trees.add(state.params, trees.weighted_sum(sent, share)),
            state.unlabelled,
            optimizer=distillation_optimizer,
            num_steps=num_distillation_steps,
            batch_size=distillation_batch_size,
            temperature=temperature,
            weights=(report.weights > 0).astype(jnp.float32),
        )
        ends = found.divergence[jnp.array([0, -1])]
        return state._replace(params=found.params), {"divergence": ends}

    return averaging(
        clients.local_sgd(model, client_optimizer, loss=loss),
        batching=batching,
        sampler=sampler,
        server=servers.sharing(
            lambda key, params, data: FedDfState(params, jnp.asarray(unlabelled)), apply
        ),
        aggregator=stack(),
        **options,
    )

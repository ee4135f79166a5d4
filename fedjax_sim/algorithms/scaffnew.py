"""Scaffnew: ProxSkip for federated learning, whose rounds are of random length."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import aggregators, clients, engine, metrics
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import Algorithm, Array, Batch, Cohort, Key, Loss, Message, Model, Params
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import checks, keys, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.servers import ServerState, server_optimizer


class ScaffnewClient(NamedTuple):
    """What a client keeps, shaped like the trained leaves.

    control: h_k. end: where its last local step led.
    """

    control: Params
    end: Params


class _Shared(NamedTuple):
    """What all clients are sent: the model, and after how many steps they stop."""

    params: Params
    num_steps: Array


@checked
def scaffnew(
    model: Model,
    *,
    client_learning_rate: float | Array,
    batching: Batching,
    probability: float | Array | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """Scaffnew: local steps corrected by control variates, and communication by a coin.

    Every client steps along w_k <- w_k - gamma (g_k - h_k). After each step all of them together
    communicate with probability p: then w is the mean of w_k, every client goes on from there, and

        h_k <- h_k + p / gamma (w - w_k).

    The sum of h_k stays 0, and in the end h_k is the gradient of client k at the optimum, where
    nobody moves: unlike in `fedavg` this is a fixed point however many steps a round has. With p
    about 1 / sqrt(condition number) the number of rounds grows with that root alone. Prefer it to
    `scaffold` where everyone takes part: what is sent is the model alone.

    A round here ends with a communication. With `probability` its length is drawn by the server, a
    geometric number. A compiled round has room for `num_steps`, those of `batching`: at the latest
    after these it ends, which a share (1 - p)^num_steps of rounds do, and steps that are not made
    cost what those do that are. Without, all rounds have num_steps steps, and p = 1 / num_steps:
    the same mean length and the same fixed point at a fraction of the cost, but not the paper's
    theorem.

    Everyone takes part in every round and counts the same. Keeps two models a client.

    Args:
        model, loss, **options: as in `fedavg`.
        client_learning_rate: gamma > 0, may be traced; at most 1 / smoothness in the theorem.
        batching: its `num_steps` must be given: all clients make equally many.
        probability: p in (0, 1], may be traced; None for rounds of fixed length.

    Returns:
        An Algorithm; `info.cohort.clients["steps_taken"]` is the length of the round.

    Raises:
        ValueError: no `num_steps`.

    References:
        Mishchenko, Malinovsky, Stich, Richtarik, "ProxSkip: Yes! Local Gradient Steps Provably Lead
        to Communication Acceleration! Finally!", ICML 2022, algorithm 2.
    """
    checks.in_range("client_learning_rate", client_learning_rate, 0.0, open_low=True)
    if probability is not None:
        checks.in_range("probability", probability, 0.0, 1.0, open_low=True)
    most = batching.num_steps
    if most is None:
        raise ValueError(
            "batching must give num_steps for scaffnew: all clients make equally many."
        )
    chance = 1 / most if probability is None else probability

    def broadcast(
        key: Key, state: ServerState, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        length = jnp.int32(most)
        if probability is not None:
            coin = jax.random.uniform(keys.written_out(key), (), jnp.float32, minval=1e-7)
            # The coin is below (1 - p)^s with the probability that s tosses say no.
            tosses = jnp.floor(jnp.log(coin) / jnp.log1p(-jnp.minimum(chance, 1 - 1e-7))) + 1
            length = jnp.minimum(tosses, most).astype(jnp.int32)
        return draft._replace(shared=_Shared(state.params, length))

    def begun(message: Message, own: ScaffnewClient) -> tuple[Params, Array]:
        """h_k, which moves once the client is told the mean of its last round; steps to make."""
        missed = trees.subtract(message.trained, own.end)
        control = trees.add(own.control, trees.scale(missed, chance / client_learning_rate))
        return control, message.shared.num_steps

    base = clients.local_sgd(
        model,
        optax.sgd(client_learning_rate),
        loss=loss,
        correct=lambda gradient, work, _: trees.subtract(gradient, work.extra[0]),
    )

    def step(key: Key, work: clients.Work, message: Message, batch: Batch) -> clients.Work:
        moved = base.step(key, work, message, batch)
        if probability is None:
            return moved
        control, left = work.extra
        return trees.where(left > 0, moved, work)._replace(extra=(control, left - 1))

    rule = clients.adapt(
        base._replace(step=step),
        init=lambda leaves: ScaffnewClient(optax.tree.zeros_like(leaves.trained), leaves.trained),
        extra=begun,
        keep=lambda message, own, work, update: ScaffnewClient(work.extra[0], work.params),
        info=lambda message: {"steps_taken": message.shared.num_steps},
    )
    after = server_optimizer(optax.sgd(1.0))._replace(broadcast=broadcast)
    mean = aggregators.uniform_mean()
    return averaging(rule, batching=batching, server=after, aggregator=mean, **options)

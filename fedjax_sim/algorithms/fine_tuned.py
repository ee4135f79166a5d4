"""Fine-tuning: every client trains the model a little on its own before it is evaluated."""

import jax
import jax.numpy as jnp

from fedjax_sim import clients, servers
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import Algorithm, Client, ClientRule, Key, Message, PyTree
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import trees
from fedjax_sim.ops.arguments import checked


@checked
def fine_tuned(algorithm: Algorithm, rule: ClientRule, *, batching: Batching) -> Algorithm:
    """Any algorithm, whose model every client fine-tunes before it is evaluated.

    Training is that of `algorithm`. For an evaluation each client of the population, whether it
    takes part in rounds or not, starts from the model, or from its own where it has one, and does a
    round of local work on its training examples; `run` evaluates what comes out as the clients' own
    models, `Algorithm.adapted`. Nothing of it flows back.

    Args:
        algorithm: any, such as `fedavg(...)`.
        rule: how clients fine-tune, such as `local_sgd(...)`; of `local_sgd(models.freeze(...))`
            the frozen leaves stay as they are. Its update is shaped like the trained leaves.
        batching: how long, such as Batching(32, num_epochs=5).

    Cost: in each evaluation the local work of everybody, and one model a client of memory. All
    training examples must be in memory.

    References:
        Yu, Bagdasaryan, Shmatikov, "Salvaging Federated Learning by Local Adaptation", 2020.
    """
    # A client's own model is all of it, and nothing is sent.
    own = clients.local_parts(rule, "*")

    def finish(
        key: Key, state: PyTree, message: Message, client: Client, work: PyTree
    ) -> clients.Finished:
        state, upload, info = own.finish(key, state, message, client, work)
        return state, upload._replace(update=jnp.zeros(()), statistics=None), info

    alone = averaging(
        own._replace(finish=finish, kinds=rule.kinds), server=_STILL, batching=batching
    )

    def adapted(key: Key, state: PyTree, data: FederatedData) -> PyTree:
        params = algorithm.params(state)
        start = alone.init(key, params, data)
        own = start.clients.own
        mine = algorithm.personal_params(state)
        if mine is not None:
            rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (data.num_clients, *x.shape)), params)
            own = trees.filled(mine, rows)
        start = start._replace(clients=start.clients._replace(own=own))
        return alone.step(key, start, data)[0].clients.own

    return algorithm._replace(adapted=adapted)


_STILL = servers.sharing(
    lambda key, params, data: params,
    lambda key, params, aggregate, report: (params, {}),
    shared=lambda params: params,
    params=lambda params: params,
)
"""A server that shares what it was given, and learns nothing."""

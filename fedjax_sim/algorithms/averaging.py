"""The general recipe: clients follow any rule, the server steps along what they send."""

from typing import Unpack

import optax

from fedjax_sim import aggregators, engine
from fedjax_sim.base import Aggregator, Algorithm, ClientRule, Sampler, Server
from fedjax_sim.data import Batching
from fedjax_sim.ops.arguments import checked
from fedjax_sim.servers import sampling, server_optimizer


@checked
def averaging(
    rule: ClientRule,
    *,
    batching: Batching,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | Server | None = None,
    aggregator: Aggregator | None = None,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """Clients follow a rule, their updates are averaged, and the server steps along the average.

    With `clients.local_sgd` it is `fedavg`. For a rule of your own, or one that is wrapped:
    `averaging(clients.worker_momentum(clients.local_sgd(...), momentum=0.9), ...)`.

    Args:
        rule: what a client does; its update is shaped like the trained leaves of the model.
        batching: batch size and number of local epochs or steps.
        sampler: who takes part; everyone by default.
        server: server optimizer, `optax.sgd(1.0)` by default; or a whole Server, such as
            `servers.with_history(servers.server_optimizer(...))`.
        aggregator: `aggregators.mean()` (weights by number of examples) by default.
        **options: uplink, attack, malicious, width, mesh; see `engine.federated`.
    """
    if not isinstance(server, Server):
        server = server_optimizer(optax.sgd(1.0) if server is None else server)
    return engine.federated(
        rule=rule,
        sampler=sampler or sampling.everyone(),
        aggregator=aggregator or aggregators.mean(),
        server=server,
        batching=batching,
        **options,
    )

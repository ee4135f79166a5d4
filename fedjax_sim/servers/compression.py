"""Servers that send the change of the model, compressed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.base import (
    Array,
    Cohort,
    Key,
    Message,
    Params,
    PyTree,
    Report,
    Server,
    Uplink,
    on_screen,
    outline,
)
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.servers.sharing import Served


@on_screen
class CompressedState(NamedTuple):
    """What a compressing server keeps.

    server: the state of the server inside. view: the params that clients have. link: what the
    compression keeps. sent: float32, the bytes of all changes so far. had: [N] float32, those of
    them that each client has got, -inf for one that has never taken part.
    """

    server: PyTree
    view: Params
    link: PyTree
    sent: Array
    had: Array


@checked
def compressed(server: Server, uplink: Uplink) -> Server:
    """Send the compressed difference between the model and what the clients have of it.

        view <- view + C(params - view)

    Server and clients keep the view, and clients train from it, so that what a compression leaves
    out is part of the next difference: error feedback for the way down. The server's own params
    stay exact; they are what is evaluated.

    Every client is taken to have all changes up to its round. One that has missed rounds gets those
    changes as well when it takes part again, or the whole view if that is less, and so does one
    that takes part for the first time: `Message.num_bytes` counts that for each slot. Where
    everybody takes part, it is one difference in each round after the first.

    Args:
        server: any server that shares its params alone, such as `server_optimizer(...)`.
        uplink: C, such as `uplink.top_k` or `uplink.drive(unbiased=False)`. No error feedback is
            needed in it.

    Returns:
        A Server that shares the view; info holds "view_error", the Euclidean length of what the
        view lacks.

    Raises:
        TypeError: when traced, if `server` shares something else than its params.

    References:
        Gruntkowska, Tyurin, Richtarik, "EF21-P and Friends: Improved Theoretical Communication
        Complexity for Distributed Optimization with Bidirectional Compression", ICML 2023,
        algorithm 1.
    """

    def init(key: Key, params: Params, data: FederatedData) -> CompressedState:
        never = jnp.full(data.num_clients, -jnp.inf, jnp.float32)
        link = uplink.init(jax.tree.map(jnp.zeros_like, params))
        return CompressedState(server.init(key, params, data), params, link, jnp.float32(0), never)

    def broadcast(
        key: Key, state: CompressedState, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        message = server.broadcast(key, state.server, draft, cohort, data)
        shared, known = map(_structure, (message.shared, state.view))
        if shared != known:
            raise TypeError(
                "compressed needs a server that shares its params alone, such as "
                f"server_optimizer(...), got one that shares {outline(message.shared)}."
            )
        whole = float(trees.num_bytes(state.view))
        missed = jnp.minimum(state.sent - trees.rows(state.had, cohort.ids), whole)
        own = trees.num_bytes(message.per_slot) / cohort.ids.shape[0]
        return message._replace(shared=state.view, num_bytes=missed + jnp.float32(own))

    def apply(key: Key, state: CompressedState, aggregate: PyTree, report: Report) -> Served:
        new, info = server.apply(key, state.server, aggregate, report)
        # The change is made once, when the model has moved, and sent with the next message.
        message = Message(state.view)
        change = trees.subtract(server.params(new), state.view)
        link, sent, num_bytes, _ = uplink.apply(key, state.link, message, change, jnp.float32(1))
        if uplink.receive is not None:
            sent = uplink.receive(key, message, sent)
        view = trees.add(state.view, sent)
        error = trees.norm(trees.subtract(change, sent))
        had = trees.with_rows(state.had, report.ids, jnp.full(report.ids.shape, state.sent))
        return (
            CompressedState(new, view, link, state.sent + num_bytes, had),
            info | {"view_error": error.astype(jnp.float32)},
        )

    return Server(init, broadcast, apply, lambda state: server.params(state.server))


def _structure(tree: PyTree) -> Any:
    return jax.tree.structure(tree)

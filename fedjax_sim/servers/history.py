"""Servers that also tell where the model was a round ago."""

from typing import NamedTuple

from fedjax_sim.base import (
    Cohort,
    History,
    Key,
    Message,
    Params,
    PyTree,
    Report,
    Server,
    on_screen,
)
from fedjax_sim.data import FederatedData
from fedjax_sim.ops.arguments import checked
from fedjax_sim.servers.sharing import Served


@on_screen
class HistoryState(NamedTuple):
    """server: the state of the server inside. previous: its params a round ago."""

    server: PyTree
    previous: Params


@checked
def with_history(server: Server) -> Server:
    """A server that shares a `History`: its params and those a round ago.

    For clients that look at how the model moves, above all those of `clients.malicious`.

    Args:
        server: any server that shares its params, such as `server_optimizer(...)`.
    """

    def init(key: Key, params: Params, data: FederatedData) -> HistoryState:
        state = server.init(key, params, data)
        return HistoryState(state, server.params(state))

    def broadcast(
        key: Key, state: HistoryState, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        message = server.broadcast(key, state.server, draft, cohort, data)
        return message._replace(shared=History(message.shared, state.previous))

    def apply(key: Key, state: HistoryState, aggregate: Params, report: Report) -> Served:
        new, info = server.apply(key, state.server, aggregate, report)
        return HistoryState(new, server.params(state.server)), info

    return Server(init, broadcast, apply, lambda state: server.params(state.server))

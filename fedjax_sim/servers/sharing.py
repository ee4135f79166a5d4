"""Servers that share what they keep."""

from collections.abc import Callable

from fedjax_sim.base import Cohort, Info, Key, Message, Params, PyTree, Report, Server
from fedjax_sim.data import FederatedData
from fedjax_sim.ops.arguments import checked

Served = tuple[PyTree, Info]
"""(state, info), what a server's `apply` returns."""


@checked
def sharing(
    init: Callable[[Key, Params, FederatedData], PyTree],
    apply: Callable[[Key, PyTree, PyTree, Report], Served],
    *,
    shared: Callable[[PyTree], PyTree] = lambda state: state.params,
    params: Callable[[PyTree], Params] = lambda state: state.params,
) -> Server:
    """A server that sends all clients the same part of its state, by default the model.

    For rules of one's own, which then say how the state begins and how it moves, and no more:

        sharing(lambda key, params, data: MyState(params, ...), apply)

    Args:
        init: init(key, params, data) -> state.
        apply: apply(key, state, aggregate, report) -> (state, info).
        shared: state -> what every client is sent; `state.params` by default.
        params: state -> the model to evaluate and to ship; `state.params` by default.
    """

    def broadcast(
        key: Key, state: PyTree, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        return draft._replace(shared=shared(state))

    return Server(init, broadcast, apply, params)

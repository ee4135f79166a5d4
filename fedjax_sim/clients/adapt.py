"""A rule with other things to read, to keep and to send."""

from collections.abc import Callable
from typing import Any

from fedjax_sim.base import (
    Array,
    Batch,
    Client,
    ClientRule,
    Info,
    Key,
    Leaves,
    Message,
    Params,
    PyTree,
    split,
)
from fedjax_sim.clients.local_sgd import Finished
from fedjax_sim.ops.arguments import checked


@checked
def adapt(
    rule: ClientRule,
    *,
    init: Callable[[Leaves], PyTree] | None = None,
    message: Callable[[Message], Message] = lambda message: message,
    extra: Callable[[Message, PyTree], PyTree] | None = None,
    keep: Callable[[Message, PyTree, PyTree, PyTree], PyTree] | None = None,
    update: Callable[[Message, PyTree, PyTree], PyTree] | None = None,
    weight: Callable[[Message, Array], Array] | None = None,
    info: Callable[[Message], Info] | None = None,
) -> ClientRule:
    """Let a rule read another server's message, remember rounds and send something else.

    A server that shares more than params, or sends every client a row of its own, is served by a
    rule for params in one line: `adapt(local_sgd(...), message=lambda m: m._replace(shared=...),
    weight=lambda m, _: m.per_slot)`. For clients that keep something between rounds, `init` says
    what that is at first, `extra` what their steps see of it, and `keep` what becomes of it.

    Args:
        rule: any rule; one without state for `init` and `keep`.
        init: the Leaves of the model -> what a client keeps before its first round.
        message: the message -> the one that `rule` reads.
        extra: (message, what the client keeps) -> `Work.extra`, for the `correct` of `local_sgd` or
            the objective of `local_steps`; with `init`, what the client keeps by default.
        keep: (message, what the client keeps, work, update of the rule) -> what it keeps from now.
        update: (message, work, update of the rule) -> the update that is sent.
        weight: (message, weight of the rule) -> the aggregation weight.
        info: the message -> entries for the client's info.

    Returns:
        A rule with the work of `rule`.
    """

    def start(params: Params) -> PyTree:
        return rule.init(params) if init is None else init(split(params, rule.kinds))

    def begin(key: Key, state: PyTree, received: Message, client: Client) -> PyTree:
        work = rule.begin(key, state, message(received), client)
        if extra is not None:
            return work._replace(extra=extra(received, state))
        return work if init is None else work._replace(extra=state)

    def step(key: Key, work: PyTree, received: Message, batch: Batch) -> PyTree:
        return rule.step(key, work, message(received), batch)

    def finish(
        key: Key, state: PyTree, received: Message, client: Client, work: PyTree
    ) -> Finished:
        kept, upload, facts = rule.finish(key, state, message(received), client, work)
        if keep is not None:
            kept = keep(received, state, work, upload.update)
        if update is not None:
            upload = upload._replace(update=update(received, work, upload.update))
        if weight is not None:
            upload = upload._replace(weight=weight(received, upload.weight))
        if info is not None:
            facts = facts | info(received)
        return kept, upload, facts

    def check(received: Message, data: Any) -> None:
        if rule.check is not None:
            rule.check(message(received), data)

    return rule._replace(init=start, begin=begin, step=step, finish=finish, check=check)

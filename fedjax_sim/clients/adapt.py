"""A rule made for one server, under another."""

from collections.abc import Callable
from typing import Any

from fedjax_sim.base import Array, Batch, Client, ClientRule, Key, Message, PyTree, Upload
from fedjax_sim.ops.arguments import checked


@checked
def adapt(
    rule: ClientRule,
    *,
    message: Callable[[Message], Message] = lambda message: message,
    update: Callable[[Message, PyTree, PyTree], PyTree] | None = None,
    weight: Callable[[Message, Array], Array] | None = None,
    info: Callable[[Message], dict[str, Array]] | None = None,
) -> ClientRule:
    """Let a rule read another server's message and send something else with it.

    A server that shares more than params, or sends every client a row of its own, is served by a
    rule for params in one line: `adapt(local_sgd(...), message=lambda m: m._replace(shared=...),
    weight=lambda m, _: m.per_slot)`.

    Args:
        rule: any rule.
        message: the message -> the one that `rule` reads.
        update: (message, work, update of the rule) -> the update that is sent.
        weight: (message, weight of the rule) -> the aggregation weight.
        info: the message -> entries for the client's info.

    Returns:
        A rule with the state and the work of `rule`.
    """

    def begin(key: Key, state: PyTree, received: Message, client: Client) -> PyTree:
        return rule.begin(key, state, message(received), client)

    def step(key: Key, work: PyTree, received: Message, batch: Batch) -> PyTree:
        return rule.step(key, work, message(received), batch)

    def finish(
        key: Key, state: PyTree, received: Message, client: Client, work: PyTree
    ) -> tuple[PyTree, Upload, dict[str, Array]]:
        state, upload, facts = rule.finish(key, state, message(received), client, work)
        if update is not None:
            upload = upload._replace(update=update(received, work, upload.update))
        if weight is not None:
            upload = upload._replace(weight=weight(received, upload.weight))
        if info is not None:
            facts = facts | info(received)
        return state, upload, facts

    def check(received: Message, data: Any) -> None:
        if rule.check is not None:
            rule.check(message(received), data)

    return rule._replace(begin=begin, step=step, finish=finish, check=check)

"""PFNM over rounds: clients' neurons are matched before they are merged."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from fedjax_sim import clients, engine, matching, metrics, servers
from fedjax_sim.algorithms._class_counts import class_counts
from fedjax_sim.algorithms._stack import stack
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import (
    Algorithm,
    Array,
    ClientRule,
    Cohort,
    Key,
    Loss,
    Message,
    Model,
    Params,
    Report,
    Sampler,
    Server,
    on_screen,
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import checks, keys, trees
from fedjax_sim.ops.arguments import checked


@on_screen
class PfnmState(NamedTuple):
    """What the server of PFNM keeps.

    params: the global network, padded to the budget with dead neurons, whose weights are 0.
    networks: leaves [N, ...], what every client sent last; before that, its initial weights.
    class_counts: [N, K] float32, the examples of each class of every client that has sent.
    assignments: for every hidden layer [N, L] int32, the global neuron of each client's neuron; the
        budget for clients that have not sent.
    sent: [N] bool, who has sent.
    """

    params: Params
    networks: Params
    class_counts: Array
    assignments: list[Array]
    sent: Array


class _Own(NamedTuple):
    """What one client is sent: its sub-network, or nothing while it has none.

    start: the weights it starts from, its own initial ones at first. pull: mu, 0 at first.
    class_counts: [K], which it could count itself.
    """

    start: Params
    pull: Array
    class_counts: Array


class _Sent(NamedTuple):
    """What a client sends: how its network has changed, and its examples of each class [K]."""

    delta: Params
    class_counts: Array


@checked
def pfnm(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    prior: matching.Prior | None = None,
    num_passes: int = 3,
    empirical_bayes: bool = False,
    absent: matching.Absent = "zero",
    pull: float | Array = 0.0,
    regularizer: clients.Regularizer | None = None,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """PFNM over rounds: clients train their parts of a global network, whose neurons are matched.

    In its first round a client trains from initial weights of its own (`model.init` with a key of
    its own). The server matches the neurons of all networks it has and merges those that are the
    same. From then on a client trains the sub-network of its own neurons, and matching starts from
    the last assignment. Prefer it to `fedavg` when there may be few rounds, when clients cannot
    start from common weights, or when the model should grow with what there is to know.

    The params given to `init`, and those of the state, are of the model's form but as wide as the
    neuron budget of each hidden layer: `models.mlp(10, hidden=(700,)).init(...)` for clients of
    `models.mlp(10, hidden=(100,))`. Of those given only the shapes matter for training: they are
    the global network until the first round is done. Nothing recompiles while the network grows.

    Args:
        model: a client's network, of the form of `models.mlp`, with at least one hidden layer.
        client_optimizer, batching, loss, **options: as in `fedavg`. `loss` is on integer labels
            "y" in [0, K).
        prior: as in `matching.pfnm_stacked`; `matching.Prior(1.0, 1.0, 1.0)` by default.
        num_passes, empirical_bayes, absent: as in `matching.pfnm_stacked`; the passes follow one in
            which everybody is visited in the order of ids.
        pull: mu >= 0, may be traced, of mu / 2 * ||w - w_received||^2 in the loss of a client that
            has received a sub-network. 0 was best on MNIST; 0.001 gave a tenth fewer neurons.
        regularizer: scalar of a client's params, added to every batch's loss.
        sampler: who takes part; everyone by default. Networks of clients who do not are matched as
            they were sent last.

    Returns:
        An Algorithm whose server state is a PfnmState. `info.server` holds "num_neurons" and "full"
        [hidden layers], as in a `matching.Matching`. `info.bytes_down` counts the sub-networks of
        clients that have one, `info.bytes_up` networks and class counts.

    Raises:
        ValueError: at init, for params that are not as wide as the clients, or without a hidden
            layer.

    Cost: keeps one network a client; a round matches all clients that have sent, N (1 + num_passes)
        assignments one after another.

    References:
        Yurochkin, Agarwal, Ghosh, Greenewald, Hoang, Khazaeni, "Bayesian Nonparametric Federated
        Learning of Neural Networks", ICML 2019, section 3.3. The authors' code leaves biases out of
        the pull and drops it after the first round.
    """
    checks.in_range("pull", pull, 0.0)
    checks.count("num_passes", num_passes)

    def match(key: Key, state: PfnmState) -> matching.Matching:
        """Match the networks of all that have sent, from the last assignment on."""
        orders_key, match_key = keys.split(key)
        everybody = jnp.arange(state.sent.shape[0])
        shuffled = jax.vmap(jax.random.permutation, (0, None))
        orders = [
            jnp.concatenate([everybody[None], shuffled(of_layer, everybody)])
            for of_layer in jax.random.split(
                keys.written_out(orders_key), (len(state.assignments), num_passes)
            )
        ]
        return matching.pfnm_stacked(
            matching.layers_of(state.networks),
            state.class_counts,
            prior=prior or matching.Prior(1.0, 1.0, 1.0),
            num_passes=num_passes + 1,
            key=match_key,
            max_neurons=[bias.shape[0] for _, bias in matching.layers_of(state.params)[:-1]],
            empirical_bayes=empirical_bayes,
            absent=absent,
            live=[jnp.broadcast_to(state.sent[:, None], s.shape) for s in state.assignments],
            assignments=state.assignments,
            orders=orders,
        )

    def broadcast(
        key: Key, state: PfnmState, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        served = trees.rows(state.sent, cohort.ids)
        own = _Own(
            trees.rows(_starts(state), cohort.ids),
            pull * served,
            class_counts(cohort, data, state.class_counts.shape[1]),
        )
        one = trees.num_bytes(state.networks) // data.num_clients
        return draft._replace(per_slot=own, num_bytes=jnp.where(served, float(one), 0.0))

    def apply(key: Key, state: PfnmState, aggregate: _Sent, report: Report) -> servers.Served:
        ids = jnp.where(report.weights > 0, report.ids, state.sent.shape[0])
        trained = trees.add(trees.rows(_starts(state), ids), aggregate.delta)
        state = state._replace(
            networks=trees.with_rows(state.networks, ids, trained),
            class_counts=trees.with_rows(state.class_counts, ids, aggregate.class_counts),
            sent=trees.with_rows(state.sent, ids, jnp.ones_like(ids, bool)),
        )
        found = match(key, state)
        params = matching.params_of(found.params)
        new = state._replace(params=params, assignments=found.assignments)
        return new, {"num_neurons": found.num_neurons, "full": found.full}

    def init(key: Key, params: Params, data: FederatedData) -> PfnmState:
        return _initial_state(key, model, params, data.num_clients)

    return averaging(
        _sub_network_sgd(model, client_optimizer, loss, regularizer),
        batching=batching,
        sampler=sampler,
        server=Server(init, broadcast, apply, lambda state: state.params),
        aggregator=stack(),
        **options,
    )


def _initial_state(key: Key, model: Model, params: Params, num_clients: int) -> PfnmState:
    layers = matching.layers_of(params)
    inputs = jnp.zeros((1, layers[0][0].shape[0]))
    networks = jax.vmap(lambda k: model.init(k, inputs))(keys.split(key, num_clients))
    _check_budgets(layers, matching.layers_of(networks))
    networks = jax.tree.map(lambda own, leaf: own.astype(leaf.dtype), networks, params)
    widths = [bias.shape[1] for _, bias in matching.layers_of(networks)[:-1]]
    return PfnmState(
        params=params,
        networks=networks,
        class_counts=jnp.zeros((num_clients, layers[-1][0].shape[1]), jnp.float32),
        assignments=[
            jnp.full((num_clients, width), bias.shape[0], jnp.int32)
            for width, (_, bias) in zip(widths, layers[:-1], strict=True)
        ],
        sent=jnp.zeros(num_clients, bool),
    )


def _starts(state: PfnmState) -> Params:
    """Every client's sub-network, or its initial weights: leaves [N, ...]."""
    layers = matching.layers_of(state.params)
    parts = jax.vmap(lambda slots: matching.sub_network(layers, slots))(state.assignments)
    return jax.vmap(trees.where)(state.sent, matching.params_of(parts), state.networks)


def _sub_network_sgd(
    model: Model,
    optimizer: clients.Optimizer,
    loss: Loss,
    regularizer: clients.Regularizer | None,
) -> ClientRule:
    """`local_sgd` from a client's own start, with a pull to it; sends class counts as well."""

    def pulled(gradient: Params, work: clients.Work, message: Message) -> Params:
        mu = work.extra
        return jax.tree.map(lambda g, w, s: g + mu * (w - s), gradient, work.params, message.shared)

    sgd = clients.local_sgd(model, optimizer, loss=loss, regularizer=regularizer, correct=pulled)
    return clients.adapt(
        sgd,
        message=lambda message: message._replace(shared=message.per_slot.start),
        extra=lambda message, _: message.per_slot.pull,
        update=lambda message, work, delta: _Sent(delta, message.per_slot.class_counts),
    )


def _check_budgets(params: list[tuple[Array, Array]], networks: list[tuple[Array, Array]]) -> None:
    """Raise unless params [in, out] are networks [N, in, out] with wider hidden layers."""
    budgets, widths = ([bias.shape[-1] for _, bias in each] for each in (params, networks))
    if len(widths) < 2 or len(budgets) != len(widths) or budgets[-1] != widths[-1]:
        raise ValueError(
            "params must be a network of the model's form with at least one hidden layer and as "
            f"many outputs: got layers of {budgets} for clients of {widths}."
        )
    if any(budget < width for budget, width in zip(budgets, widths, strict=True)):
        raise ValueError(
            "params must be as wide as a client at least, in every hidden layer, got "
            f"{budgets[:-1]} for clients of {widths[:-1]}: their widths are the neuron budgets."
        )

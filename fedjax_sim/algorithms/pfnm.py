"""Algorithms that match clients' neurons before they merge them: PFNM over communication rounds."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fedjax_sim import clients, engine, matching, metrics
from fedjax_sim.base import (
    Aggregator,
    Algorithm,
    Array,
    Client,
    ClientRule,
    Cohort,
    Key,
    Loss,
    Model,
    Params,
    PyTree,
    Report,
    RoundInfo,
    Sampler,
    Server,
)
from fedjax_sim.clients import Regularizer, Work
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.engine import cohort_loss
from fedjax_sim.ops import checks, trees
from fedjax_sim.servers import sampling


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


class _Message(NamedTuple):
    """What the server sends: to everybody all, of which a client takes its own part.

    starts: leaves [N, ...], the clients' sub-networks, of clients outside the cohort anything.
    pull: [N], 0 for clients that start from their own weights. class_counts: [N, K].
    """

    starts: Params
    pull: Array
    class_counts: Array


class _Sent(NamedTuple):
    """What a client sends: how its network has changed, and its examples of each class [K]."""

    delta: Params
    class_counts: Array


def pfnm(
    model: Model,
    *,
    client_optimizer: optax.GradientTransformation,
    batching: Batching,
    sigma: float | Array | Sequence[float] = 1.0,
    sigma0: float | Array | Sequence[float] = 1.0,
    gamma: float | Array | Sequence[float] = 1.0,
    num_passes: int = 3,
    prior_scale: float | Array = 1.0,
    popularity_cap: float | Array = 10.0,
    prior_bias: float | Array = 0.1,
    empirical_bayes: bool = False,
    absent: matching.Absent = "zero",
    pull: float | Array = 0.0,
    regularizer: Regularizer | None = None,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    width: engine.Width = "auto",
    mesh: Mesh | None = None,
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
        client_optimizer, batching, loss, width, mesh: as in `fedavg`. `loss` is on integer labels
            "y" in [0, K).
        sigma, sigma0, gamma, prior_scale, popularity_cap, prior_bias: a `matching.Prior`.
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

    def init(key: Key, params: Params, data: FederatedData) -> PfnmState:
        layers = matching.layers_of(params)
        inputs = jnp.zeros((1, layers[0][0].shape[0]))
        num_clients, num_classes = data.num_clients, layers[-1][0].shape[1]
        networks = jax.vmap(lambda k: model.init(k, inputs))(jax.random.split(key, num_clients))
        _check_budgets(layers, matching.layers_of(networks))
        widths = [bias.shape[1] for _, bias in matching.layers_of(networks)[:-1]]
        return PfnmState(
            params=params,
            networks=networks,
            class_counts=jnp.zeros((num_clients, num_classes)),
            assignments=[
                jnp.full((num_clients, width), bias.shape[0], jnp.int32)
                for width, (_, bias) in zip(widths, layers[:-1], strict=True)
            ],
            sent=jnp.zeros(num_clients, bool),
        )

    def starts(state: PfnmState) -> Params:
        """Every client's sub-network, or its initial weights: leaves [N, ...]."""
        layers = matching.layers_of(state.params)
        parts = jax.vmap(lambda slots: matching.sub_network(layers, slots))(state.assignments)
        return jax.vmap(trees.where)(state.sent, matching.params_of(parts), state.networks)

    def broadcast(key: Key, state: PfnmState, cohort: Cohort, data: FederatedData) -> _Message:
        num_classes = state.class_counts.shape[1]
        labels = data.owners * num_classes + data.examples["y"].astype(jnp.int32)
        counts = cohort_loss.group_sum(
            jnp.ones_like(labels, jnp.float32), labels, data.num_clients * num_classes
        )
        return _Message(
            starts(state), pull * state.sent, counts.reshape(data.num_clients, num_classes)
        )

    def apply(
        key: Key, state: PfnmState, aggregate: _Sent, report: Report
    ) -> tuple[PfnmState, dict[str, Array]]:
        num_clients = state.sent.shape[0]
        ids = jnp.where(report.weights > 0, report.ids, num_clients)
        begun = jax.tree.map(lambda x: x.at[ids].get(mode="clip"), starts(state))

        def keep(old: PyTree, new: PyTree) -> PyTree:
            return jax.tree.map(lambda x, y: x.at[ids].set(y, mode="drop"), old, new)

        networks = keep(state.networks, trees.add(begun, aggregate.delta))
        counts = keep(state.class_counts, aggregate.class_counts)
        sent = keep(state.sent, jnp.ones_like(ids, bool))
        orders_key, match_key = jax.random.split(key)
        everybody = jnp.arange(num_clients)
        shuffled = jax.vmap(jax.random.permutation, (0, None))
        orders = [
            jnp.concatenate([everybody[None], shuffled(keys, everybody)])
            for keys in jax.random.split(orders_key, (len(state.assignments), num_passes))
        ]
        found = matching.pfnm_stacked(
            matching.layers_of(networks),
            counts,
            prior=matching.Prior(sigma, sigma0, gamma, prior_scale, popularity_cap, prior_bias),
            num_passes=num_passes + 1,
            key=match_key,
            max_neurons=[bias.shape[0] for _, bias in matching.layers_of(state.params)[:-1]],
            empirical_bayes=empirical_bayes,
            absent=absent,
            live=[jnp.broadcast_to(sent[:, None], s.shape) for s in state.assignments],
            assignments=state.assignments,
            orders=orders,
        )
        new = PfnmState(matching.params_of(found.params), networks, counts, found.assignments, sent)
        return new, {"num_neurons": found.num_neurons, "full": found.full}

    def begin(key: Key, client_state: PyTree, broadcast: _Message, client: Client) -> Work:
        start, mu = _own((broadcast.starts, broadcast.pull), client)
        return base.begin(key, client_state, start, client)._replace(extra=(start, mu))

    def pulled(gradient: Params, work: Work, broadcast: _Message) -> Params:
        start, mu = work.extra
        return jax.tree.map(lambda g, w, s: g + mu * (w - s), gradient, work.params, start)

    def finish(
        key: Key, client_state: PyTree, broadcast: _Message, client: Client, work: Work
    ) -> tuple[PyTree, _Sent, Array, dict[str, Array]]:
        start, _ = work.extra
        _, delta, weight, info = base.finish(key, client_state, start, client, work)
        return client_state, _Sent(delta, _own(broadcast.class_counts, client)), weight, info

    base = clients.local_sgd(
        model, client_optimizer, loss=loss, regularizer=regularizer, correct=pulled
    )
    composed = engine.federated(
        rule=ClientRule(base.init, begin, base.step, finish),
        sampler=sampler or sampling.everyone(),
        aggregator=Aggregator(
            lambda update: (), lambda key, state, sent, weights: (state, sent, {})
        ),
        server=Server(init, broadcast, apply, lambda state: state.params),
        batching=batching,
        width=width,
        mesh=mesh,
    )

    def step(
        key: Key, state: engine.FederatedState, data: FederatedData
    ) -> tuple[engine.FederatedState, RoundInfo]:
        new, info = composed.step(key, state, data)
        # The engine takes the message and the aggregate for what each client gets and sends.
        one = trees.num_bytes(state.server.networks) // data.num_clients
        counts = trees.num_bytes(state.server.class_counts) // data.num_clients
        present = info.cohort.ids < data.num_clients
        served = state.server.sent.at[info.cohort.ids].get(mode="fill", fill_value=False)
        return new, info._replace(
            bytes_down=served.sum().astype(jnp.float32) * one,
            bytes_up=present.sum().astype(jnp.float32) * (one + counts),
        )

    return composed._replace(step=step)


def _own(rows: PyTree, client: Client) -> PyTree:
    """A client's own of leaves [N, ...]."""
    return jax.tree.map(lambda x: x.at[client.id].get(mode="clip"), rows)


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

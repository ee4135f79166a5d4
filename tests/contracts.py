"""The contract table: one row for every public factory, and how to find a factory without one.

test_contracts.py runs every law on every row. A new part gets a row here: how to build it small,
its float64 reference if it has one, and the laws it does not promise, each with the reason.
"""

import dataclasses
import functools
import itertools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reference
import reference_aggregators as robust
import reference_attacks
import reference_secure
import reference_uplinks
from fedjax_sim import (
    aggregators,
    algorithms,
    attacks,
    clients,
    engine,
    metrics,
    models,
    privacy,
    servers,
    uplink,
)
from fedjax_sim.base import (
    Aggregator,
    Algorithm,
    Array,
    ClientRule,
    Message,
    Model,
    Noise,
    Params,
    Report,
    Server,
    Uplink,
)
from fedjax_sim.data import Batching, FederatedData, federate
from fedjax_sim.ops import trees
from fedjax_sim.parts import finding as parts
from fedjax_sim.servers import sampling


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One public factory, or one way to call it.

    factory: the function in the package.
    build: builds the part, small; what it takes is said at each table.
    reference: what the part must equal; what it is is said at each table.
    opts_out: name of a law (its test) -> why the part does not keep it.
    """

    factory: Callable[..., Any]
    build: Callable[..., Any]
    reference: Any = None
    opts_out: Mapping[str, str] = dataclasses.field(default_factory=dict)


def factories(*planted: types.ModuleType) -> set[Callable[..., Any]]:
    """Every public function of the package, and of other modules, that returns a contract."""
    found = set()
    for contract in parts.CONTRACTS.values():
        found |= set(parts.find(contract).values())
        found |= {each for module in planted for each in parts.within(module, contract)}
    return found


# A population on which everything is quick: six clients, unequal, most of several batches.
SIZES = (5, 2, 9, 12, 7, 1)
FEATURES, CLASSES, BATCH_SIZE = 3, 3, 2
MODEL = models.logistic(CLASSES, init="glorot")


@functools.cache
def population(sizes: tuple[int, ...] = SIZES) -> FederatedData:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(sum(sizes), FEATURES))
    y = rng.integers(0, CLASSES, sum(sizes))
    return federate({"x": x, "y": y}, np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]))


def initial_params(key: Array) -> Params:
    return MODEL.init(key, jnp.zeros((1, FEATURES)))


def told(ids: Any, weights: Any) -> Report:
    """A Report of clients who all made three steps."""
    each = np.ones(len(ids), np.float32)
    return Report(ids, weights, each < 0, np.int32(3 * each), each, each, 40 * each, {})


@dataclasses.dataclass(frozen=True, eq=False)
class AggregatorRow(Row):
    """build() -> Aggregator; reference(updates [C, D], weights [C]) -> [D], in float64.

    least: the smallest cohort that it accepts.
    tolerates: of 11 clients, how many may send anything at all; 0 for no promise.
    hull: then every coordinate stays between those of the honest clients. Otherwise the aggregate
        stays within a few times the largest honest norm.
    trusted: a slot that is honest.
    """

    least: int = 1
    tolerates: int = 0
    hull: bool = False
    trusted: int | None = None


_ABSOLUTE = {"test_an_aggregate_scales_with_the_updates": "its threshold is in absolute units"}
_FROM_ZERO = {"test_an_aggregate_moves_with_the_updates": "measures norms or angles from zero"}
_OF_ONE = {
    "test_the_order_of_clients_does_not_matter": "trusts the client in a certain slot",
    "test_a_row_of_weight_zero_may_hold_anything": "a test of its own: nothing without that client",
}


def _prepared(
    change: Callable[[np.ndarray], np.ndarray], rule: Callable[[np.ndarray], np.ndarray]
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A pre-aggregation and what follows, both on the rows that count."""
    return robust.or_zero(lambda x: rule(change(x)))


def _norm_clipped_mean(updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return reference.mean(robust.clipped(updates, 2.0), weights)


def _weighted_geometric_median(updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    valid = weights > 0
    if not valid.any():
        return np.zeros(updates.shape[1])
    return robust.geometric_median(updates[valid], weights[valid], 100)


def _with(factory: Callable[..., Any], *args: Any, **options: Any) -> Callable[[], Aggregator]:
    return lambda: factory(*(build() for build in args), **options)


def _fixed_denominator(
    clip: Callable[[np.ndarray], np.ndarray],
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """`private_mean` without noise: its distribution, and what it makes of it, are tested apart."""

    def mean(updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return clip(np.where(weights[:, None] > 0, updates, 0)).sum(axis=0) / 7

    return mean


def _clipped_by_layer(updates: np.ndarray) -> np.ndarray:
    """Norms up to 2 / sqrt(m), by the leaves of what tests here aggregate."""
    ends = {3: [], 11: [6, 7], 12: [3], 23: [6, 7, 11, 17]}[updates.shape[1]]
    layers = np.split(updates, ends, axis=1)
    bound = 2 / len(layers) ** 0.5
    return np.concatenate([robust.clipped(layer, bound) for layer in layers], axis=1)


def _silent() -> Noise:
    return privacy.gaussian(0.0)


_median = aggregators.coordinate_median
_trimmed = _with(aggregators.trimmed_mean, num_byzantine=2)

AGGREGATORS = {
    "mean": AggregatorRow(aggregators.mean, aggregators.mean, reference.mean),
    "uniform_mean": AggregatorRow(
        aggregators.uniform_mean, aggregators.uniform_mean, reference.uniform_mean
    ),
    "majority_vote": AggregatorRow(
        aggregators.majority_vote,
        aggregators.majority_vote,
        robust.or_zero(lambda x: np.sign(np.sign(x).sum(axis=0))),
        {"test_an_aggregate_scales_with_the_updates": "the size of an update does not matter"}
        | _FROM_ZERO,
    ),
    "coordinate_median": AggregatorRow(
        _median, _median, robust.or_zero(robust.median), tolerates=5, hull=True
    ),
    "trimmed_mean": AggregatorRow(
        aggregators.trimmed_mean,
        _trimmed,
        robust.or_zero(lambda x: robust.trimmed_mean(x, 2)),
        least=5,
        tolerates=2,
        hull=True,
    ),
    "meamed": AggregatorRow(
        aggregators.meamed,
        _with(aggregators.meamed, num_byzantine=2),
        robust.or_zero(lambda x: robust.meamed(x, 2)),
        least=5,
        tolerates=2,
        hull=True,
    ),
    "krum": AggregatorRow(
        aggregators.krum,
        _with(aggregators.krum, num_byzantine=2),
        robust.or_zero(lambda x: robust.multi_krum(x, 2, 1)),
        least=7,
        tolerates=2,
        hull=True,
    ),
    "multi_krum": AggregatorRow(
        aggregators.multi_krum,
        _with(aggregators.multi_krum, num_byzantine=2),
        robust.or_zero(lambda x: robust.multi_krum(x, 2)),
        least=7,
        tolerates=2,
        hull=True,
    ),
    "multi_krum, three": AggregatorRow(
        aggregators.multi_krum,
        _with(aggregators.multi_krum, num_byzantine=1, num_selected=3),
        robust.or_zero(lambda x: robust.multi_krum(x, 1, 3)),
        least=5,
        tolerates=1,
        hull=True,
    ),
    "bulyan": AggregatorRow(
        aggregators.bulyan,
        _with(aggregators.bulyan, num_byzantine=2),
        robust.or_zero(lambda x: robust.bulyan(x, 2)),
        least=11,
        tolerates=2,
        hull=True,
    ),
    "mda": AggregatorRow(
        aggregators.mda,
        _with(aggregators.mda, num_byzantine=2),
        robust.or_zero(lambda x: robust.mda(x, 2)),
        least=5,
        tolerates=2,
        hull=True,
    ),
    "smea": AggregatorRow(
        aggregators.smea,
        _with(aggregators.smea, num_byzantine=2),
        robust.or_zero(lambda x: robust.smea(x, 2)),
        least=5,
        tolerates=2,
        hull=True,
    ),
    "caf": AggregatorRow(
        aggregators.caf,
        _with(aggregators.caf, num_byzantine=2),
        robust.or_zero(lambda x: robust.caf(x, 2)),
        least=5,
        tolerates=2,
    ),
    "monna": AggregatorRow(
        aggregators.monna,
        _with(aggregators.monna, num_byzantine=2),
        lambda updates, weights: robust.monna(updates, weights, 2, -1),
        _OF_ONE,
        least=5,
        tolerates=2,
        hull=True,
        trusted=-1,
    ),
    "geometric_median": AggregatorRow(
        aggregators.geometric_median,
        aggregators.geometric_median,
        robust.or_zero(lambda x: robust.geometric_median(x, np.ones(len(x)), 100)),
        tolerates=4,
    ),
    "geometric_median, weighted": AggregatorRow(
        aggregators.geometric_median,
        _with(aggregators.geometric_median, weighted=True),
        _weighted_geometric_median,
        {
            "test_an_aggregate_scales_with_the_updates": "where a client holds most of the weight, "
            "the result is as far from its update as the smoothing, which is in absolute units"
        },
    ),
    "centered_clipping": AggregatorRow(
        aggregators.centered_clipping,
        _with(aggregators.centered_clipping, radius=1.5, num_iterations=2),
        robust.or_zero(lambda x: robust.centered_clipping(x, np.zeros(x.shape[1]), 1.5, 2)),
        _ABSOLUTE | _FROM_ZERO,
        tolerates=4,
    ),
    "foolsgold": AggregatorRow(
        aggregators.foolsgold,
        aggregators.foolsgold,
        robust.or_zero(lambda x: robust.foolsgold(x, x)),
        _FROM_ZERO,
    ),
    "fltrust": AggregatorRow(
        aggregators.fltrust,
        aggregators.fltrust,
        lambda updates, weights: robust.fltrust(updates, weights, -1),
        _OF_ONE | _FROM_ZERO,
        tolerates=6,
        trusted=-1,
    ),
    "flame": AggregatorRow(
        aggregators.flame,
        _with(aggregators.flame, noise_multiplier=0.0),
        robust.or_zero(robust.flame),
        _FROM_ZERO,
        tolerates=4,
    ),
    "dnc": AggregatorRow(
        aggregators.dnc,
        _with(aggregators.dnc, num_byzantine=2, filter_factor=1.5),
        robust.or_zero(lambda x: robust.dnc(x, 2, 1.5)),
        least=5,
    ),
    "signguard": AggregatorRow(
        aggregators.signguard,
        aggregators.signguard,
        robust.or_zero(lambda x: robust.signguard(x, 0.1, 3.0)),
        _FROM_ZERO,
        tolerates=4,
    ),
    "clipped_clustering": AggregatorRow(
        aggregators.clipped_clustering,
        aggregators.clipped_clustering,
        robust.or_zero(lambda x: robust.clipped_clustering(x, [])),
        _FROM_ZERO,
        tolerates=4,
    ),
    "norm_clipping, mean": AggregatorRow(
        aggregators.norm_clipping,
        _with(aggregators.norm_clipping, aggregators.mean, max_norm=2.0),
        _norm_clipped_mean,
        _ABSOLUTE | _FROM_ZERO,
        tolerates=5,
    ),
    "norm_clipping, median": AggregatorRow(
        aggregators.norm_clipping,
        _with(aggregators.norm_clipping, _median, max_norm=2.0),
        _prepared(lambda x: robust.clipped(x, 2.0), robust.median),
        _ABSOLUTE | _FROM_ZERO,
        tolerates=5,
    ),
    "arc": AggregatorRow(
        aggregators.arc,
        _with(aggregators.arc, _trimmed, num_byzantine=2),
        _prepared(lambda x: robust.arc(x, 2), lambda x: robust.trimmed_mean(x, 2)),
        _FROM_ZERO,
        least=5,
        tolerates=2,
    ),
    "nnm": AggregatorRow(
        aggregators.nnm,
        _with(aggregators.nnm, _trimmed, num_byzantine=2),
        _prepared(lambda x: robust.nnm(x, 2), lambda x: robust.trimmed_mean(x, 2)),
        least=5,
        tolerates=2,
        hull=True,
    ),
    "bucketing, mean": AggregatorRow(
        aggregators.bucketing,
        _with(aggregators.bucketing, aggregators.mean, bucket_size=2),
        reference.uniform_mean,  # whatever the buckets are
        least=2,
    ),
    "bucketing, median": AggregatorRow(
        aggregators.bucketing,
        _with(aggregators.bucketing, _median, bucket_size=2),
        opts_out={
            "test_an_aggregate_equals_the_float64_reference": "a test of its own, of the buckets",
            "test_the_order_of_clients_does_not_matter": "buckets are drawn from slots",
        },
        least=2,
        tolerates=2,
        hull=True,
    ),
    "private_mean": AggregatorRow(
        aggregators.private_mean,
        _with(aggregators.private_mean, _silent, max_norm=2.0, expected_size=7),
        _fixed_denominator(lambda x: robust.clipped(x, 2.0)),
        _ABSOLUTE | _FROM_ZERO,
        tolerates=5,
    ),
    "private_mean, per layer": AggregatorRow(
        aggregators.private_mean,
        _with(aggregators.private_mean, _silent, max_norm=2.0, expected_size=7, per_layer=True),
        _fixed_denominator(_clipped_by_layer),
        _ABSOLUTE | _FROM_ZERO,
        tolerates=5,
    ),
    "common_descent": AggregatorRow(
        aggregators.common_descent,
        lambda: aggregators.common_descent(0.4),
        opts_out={
            "test_an_aggregate_equals_the_float64_reference": "is of unit length whatever the "
            "updates' size, which asks for other tolerances: test_descent.py has them",
            "test_an_aggregate_scales_with_the_updates": "the size of an update does not matter",
        }
        | _FROM_ZERO,
    ),
}

_IN_STEPS = {
    "test_only_ratios_of_weights_matter": "weights are sent in steps of the largest that may be",
    "test_an_aggregate_scales_with_the_updates": "updates are sent in steps of the largest that "
    "may be",
}
_SECURE: dict[str, Any] = {"num_slots": 13, "max_abs": 32.0, "max_weight": 32.0}
AGGREGATORS |= {
    "secure": AggregatorRow(
        aggregators.secure,
        _with(aggregators.secure, aggregators.mean, num_neighbors=2, masked=True, **_SECURE),
        functools.partial(reference_secure.mean, bits=32, **_SECURE),
        _IN_STEPS,
    ),
    "distributed_dp": AggregatorRow(
        aggregators.distributed_dp,
        _with(
            aggregators.distributed_dp,
            num_slots=13,
            max_norm=2.0,
            noise_multiplier=0.0,
            bits=32,
        ),
        # A little shorter than asked for, since float32 knows no norm exactly.
        lambda updates, weights: reference.uniform_mean(
            robust.clipped(updates, 2.0 * (1 - 2.0**-18)), weights
        ),
        {
            "test_an_aggregate_equals_the_float64_reference": "is rounded to steps in absolute "
            "units, which show where updates are small: test_secure.py compares within them"
        }
        | _ABSOLUTE
        | _FROM_ZERO,
    ),
}


def successive_draws(weights: np.ndarray, cohort_size: int) -> np.ndarray:
    """How often each client is in a cohort drawn one after another, without putting back."""
    expected = np.zeros(len(weights))
    for cohort in itertools.permutations(range(len(weights)), cohort_size):
        left, probability = weights.sum(), 1.0
        for k in cohort:
            probability, left = probability * weights[k] / left, left - weights[k]
        expected[list(cohort)] += probability
    return expected


SAMPLING_WEIGHTS = np.array([3.0, 0.0, 1.0, 1.0, 0.5, 2.0])
SHARES = np.array(SIZES) / sum(SIZES)

# build(cohort_size) -> Sampler; reference: how often each client is drawn in a round, [N], C = 3.
SAMPLERS = {
    "everyone": Row(
        sampling.everyone,
        lambda cohort_size: sampling.everyone(),
        np.ones(len(SIZES)),
        {
            "test_two_keys_draw_different_cohorts": "all clients take part, nothing is drawn",
            "test_a_cohort_that_is_too_large_is_refused": "has no cohort size",
        },
    ),
    "uniform": Row(sampling.uniform, sampling.uniform, np.full(len(SIZES), 3 / len(SIZES))),
    "by_weight": Row(
        sampling.by_weight,
        sampling.by_weight,
        3 * SHARES,
        {
            "test_a_cohort_has_distinct_clients": "draws with replacement",
            "test_a_cohort_that_is_too_large_is_refused": "draws with replacement",
        },
    ),
    "by_weight, distinct": Row(
        sampling.by_weight,
        functools.partial(sampling.by_weight, replace=False),
        successive_draws(SHARES, 3),
    ),
    "poisson": Row(sampling.poisson, sampling.poisson, np.full(len(SIZES), 3 / len(SIZES))),
    "in_epochs": Row(sampling.in_epochs, sampling.in_epochs, np.full(len(SIZES), 3 / len(SIZES))),
    "with_root": Row(
        sampling.with_root,
        lambda cohort_size: sampling.with_root(sampling.uniform(cohort_size - 1)),
        np.array([0.4] * (len(SIZES) - 1) + [1.0]),
        {"test_a_cohort_that_is_too_large_is_refused": "the other sampler counts without the root"},
    ),
    "by_weight, given": Row(
        sampling.by_weight,
        functools.partial(sampling.by_weight, weights=SAMPLING_WEIGHTS),
        3 * SAMPLING_WEIGHTS / SAMPLING_WEIGHTS.sum(),
        {
            "test_a_cohort_has_distinct_clients": "draws with replacement",
            "test_a_cohort_that_is_too_large_is_refused": "draws with replacement",
        },
    ),
}


def averaging(rule: ClientRule, *, width: int = 1, **options: Any) -> Algorithm:
    options = {"sampler": sampling.uniform(4)} | options
    return algorithms.averaging(rule, batching=Batching(BATCH_SIZE), width=width, **options)


def fedavg(model: Model = MODEL, *, width: int = 1, **options: Any) -> Algorithm:
    options = {"sampler": sampling.uniform(4)} | options
    return algorithms.fedavg(
        model,
        client_optimizer=optax.sgd(0.2),
        batching=Batching(BATCH_SIZE),
        width=width,
        **options,
    )


def prox(mu: float) -> ClientRule:
    return clients.prox(MODEL, optax.sgd(0.2), mu=mu, loss=metrics.cross_entropy)


def momentum(beta: float) -> ClientRule:
    return clients.worker_momentum(prox(0.0), momentum=beta)


def ditto_rule(pull: float) -> ClientRule:
    return clients.ditto(
        MODEL, optax.sgd(0.2), personal_learning_rate=0.1, pull=pull, loss=metrics.cross_entropy
    )


def private(max_norm: float, noise_multiplier: float) -> ClientRule:
    return clients.dp_sgd(
        MODEL,
        optax.sgd(0.2),
        max_norm=max_norm,
        noise_multiplier=noise_multiplier,
        loss=metrics.cross_entropy,
    )


def scaffold(model: Model = MODEL, *, width: int = 1) -> Algorithm:
    return algorithms.scaffold(
        model,
        client_learning_rate=0.2,
        batching=Batching(BATCH_SIZE),
        sampler=sampling.uniform(4),
        width=width,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class RuleRow(Row):
    """build() -> ClientRule; reference(width) -> the same round by `local_sgd` alone.

    within(width): an Algorithm that uses the rule. without(width): the same where what the rule
    adds to `local_sgd` is zero.
    """

    within: Callable[[int], Algorithm] | None = None
    without: Callable[[int], Algorithm] | None = None


def plain(width: int) -> Algorithm:
    return fedavg(width=width)


def controlled(width: int) -> Algorithm:
    return scaffold(width=width)


def stepwise(width: int) -> Algorithm:
    return averaging(CLIENT_RULES["local_steps"].build(), width=width)


def personalised(width: int) -> Algorithm:
    return averaging(ditto_rule(0.7), width=width)


TARGETS = {"x": np.full((1, FEATURES), 0.5, np.float32), "y": np.array([2], np.int32)}
HONEST = clients.local_sgd(MODEL, optax.sgd(0.2), loss=metrics.cross_entropy)


SGD = optax.sgd(0.2)


def sharpness_aware(rho: float, **options: Any) -> ClientRule:
    return clients.sharpness_aware(MODEL, SGD, rho=rho, loss=metrics.cross_entropy, **options)


def adapted(factor: float) -> ClientRule:
    """`local_sgd` whose updates are multiplied, with other weights of equal proportions."""
    return clients.adapt(
        HONEST,
        update=lambda message, work, update: trees.scale(update, factor),
        weight=lambda message, weight: 3 * weight,
        info=lambda message: {"round": message.round},
    )


def targeted(**options: Any) -> ClientRule:
    return clients.targeted_poisoning(
        MODEL,
        optax.sgd(0.2),
        targets=TARGETS,
        boost=4.0,
        loss=metrics.cross_entropy,
        threshold=0.2,
        max_steps=20,
        **options,
    )


def stealthy(boost: float, rho: float) -> ClientRule:
    return clients.stealthy_poisoning(
        MODEL, optax.sgd(0.2), targets=TARGETS, boost=boost, rho=rho, loss=metrics.cross_entropy
    )


def alternating(boost: float, rho: float, **options: Any) -> ClientRule:
    return clients.alternating_poisoning(
        MODEL,
        optax.sgd(0.2),
        targets=TARGETS,
        boost=boost,
        rho=rho,
        every=2,
        loss=metrics.cross_entropy,
        **options,
    )


def poisoned(attacker: ClientRule, width: int, ids: Iterable[int] = (0, 2, 3)) -> Algorithm:
    """FedAvg with some malicious clients; the cohort of the tests holds some of them."""
    return informed(clients.malicious(HONEST, attacker, list(ids)), width)


def informed(rule: ClientRule, width: int) -> Algorithm:
    """FedAvg whose clients are told what attackers look at."""
    server = servers.with_history(servers.server_optimizer(optax.sgd(1.0)))
    return averaging(rule, server=server, width=width)


_WIDE = {
    "test_the_width_of_a_round_does_not_matter": "compiles slowly; other attackers' rows see to "
    "`malicious`, through which all of them run"
}

CLIENT_RULES = {
    "local_sgd": RuleRow(
        clients.local_sgd,
        lambda: clients.local_sgd(MODEL, optax.sgd(0.2), loss=metrics.cross_entropy),
        within=plain,
        opts_out={"test_a_zero_coefficient_is_local_sgd": "is what the others reduce to"},
    ),
    "local_steps": RuleRow(
        clients.local_steps,
        lambda: clients.local_steps(clients.mean_loss(MODEL, metrics.cross_entropy), SGD),
        reference=plain,
        within=stepwise,
        without=stepwise,  # adds nothing
    ),
    "adapt": RuleRow(
        clients.adapt,
        lambda: adapted(2.0),
        reference=plain,
        within=lambda width: averaging(adapted(2.0), width=width),
        without=lambda width: averaging(adapted(1.0), width=width),
    ),
    "prox": RuleRow(
        clients.prox,
        lambda: prox(0.7),
        reference=plain,
        within=lambda width: averaging(prox(0.7), width=width),
        without=lambda width: averaging(prox(0.0), width=width),
    ),
    "sharpness_aware": RuleRow(
        clients.sharpness_aware,
        lambda: sharpness_aware(0.3, adaptivity=0.1),
        reference=plain,
        within=lambda width: averaging(sharpness_aware(0.3, adaptivity=0.1), width=width),
        without=lambda width: averaging(sharpness_aware(0.0), width=width),
    ),
    "dp_sgd": RuleRow(
        clients.dp_sgd,
        lambda: private(0.5, 1.0),
        reference=plain,
        within=lambda width: averaging(private(0.5, 1.0), width=width),
        without=lambda width: averaging(private(1e9, 0.0), width=width),
    ),
    "worker_momentum": RuleRow(
        clients.worker_momentum,
        lambda: clients.worker_momentum(prox(0.0), momentum=0.9),
        reference=plain,
        within=lambda width: averaging(momentum(0.9), width=width),
        without=lambda width: averaging(momentum(0.0), width=width),
    ),
    "malicious": RuleRow(
        clients.malicious,
        lambda: clients.malicious(HONEST, targeted(), [1]),
        reference=plain,
        within=lambda width: informed(clients.malicious(HONEST, targeted(), [1]), width),
        without=lambda width: poisoned(targeted(), width, ids=[len(SIZES)]),
        opts_out=_WIDE,
    ),
    "targeted_poisoning": RuleRow(
        clients.targeted_poisoning,
        targeted,
        within=lambda width: poisoned(targeted(estimate="after"), width),
        opts_out={
            "test_a_zero_coefficient_is_local_sgd": "looks at the targets alone, not at the data"
        },
    ),
    "stealthy_poisoning": RuleRow(
        clients.stealthy_poisoning,
        lambda: stealthy(5.0, 0.3),
        reference=plain,
        within=lambda width: poisoned(stealthy(5.0, 0.3), width),
        without=lambda width: poisoned(stealthy(0.0, 0.0), width),
        opts_out=_WIDE,
    ),
    "alternating_poisoning, own": RuleRow(
        clients.alternating_poisoning,
        lambda: alternating(5.0, 0.3, distance_to="own"),
        reference=plain,
        within=lambda width: poisoned(alternating(5.0, 0.3, distance_to="own"), width),
        without=lambda width: poisoned(alternating(0.0, 0.0, distance_to="own"), width),
    ),
    "alternating_poisoning, others": RuleRow(
        clients.alternating_poisoning,
        lambda: alternating(5.0, 0.3, kernels_only=True),
        reference=plain,
        within=lambda width: poisoned(alternating(5.0, 0.3, kernels_only=True), width),
        without=lambda width: poisoned(alternating(0.0, 0.0), width),
        opts_out=_WIDE,
    ),
    "alternating_poisoning, distance": RuleRow(
        clients.alternating_poisoning,
        lambda: alternating(5.0, 0.3, keep_distance=1.0),
        reference=plain,
        within=lambda width: poisoned(alternating(5.0, 0.3, keep_distance=1.0), width),
        without=lambda width: poisoned(alternating(0.0, 0.0, keep_distance=1.0), width),
        opts_out=_WIDE,
    ),
    "scaffold": RuleRow(
        clients.scaffold,
        lambda: clients.scaffold(MODEL, learning_rate=0.2, loss=metrics.cross_entropy),
        reference=lambda width: fedavg(aggregator=aggregators.uniform_mean(), width=width),
        within=controlled,
        without=controlled,  # all control variates start at zero
    ),
    "ditto": RuleRow(
        clients.ditto,
        lambda: ditto_rule(0.7),
        reference=plain,
        within=personalised,
        without=personalised,  # sends what it sends
    ),
    "local_parts": RuleRow(
        clients.local_parts,
        lambda: clients.local_parts(HONEST, "bias"),
        within=lambda width: averaging(clients.local_parts(HONEST, "bias"), width=width),
        opts_out={
            "test_a_zero_coefficient_is_local_sgd": "there is none; test_local_parts.py has a leaf "
            "of no use as the local part"
        },
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class ServerRow(Row):
    """build(optimizer) -> Server. rule: what clients do who understand what it broadcasts."""

    rule: ClientRule = HONEST


def sharing(optimizer: optax.GradientTransformation) -> Server:
    """`server_optimizer`, as somebody else would write it."""

    def apply(key: Array, state: Any, aggregate: Params, report: Report) -> Any:
        params, inner = state
        updates, inner = optimizer.update(trees.scale(aggregate, -1), inner, params)
        return (optax.apply_updates(params, updates), inner), {}

    return servers.sharing(
        lambda key, params, data: (params, optimizer.init(params)),
        apply,
        shared=lambda state: state[0],
        params=lambda state: state[0],
    )


SERVERS = {
    "server_optimizer": ServerRow(servers.server_optimizer, servers.server_optimizer),
    "with_history": ServerRow(
        servers.with_history,
        lambda optimizer: servers.with_history(servers.server_optimizer(optimizer)),
        rule=clients.malicious(HONEST, targeted(), [1]),
    ),
    "compressed": ServerRow(
        servers.compressed,
        lambda optimizer: servers.compressed(
            servers.server_optimizer(optimizer), uplink.chain(uplink.top_k(0.5), uplink.qsgd(8))
        ),
    ),
    "sharing": ServerRow(servers.sharing, sharing),
}


@dataclasses.dataclass(frozen=True, eq=False)
class UplinkRow(Row):
    """build() -> Uplink; reference(update [D], key) -> what the server receives, in float64.

    From the first update of a client on; randomness is drawn from the key of `apply`.

    num_bytes(D, width) -> what is sent of numbers of so many bytes, D of them in three leaves.
    unbiased: on average over keys the server receives the update.
    error(D): what ||received - update||^2 / ||update||^2 is at most, on average over keys.
    longest(norm, D): how long what is received may be for an update of this length.
    """

    num_bytes: Callable[[int, int], int] = lambda size, width: width * size
    unbiased: bool = False
    error: Callable[[int], float] | None = None
    longest: Callable[[float, int], float] | None = None


def _same(norm: float, size: int) -> float:
    return norm


def _rotated_bytes(bits: int, block: int) -> Callable[[int, int], int]:
    """Codes and one float32 scale of every block."""

    def num_bytes(size: int, width: int) -> int:
        n = min(block, 1 << (size - 1).bit_length())
        num_blocks = -(-size // n)
        return -(-num_blocks * n * bits // 8) + 4 * num_blocks

    return num_bytes


def _leafwise_bytes(bits: int, each: int, bucket_size: int = 99) -> Callable[[int, int], int]:
    """Codes of every leaf, and `each` bytes for every bucket."""

    def num_bytes(size: int, width: int) -> int:
        return sum(
            -(-bits * leaf // 8) + each * -(-leaf // bucket_size)
            for leaf in reference_uplinks.LEAVES
        )

    return num_bytes


_KEPT = 3  # of 11, and of 12, numbers by a fraction of 0.3
_SPARSE: dict[str, Any] = {"error": lambda size: 1 - _KEPT / size, "longest": _same}


def _with_noise(draw: Callable[..., Any], scale: float) -> Callable[[np.ndarray, Array], Any]:
    """The leaves of test_contracts.tree, 6, 1 and 4 numbers, each with noise of its own."""

    def received(update: np.ndarray, key: Array) -> np.ndarray:
        drawn = [draw(jax.random.fold_in(key, i), (n,)) for i, n in enumerate((6, 1, 4))]
        return update + scale * np.concatenate(drawn).astype(np.float64)[: len(update)]

    return received


UPLINKS = {
    "identity": UplinkRow(
        uplink.identity,
        uplink.identity,
        lambda update, key: update,
        unbiased=True,
        error=lambda size: 0.0,
        longest=_same,
    ),
    "clip": UplinkRow(
        uplink.clip,
        lambda: uplink.clip(1.5),
        lambda update, key: robust.clipped(update[None], 1.5)[0],
        error=lambda size: 1.0,
        longest=lambda norm, size: min(norm, 1.5),
    ),
    "clip, l1": UplinkRow(
        uplink.clip,
        lambda: uplink.clip(1.5, norm="l1"),
        lambda update, key: update * min(1, 1.5 / np.abs(update).sum()),
    ),
    "clip, per layer": UplinkRow(
        uplink.clip,
        lambda: uplink.clip(1.5, per_layer=True),
        # The leaves of test_contracts.tree: 6, 1 and 4 numbers.
        lambda update, key: np.concatenate(
            [robust.clipped(x[None], 1.5 / 3**0.5)[0] for x in np.split(update, [6, 7])]
        ),
    ),
    "gaussian_noise": UplinkRow(
        uplink.gaussian_noise,
        lambda: uplink.gaussian_noise(0.1),
        _with_noise(jax.random.normal, 0.1),
        unbiased=True,
    ),
    "laplace_noise": UplinkRow(
        uplink.laplace_noise,
        lambda: uplink.laplace_noise(0.1),
        _with_noise(jax.random.laplace, 0.1),
        unbiased=True,
    ),
    "chain": UplinkRow(
        uplink.chain,
        lambda: uplink.chain(uplink.clip(2.0), uplink.identity(), uplink.clip(0.5)),
        lambda update, key: robust.clipped(update[None], 0.5)[0],
        error=lambda size: 1.0,
        longest=lambda norm, size: min(norm, 0.5),
    ),
    "chain, clipped, sparse and quantised": UplinkRow(
        uplink.chain,
        lambda: uplink.chain(uplink.clip(1.5), uplink.top_k(0.3), uplink.qsgd(4)),
        reference_uplinks.clipped_sparse_quantised(1.5, _KEPT, 4),
        num_bytes=lambda size, width: 4 + 2 + 2,  # a length, 3 levels and 3 indices of 4 bits
        longest=lambda norm, size: min(norm, 1.5) * (1 + np.sqrt(_KEPT) / 7),
    ),
    "uniform_quantization": UplinkRow(
        uplink.uniform_quantization,
        lambda: uplink.uniform_quantization(3),
        reference_uplinks.uniform_quantization(3, None),
        num_bytes=_leafwise_bytes(3, 8),
        unbiased=True,
        error=lambda size: size / (2 * 7**2),
        longest=lambda norm, size: np.sqrt(size) * norm,
    ),
    "uniform_quantization, buckets": UplinkRow(
        uplink.uniform_quantization,
        lambda: uplink.uniform_quantization(9, bucket_size=4),
        reference_uplinks.uniform_quantization(9, 4),
        num_bytes=_leafwise_bytes(9, 8, 4),
        unbiased=True,
        error=lambda size: 4 / (2 * 511**2),
        longest=lambda norm, size: 2 * norm,
    ),
    "qsgd": UplinkRow(
        uplink.qsgd,
        lambda: uplink.qsgd(3),
        reference_uplinks.qsgd(3, None),
        num_bytes=_leafwise_bytes(3, 4),
        unbiased=True,
        error=lambda size: min(size / 3**2, np.sqrt(size) / 3),
        longest=lambda norm, size: norm * (1 + np.sqrt(size) / 3),
    ),
    "qsgd, buckets": UplinkRow(
        uplink.qsgd,
        lambda: uplink.qsgd(2, bucket_size=4),
        reference_uplinks.qsgd(2, 4),
        num_bytes=_leafwise_bytes(2, 4, 4),
        unbiased=True,
        error=lambda size: 2.0,
        longest=lambda norm, size: 3 * norm,
    ),
    "sign": UplinkRow(
        uplink.sign,
        uplink.sign,
        reference_uplinks.sign(),
        num_bytes=_leafwise_bytes(1, 4),
        error=lambda size: 1 - 1 / size,
        longest=_same,
    ),
    "sign, plain": UplinkRow(
        uplink.sign,
        lambda: uplink.sign(scaled=False),
        lambda update, key: np.where(update >= 0, 1.0, -1.0),
        num_bytes=_leafwise_bytes(1, 0),
        longest=lambda norm, size: np.sqrt(size),
    ),
    "top_k": UplinkRow(
        uplink.top_k,
        lambda: uplink.top_k(0.3),
        reference_uplinks.top_k(_KEPT),
        num_bytes=lambda size, width: _KEPT * width + 2,  # 3 indices of 4 bits
        **_SPARSE,
    ),
    "random_k": UplinkRow(
        uplink.random_k,
        lambda: uplink.random_k(0.3),
        reference_uplinks.random_k(_KEPT, unbiased=True),
        num_bytes=lambda size, width: _KEPT * width,
        unbiased=True,
        error=lambda size: size / _KEPT - 1,
        longest=lambda norm, size: norm * size / _KEPT,
    ),
    "random_k, as they are": UplinkRow(
        uplink.random_k,
        lambda: uplink.random_k(0.3, unbiased=False),
        reference_uplinks.random_k(_KEPT, unbiased=False),
        num_bytes=lambda size, width: _KEPT * width,
        **_SPARSE,
    ),
    "rotation": UplinkRow(
        uplink.rotation,
        lambda: uplink.rotation(block_size=8),
        lambda update, key: update,
        num_bytes=lambda size, width: width * 16,
        unbiased=True,
        error=lambda size: 1e-6,
        longest=_same,
    ),
    "drive": UplinkRow(
        uplink.drive,
        uplink.drive,
        reference_uplinks.drive(16, unbiased=True),
        num_bytes=_rotated_bytes(1, 1024),
        longest=lambda norm, size: 4 * norm,
    ),
    "drive, biased": UplinkRow(
        uplink.drive,
        lambda: uplink.drive(unbiased=False, block_size=8),
        reference_uplinks.drive(8, unbiased=False),
        num_bytes=_rotated_bytes(1, 8),
        error=lambda size: 1 - 1 / 8,
        longest=_same,
    ),
    "eden": UplinkRow(
        uplink.eden,
        lambda: uplink.eden(3, block_size=8),
        reference_uplinks.eden(3, 8),
        num_bytes=_rotated_bytes(3, 8),
    ),
    "error_feedback": UplinkRow(
        uplink.error_feedback,
        lambda: uplink.error_feedback(uplink.top_k(0.3)),
        reference_uplinks.top_k(_KEPT),
        num_bytes=lambda size, width: _KEPT * width + 2,
        **_SPARSE,
    ),
    "ef21": UplinkRow(
        uplink.ef21,
        lambda: uplink.ef21(uplink.sign()),
        reference_uplinks.sign(),
        {"test_bytes_are_those_of_a_packed_code": "gives what the server makes of what is sent"},
        num_bytes=_leafwise_bytes(1, 4),
        error=lambda size: 1 - 1 / size,
        longest=_same,
    ),
}


def most_central() -> Aggregator:
    """The row with the least sum of distances to all others: a rule that chooses, as Krum does."""

    def apply(key: Array, state: Any, updates: Any, weights: Array) -> Any:
        rows = jnp.where(weights[:, None] > 0, trees.flatten(updates), 0)
        distances = jnp.sqrt(((rows[:, None] - rows[None]) ** 2).sum(axis=2))
        sums = jnp.where(weights > 0, distances @ (weights > 0).astype(jnp.float32), jnp.inf)
        return state, jax.tree.map(lambda u: u[jnp.argmin(sums)], updates), {}

    return Aggregator(lambda update: (), apply)


def one_uplink_of(parts: Sequence[Uplink], number: Array) -> Uplink:
    """Uplinks as one, which gives what the server receives: which is chosen as `one_of` does."""

    def apply(key: Array, states: Any, message: Message, update: Any, weight: Array) -> Any:
        def branch(i: int) -> Callable[..., Any]:
            def chosen(states: Any) -> Any:
                part = parts[i]
                state, sent, num_bytes, _ = part.apply(key, states[i], message, update, weight)
                if part.receive is not None:
                    sent = part.receive(key, message, sent)
                return (*states[:i], state, *states[i + 1 :]), sent, num_bytes

            return chosen

        return *jax.lax.switch(number, list(map(branch, range(len(parts)))), states), {}

    return Uplink(lambda update: tuple(part.init(update) for part in parts), apply)


def one_of(parts: Sequence[Any], number: Array) -> Any:
    """Aggregators, or attacks, as one: which is chosen while the program runs, so all share it."""

    def init(update: Params) -> Any:
        return tuple(part.init(update) for part in parts)

    def apply(key: Array, states: Any, *arguments: Any) -> Any:
        def branch(i: int) -> Callable[..., Any]:
            def chosen(states: Any, arguments: Any) -> Any:
                state, out, _ = parts[i].apply(key, states[i], *arguments)
                return (*states[:i], state, *states[i + 1 :]), out

            return chosen

        branches = [branch(i) for i in range(len(parts))]
        return *jax.lax.switch(number, branches, states, arguments), {}

    return parts[0]._replace(init=init, apply=apply)


STRENGTHS = (0.0, 0.5, 1.5, 4.0)
_RANDOM = {
    "test_an_attack_equals_the_float64_reference": "is random; its distribution is tested instead"
}
_LEARNS = {
    "test_an_attack_equals_the_float64_reference": "starts at random; where it ends is tested"
}

# build() -> Attack; reference(updates [C, D], weights, malicious, change) -> [C, D], in float64.
ATTACKS = {
    "no_attack": Row(attacks.no_attack, attacks.no_attack, lambda updates, *_: updates),
    "sign_flip": Row(
        attacks.sign_flip, lambda: attacks.sign_flip(2.0), reference_attacks.scaling(-2.0)
    ),
    "scaling, bounded": Row(
        attacks.scaling,
        lambda: attacks.scaling(7.0, max_norm=3.0),
        reference_attacks.scaling(7.0, max_norm=3.0),
    ),
    "gaussian": Row(attacks.gaussian, lambda: attacks.gaussian(0.5), opts_out=_RANDOM),
    "free_rider": Row(attacks.free_rider, attacks.free_rider, reference_attacks.free_rider),
    "neurotoxin": Row(
        attacks.neurotoxin, lambda: attacks.neurotoxin(0.3), reference_attacks.neurotoxin(0.3)
    ),
    "inner_product": Row(
        attacks.inner_product,
        lambda: attacks.inner_product(2.0, knows="own"),
        reference_attacks.inner_product(2.0, knows="own"),
    ),
    "little_is_enough": Row(
        attacks.little_is_enough, attacks.little_is_enough, reference_attacks.little_is_enough()
    ),
    "little_is_enough, above": Row(
        attacks.little_is_enough,
        lambda: attacks.little_is_enough(0.5, side="above"),
        reference_attacks.little_is_enough(-0.5),
    ),
    "little_is_enough, own": Row(
        attacks.little_is_enough,
        lambda: attacks.little_is_enough(1.5, knows="own"),
        reference_attacks.little_is_enough(1.5, knows="own"),
    ),
    "deviation": Row(
        attacks.deviation,
        lambda: attacks.deviation(1.5, direction="sign"),
        reference_attacks.deviation(1.5, "sign"),
    ),
    "min_max": Row(
        attacks.min_max, attacks.min_max, reference_attacks.as_far_as_honest("std", worst=True)
    ),
    "min_max, above": Row(
        attacks.min_max,
        lambda: attacks.min_max(direction="above"),
        reference_attacks.as_far_as_honest("above", worst=True),
    ),
    "min_max, unit": Row(
        attacks.min_max,
        lambda: attacks.min_max(direction="unit"),
        reference_attacks.as_far_as_honest("unit", worst=True),
    ),
    "min_sum": Row(
        attacks.min_sum, attacks.min_sum, reference_attacks.as_far_as_honest("std", worst=False)
    ),
    "fang_trimmed_mean": Row(
        attacks.fang_trimmed_mean, attacks.fang_trimmed_mean, opts_out=_RANDOM
    ),
    "fang_krum": Row(
        attacks.fang_krum,
        lambda: attacks.fang_krum(most_central()),
        reference_attacks.fang_krum(reference_attacks.most_central),
    ),
    "adaptive": Row(
        attacks.adaptive,
        lambda: attacks.adaptive(attacks.deviation, most_central(), strengths=STRENGTHS),
        reference_attacks.adaptive(
            lambda s: reference_attacks.deviation(s, "std"),
            STRENGTHS,
            reference_attacks.most_central,
        ),
    ),
    "mimic": Row(attacks.mimic, lambda: attacks.mimic(warmup=2), opts_out=_LEARNS),
    "chain": Row(
        attacks.chain,
        lambda: attacks.chain(attacks.neurotoxin(0.3), attacks.scaling(3.0)),
        reference_attacks.chained(
            reference_attacks.neurotoxin(0.3), reference_attacks.scaling(3.0)
        ),
    ),
    "delayed": Row(
        attacks.delayed,
        lambda: attacks.delayed(attacks.sign_flip(), first_round=1),
        reference_attacks.scaling(-1.0),  # of a later round
    ),
    "choice": Row(
        attacks.choice,
        lambda: attacks.choice([attacks.mimic(), attacks.sign_flip(), attacks.min_max()], 1),
        reference_attacks.scaling(-1.0),
    ),
    "monitored": Row(
        attacks.monitored,
        lambda: attacks.monitored(
            attacks.sign_flip(),
            accuracy=lambda params: jnp.tanh(trees.norm(params)),
            histogram_edges=np.linspace(-1, 1, 5),
        ),
        reference_attacks.scaling(-1.0),
    ),
}


def agnostic(model: Model, **options: Any) -> Algorithm:
    options = {"ascent": algorithms.Ascent(0.1)} | options
    return algorithms.agnostic(model, optimizer=optax.sgd(0.2, momentum=0.9), **options)


_EVERYBODY = {"test_two_seeds_draw_different_cohorts": "all domains take part in every round"}
_ROUNDING = {
    "test_a_scan_is_a_python_loop_bit_for_bit": "XLA may sum the domains' losses in another order "
    "inside a scan; equal to rounding, as test_seeds_vmapped_are_separate_runs sees"
}

SOME: dict[str, Any] = {"batching": Batching(BATCH_SIZE), "sampler": sampling.uniform(4)}


def agnostic_fedavg(model: Model) -> Algorithm:
    return algorithms.agnostic_fedavg(
        model,
        client_optimizer=optax.sgd(0.5),
        ascent=algorithms.Ascent(0.3),
        initial_window=np.ones((2, len(SIZES))),
        **SOME,
    )


def drfa(model: Model, **options: Any) -> Algorithm:
    return algorithms.drfa(
        model,
        client_optimizer=optax.sgd(0.3),
        mixture_step_size=0.01,
        cohort_size=4,
        batching=Batching(BATCH_SIZE, num_steps=3),
        **options,
    )


_TWICE = {
    "test_two_seeds_draw_different_batches": "a client may be in a cohort twice; "
    "test_drfa.py follows its batches"
}


@dataclasses.dataclass(frozen=True, eq=False)
class AlgorithmRow(Row):
    """build(model) -> Algorithm.

    model: what `build` gets, with its `apply` watched. params: what the algorithm starts from.
    """

    model: Model = MODEL
    params: Callable[[Array], Params] = initial_params


@functools.cache
def stepping(row: AlgorithmRow) -> tuple[Algorithm, Callable, list[None]]:
    """The algorithm, its jitted step, and a list that grows when its model is traced."""
    traces: list[None] = []

    def watched(model: Model) -> Model:
        def apply(params: Any, inputs: Any, key: Any = None) -> Any:
            traces.append(None)
            return model.apply(params, inputs)

        body = None if model.body is None else watched(model.body)
        return model._replace(apply=apply, body=body)

    algorithm = row.build(watched(row.model))
    return algorithm, jax.jit(algorithm.step), traces


def _wide(key: Array) -> Params:
    """A budget of 7 neurons, fewer than all clients' together."""
    return models.mlp(CLASSES, hidden=(7,)).init(key, jnp.zeros((1, FEATURES)))


_NET = models.mlp(CLASSES, hidden=(3,))


def _net(key: Array) -> Params:
    return _NET.init(key, jnp.zeros((1, FEATURES)))


_LOCAL: dict[str, Any] = {"client_optimizer": optax.sgd(0.2), "batching": Batching(BATCH_SIZE)}

ALGORITHMS = {
    "fedavg": AlgorithmRow(
        algorithms.fedavg, lambda model: fedavg(model, width=2, server=optax.sgd(1.0, 0.9))
    ),
    "federated": AlgorithmRow(
        engine.federated,
        lambda model: engine.federated(
            rule=clients.prox(model, SGD, mu=0.3, loss=metrics.cross_entropy),
            aggregator=aggregators.coordinate_median(),
            server=servers.server_optimizer(optax.adam(0.1)),
            uplink=uplink.clip(0.5),
            attack=attacks.sign_flip(),
            malicious=[1],
            width=2,
            **SOME,
        ),
    ),
    "averaging": AlgorithmRow(
        algorithms.averaging,
        lambda model: averaging(
            clients.local_sgd(model, optax.sgd(0.2), loss=metrics.cross_entropy)
        ),
    ),
    **{
        each.__name__: AlgorithmRow(
            each,
            functools.partial(each, client_optimizer=optax.sgd(0.2), **SOME),
        )
        for each in (
            algorithms.fedavgm,
            algorithms.fedadam,
            algorithms.fedyogi,
            algorithms.fedadagrad,
        )
    },
    "fedprox": AlgorithmRow(
        algorithms.fedprox,
        lambda model: algorithms.fedprox(model, mu=0.7, client_optimizer=optax.sgd(0.2), **SOME),
    ),
    "feddyn": AlgorithmRow(
        algorithms.feddyn,
        lambda model: algorithms.feddyn(model, alpha=0.3, client_optimizer=optax.sgd(0.2), **SOME),
    ),
    "scaffold": AlgorithmRow(algorithms.scaffold, scaffold),
    "fednova": AlgorithmRow(
        algorithms.fednova,
        lambda model: algorithms.fednova(
            model, client_learning_rate=0.2, client_momentum=0.5, mu=0.1, **SOME
        ),
    ),
    "fedexp": AlgorithmRow(
        algorithms.fedexp,
        lambda model: algorithms.fedexp(model, client_optimizer=optax.sgd(0.2), **SOME),
    ),
    "scaffnew": AlgorithmRow(
        algorithms.scaffnew,
        lambda model: algorithms.scaffnew(
            model,
            client_learning_rate=0.2,
            probability=0.4,
            batching=Batching(BATCH_SIZE, num_steps=4),
        ),
        opts_out={"test_two_seeds_draw_different_cohorts": "everyone takes part in every round"},
    ),
    "fedsam": AlgorithmRow(
        algorithms.fedsam,
        lambda model: algorithms.fedsam(model, rho=0.3, client_optimizer=optax.sgd(0.2), **SOME),
    ),
    "fedlc": AlgorithmRow(
        algorithms.fedlc,
        lambda model: algorithms.fedlc(
            model, temperature=0.5, client_optimizer=optax.sgd(0.2), **SOME
        ),
    ),
    **{
        each.__name__: AlgorithmRow(
            each, functools.partial(each, client_optimizer=optax.adam(0.05, eps=0.1), **SOME)
        )
        for each in (algorithms.mime, algorithms.mimelite)
    },
    "fedcm": AlgorithmRow(
        algorithms.fedcm,
        lambda model: algorithms.fedcm(model, alpha=0.4, client_learning_rate=0.2, **SOME),
    ),
    "agnostic, per domain": AlgorithmRow(
        algorithms.agnostic,
        lambda model: agnostic(model, batch_size=2),
        opts_out=_EVERYBODY | _ROUNDING,
    ),
    "agnostic, weighted": AlgorithmRow(
        algorithms.agnostic,
        lambda model: agnostic(model, batch_size=12, estimator="weighted", output="last"),
        opts_out=_EVERYBODY | _ROUNDING,
    ),
    "agnostic, uniform and optimistic": AlgorithmRow(
        algorithms.agnostic,
        lambda model: agnostic(
            model,
            batch_size=12,
            estimator="uniform",
            optimistic=True,
            ascent=algorithms.Ascent(0.1, "exponentiated"),
        ),
        opts_out=_EVERYBODY | _ROUNDING,
    ),
    "agnostic_fedavg": AlgorithmRow(algorithms.agnostic_fedavg, agnostic_fedavg),
    "fair_flearn_afl": AlgorithmRow(
        algorithms.fair_flearn_afl,
        lambda model: algorithms.fair_flearn_afl(model, learning_rate=0.2, mixture_step_size=0.1),
        opts_out=_EVERYBODY
        | {"test_two_seeds_draw_different_batches": "every client takes all of its examples"},
    ),
    "q_fedavg": AlgorithmRow(
        algorithms.q_fedavg,
        lambda model: algorithms.q_fedavg(model, q=0.5, client_learning_rate=0.3, **SOME),
    ),
    "term": AlgorithmRow(
        algorithms.term,
        lambda model: algorithms.term(
            model, t=2.0, client_optimizer=optax.sgd(0.2), smoothing=0.5, **SOME
        ),
    ),
    "simplicial_fl": AlgorithmRow(
        algorithms.simplicial_fl,
        lambda model: algorithms.simplicial_fl(
            model, theta=0.6, client_optimizer=optax.sgd(0.2), **SOME
        ),
    ),
    "propfair": AlgorithmRow(
        algorithms.propfair,
        lambda model: algorithms.propfair(
            model, baseline=2.0, client_optimizer=optax.sgd(0.2), **SOME
        ),
    ),
    "fedfv": AlgorithmRow(
        algorithms.fedfv,
        lambda model: algorithms.fedfv(
            model, alpha=0.3, tau=2, client_optimizer=optax.sgd(0.2), **SOME
        ),
    ),
    "feddf": AlgorithmRow(
        algorithms.feddf,
        lambda model: algorithms.feddf(
            model,
            unlabelled=np.linspace(-1, 1, 5 * FEATURES, dtype=np.float32).reshape(5, FEATURES),
            client_optimizer=optax.sgd(0.2),
            distillation_optimizer=optax.sgd(0.2),
            num_distillation_steps=2,
            distillation_batch_size=3,
            **SOME,
        ),
    ),
    "dp_fedavg": AlgorithmRow(
        algorithms.dp_fedavg,
        functools.partial(
            algorithms.dp_fedavg, cohort_size=3, max_norm=0.5, noise_multiplier=1.0, **_LOCAL
        ),
    ),
    "dp_fedavg, fixed and adaptive": AlgorithmRow(
        algorithms.dp_fedavg,
        functools.partial(
            algorithms.dp_fedavg,
            cohort_size=4,
            max_norm=0.1,
            target_epsilon=20.0,
            num_rounds=4,
            sampling="fixed",
            adaptive=aggregators.AdaptiveClipping(),
            **_LOCAL,
        ),
    ),
    "dp_ftrl": AlgorithmRow(
        algorithms.dp_ftrl,
        functools.partial(
            algorithms.dp_ftrl,
            cohort_size=4,
            max_norm=0.5,
            num_rounds=4,
            noise_multiplier=1.0,
            num_bands=2,
            **_LOCAL,
        ),
    ),
    "dp_ftrl, tree": AlgorithmRow(
        algorithms.dp_ftrl,
        functools.partial(
            algorithms.dp_ftrl,
            cohort_size=4,
            max_norm=0.5,
            num_rounds=4,
            target_epsilon=8.0,
            mechanism="tree",
            per_layer=True,
            **_LOCAL,
        ),
    ),
    "drfa": AlgorithmRow(algorithms.drfa, drfa, opts_out=_TWICE),
    "drfa, as FedTorch": AlgorithmRow(
        algorithms.drfa, lambda model: drfa(model, variant="fedtorch", loss_examples=3)
    ),
    "fedmgda": AlgorithmRow(
        algorithms.fedmgda,
        lambda model: algorithms.fedmgda(
            model, client_optimizer=optax.sgd(0.2), server_learning_rate=0.2, **SOME
        ),
    ),
    "ditto": AlgorithmRow(
        algorithms.ditto,
        lambda model: algorithms.ditto(
            model,
            client_optimizer=optax.sgd(0.2),
            personal_learning_rate=0.1,
            pull=0.5,
            **SOME,
        ),
    ),
    "moon": AlgorithmRow(
        algorithms.moon,
        lambda model: algorithms.moon(model, client_optimizer=optax.sgd(0.2), **SOME),
        model=models.mlp(CLASSES, hidden=(7,)),
        params=_wide,
    ),
    "ifca": AlgorithmRow(
        algorithms.ifca,
        lambda model: algorithms.ifca(
            model, num_clusters=2, spread=1.0, client_optimizer=optax.sgd(0.2), **SOME
        ),
    ),
    "pfedme": AlgorithmRow(
        algorithms.pfedme,
        lambda model: algorithms.pfedme(
            model,
            pull=2.0,
            personal_learning_rate=0.2,
            client_learning_rate=0.4,
            num_personal_steps=1,
            **SOME,
        ),
    ),
    "per_fedavg": AlgorithmRow(
        algorithms.per_fedavg,
        lambda model: algorithms.per_fedavg(model, alpha=0.1, client_learning_rate=0.2, **SOME),
    ),
    "apfl": AlgorithmRow(
        algorithms.apfl,
        lambda model: algorithms.apfl(
            model, alpha=0.5, client_learning_rate=0.2, alpha_learning_rate=0.2, **SOME
        ),
    ),
    "fedper": AlgorithmRow(
        algorithms.fedper,
        functools.partial(algorithms.fedper, client_optimizer=optax.sgd(0.2), **SOME),
        model=_NET,
        params=_net,
    ),
    "lg_fedavg": AlgorithmRow(
        algorithms.lg_fedavg,
        functools.partial(algorithms.lg_fedavg, client_optimizer=optax.sgd(0.2), **SOME),
        model=_NET,
        params=_net,
    ),
    "fedbabu": AlgorithmRow(
        algorithms.fedbabu,
        functools.partial(algorithms.fedbabu, client_optimizer=optax.sgd(0.2), **SOME),
        model=_NET,
        params=_net,
    ),
    "fine_tuned": AlgorithmRow(
        algorithms.fine_tuned,
        lambda model: algorithms.fine_tuned(fedavg(model), HONEST, batching=Batching(BATCH_SIZE)),
    ),
    "fedrod": AlgorithmRow(
        algorithms.fedrod,
        functools.partial(algorithms.fedrod, client_optimizer=optax.sgd(0.2), **SOME),
        model=_NET,
        params=_net,
    ),
    "fedbn": AlgorithmRow(
        algorithms.fedbn,
        functools.partial(
            algorithms.fedbn, client_optimizer=optax.sgd(0.2), local="dense_0/bias", **SOME
        ),
        model=_NET,
        params=_net,
    ),
    "fedrep": AlgorithmRow(
        algorithms.fedrep,
        functools.partial(algorithms.fedrep, client_optimizer=optax.sgd(0.2), **SOME),
        model=_NET,
        params=_net,
    ),
    "fedala": AlgorithmRow(
        algorithms.fedala,
        lambda model: algorithms.fedala(model, client_optimizer=optax.sgd(0.2), **SOME),
    ),
    "fedproto": AlgorithmRow(
        algorithms.fedproto,
        lambda model: algorithms.fedproto(model, pull=1.0, client_optimizer=optax.sgd(0.2), **SOME),
        model=models.mlp(CLASSES, hidden=(7,)),
        params=_wide,
    ),
    "pfnm": AlgorithmRow(
        algorithms.pfnm,
        lambda model: algorithms.pfnm(
            model, client_optimizer=optax.sgd(0.2), pull=0.1, num_passes=0, **SOME
        ),
        model=models.mlp(CLASSES, hidden=(3,)),
        params=_wide,
        opts_out={
            "test_a_round_without_jit_is_the_same": "an assignment is thousands of small steps; "
            "test_pfnm.py compares rounds with NumPy"
        },
    ),
}


def _linen() -> Model:
    import flax.linen as nn

    return models.from_linen(nn.Dense(CLASSES))


def _nnx() -> Model:
    from flax import nnx

    return models.from_nnx(lambda rngs: nnx.Linear(FEATURES, CLASSES, rngs=rngs))


def _functions() -> Model:
    def init(key: Array) -> Params:
        return jax.random.normal(key, (FEATURES, CLASSES))

    return models.from_functions(init, lambda params, inputs: jnp.sin(inputs @ params))


_VECTORS = np.linspace(-1, 1, 4 * FEATURES, dtype=np.float32).reshape(4, FEATURES)
_IMAGES = (np.arange(4 * 8 * 8) * 37 % 256).astype(np.uint8).reshape(4, 8, 8)
_TOKENS = (np.arange(4 * 6) * 5 % CLASSES).astype(np.int32).reshape(4, 6)

# build() -> Model; reference: (inputs [B, ...], the shape of the outputs).
MODELS = {
    "logistic": Row(
        models.logistic,
        lambda: models.logistic(CLASSES),
        (_VECTORS, (4, CLASSES)),
        {"test_init_follows_its_key": "starts at zero, which a convex problem allows"},
    ),
    "logistic, glorot": Row(
        models.logistic,
        lambda: models.logistic(CLASSES, init="glorot"),
        (_VECTORS, (4, CLASSES)),
    ),
    "mlp": Row(models.mlp, lambda: models.mlp(CLASSES, hidden=(4,)), (_VECTORS, (4, CLASSES))),
    "mixed_precision": Row(
        models.mixed_precision,
        lambda: models.mixed_precision(models.mlp(CLASSES, hidden=(4,))),
        (_VECTORS, (4, CLASSES)),
    ),
    "emnist_cnn": Row(
        models.emnist_cnn, lambda: models.emnist_cnn(CLASSES), (_IMAGES, (4, CLASSES))
    ),
    "simple_cnn": Row(
        models.simple_cnn, lambda: models.simple_cnn(CLASSES), (_IMAGES, (4, CLASSES))
    ),
    "lens_cnn": Row(
        models.lens_cnn,
        lambda: models.lens_cnn(CLASSES),
        (np.tile(_IMAGES, (1, 2, 2)), (4, CLASSES)),
    ),
    "mnist_cnn": Row(models.mnist_cnn, lambda: models.mnist_cnn(CLASSES), (_IMAGES, (4, CLASSES))),
    "lenet": Row(
        models.lenet,
        lambda: models.lenet(CLASSES, channels=(2, 3), hidden=4),
        (np.tile(_IMAGES, (1, 2, 2)), (4, CLASSES)),
    ),
    "char_lstm": Row(
        models.char_lstm,
        lambda: models.char_lstm(CLASSES, embedding=2, hidden=3),
        (_TOKENS, (4, 6, CLASSES)),
    ),
    "from_functions": Row(models.from_functions, _functions, (_VECTORS, (4, CLASSES))),
    "from_linen": Row(models.from_linen, _linen, (_VECTORS, (4, CLASSES))),
    "from_nnx": Row(models.from_nnx, _nnx, (_VECTORS, (4, CLASSES))),
    "scaled_outputs": Row(
        models.scaled_outputs,
        lambda: models.scaled_outputs(models.mlp(CLASSES, hidden=(4,)), shift=3.0, scale=2.0),
        (_VECTORS, (4, CLASSES)),
    ),
    "freeze": Row(
        models.freeze,
        lambda: models.freeze(models.mlp(CLASSES, hidden=(4,)), "dense_0/*"),
        (_VECTORS, (4, CLASSES)),
    ),
    "build": Row(
        models.build,
        lambda: models.build("mlp", CLASSES, hidden=(5,)),
        (_VECTORS, (4, CLASSES)),
    ),
}

# build(noise multiplier) -> Noise.
NOISES = {
    "gaussian": Row(privacy.gaussian, privacy.gaussian),
    "laplace": Row(privacy.laplace, privacy.laplace),
    "tree": Row(privacy.tree, functools.partial(privacy.tree, num_rounds=5)),
    "banded": Row(privacy.banded, functools.partial(privacy.banded, num_bands=3)),
    "banded, one": Row(privacy.banded, functools.partial(privacy.banded, num_bands=1)),
}

ROWS: list[tuple[str, Row]] = [
    *AGGREGATORS.items(),
    *NOISES.items(),
    *SAMPLERS.items(),
    *CLIENT_RULES.items(),
    *ATTACKS.items(),
    *SERVERS.items(),
    *UPLINKS.items(),
    *ALGORITHMS.items(),
    *MODELS.items(),
]


OTHERWISE: dict[Callable[..., Any], str] = {
    **dict.fromkeys(
        (metrics.f1, metrics.calibration_error, metrics.each_client),
        "is compared with scikit-learn, client by client: test_client_metrics.py",
    ),
}
"""Public factories that have no row, each with the reason."""


def without_row(*planted: types.ModuleType, rows: Iterable[tuple[str, Row]] = ROWS) -> set[str]:
    """The names of public factories that no row covers."""
    covered = {row.factory for _, row in rows} | OTHERWISE.keys()
    return {f"{f.__module__}.{f.__name__}" for f in factories(*planted) - covered}

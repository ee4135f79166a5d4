"""Every law of a contract on every part that signs it; the table is contracts.py."""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compilation
import contracts
import record
from contracts import (
    AGGREGATORS,
    ALGORITHMS,
    ATTACKS,
    CLIENT_RULES,
    MODELS,
    NOISES,
    SAMPLERS,
    SERVERS,
    UPLINKS,
    AlgorithmRow,
    Row,
    told,
)
from fedjax_sim.base import (
    Aggregator,
    Algorithm,
    Batch,
    Client,
    History,
    Message,
    Model,
    Report,
    Uplink,
    split,
)
from fedjax_sim.ops import coding, keys, permutation, trees

KEY = jax.random.key(17)
LAWS: set[str] = set()


def law(rows: dict[str, Row]) -> Callable:
    """Run a test, a law, on every row that does not opt out of it."""

    def decorate(test: Callable) -> Callable:
        LAWS.add(test.__name__)
        kept = [
            pytest.param(row, id=name)
            for name, row in rows.items()
            if test.__name__ not in row.opts_out
        ]
        return pytest.mark.parametrize("row", kept)(test)

    return decorate


def assert_equal(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a: Any, b: Any, atol: float = 1e-6) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=atol), a, b)


def shapes(tree: Any) -> Any:
    """Structure, shapes and dtypes, to compare."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]


def weak(tree: Any) -> list[str]:
    """Leaves of Python's dtypes: a round makes them NumPy's, and so the next is compiled anew."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path) for path, x in leaves if jax.typeof(x).weak_type]


# The table itself.


def test_every_public_factory_has_a_row():
    assert contracts.without_row() == set()


def test_every_row_belongs_to_a_public_factory():
    found = contracts.factories()
    assert {row.factory for _, row in contracts.ROWS} | contracts.OTHERWISE.keys() == found


def test_a_planted_factory_without_a_row_is_found():
    planted = types.ModuleType("planted")
    source = """
from fedjax_sim.base import Aggregator, Sampler
from fedjax_sim.servers.sampling import uniform
def trimmed() -> Aggregator: ...
def quoted() -> "Sampler": ...
def helper() -> int: ...
def untyped(): ...
def _private() -> Aggregator: ...
"""
    exec(source, vars(planted))
    assert contracts.without_row(planted) == {"planted.trimmed", "planted.quoted"}
    fewer = [item for item in contracts.ROWS if item[0] != "uniform"]
    assert contracts.without_row(rows=fewer) == {"fedjax_sim.servers.sampling.uniform"}


def test_laws_are_opted_out_of_by_name_and_with_a_reason():
    for name, row in contracts.ROWS:
        assert row.opts_out.keys() <= LAWS, name
        assert all(len(reason) > 10 for reason in row.opts_out.values()), name


# Aggregators.


COHORT = 12


def tree(rng: np.random.Generator) -> Any:
    """Standard normal updates of a small tree, in float32."""
    vectors = [rng.normal(size=COHORT), rng.normal(size=(COHORT, 4))]
    updates = {"a": rng.normal(size=(COHORT, 2, 3)), "b": vectors}
    return jax.tree.map(lambda u: u.astype(np.float32), updates)


@st.composite
def stacks(draw: Any, least: int) -> tuple[Any, np.ndarray]:
    """(updates [C, ...] in float32, weights [C]), of two shapes only: each is compiled."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    num_clients = draw(st.sampled_from([least, COHORT]))
    updates = tree(rng) if num_clients == COHORT else rng.normal(size=(least, 3)).astype(np.float32)
    size = np.float32(10.0 ** draw(st.integers(-3, 3)))
    updates = jax.tree.map(lambda u: size * u, updates)
    amount = st.sampled_from([0.0, 1.0, 2.5, 60.0, 30000.0])
    weights = draw(st.lists(amount, min_size=num_clients, max_size=num_clients))
    return updates, np.array(weights, np.float32)


def cohort() -> tuple[Any, np.ndarray]:
    """Twelve updates of a small tree, the third of weight 0."""
    weights = np.array([1, 4, 0, 2.5, 30, 1, 1, 2, 3, 0.5, 7, 1], np.float32)
    return tree(np.random.default_rng(9)), weights


def flat(updates: Any) -> np.ndarray:
    """[C, D] in float64."""
    leaves = [np.asarray(u, np.float64) for u in jax.tree.leaves(updates)]
    return np.concatenate([u.reshape(len(u), -1) for u in leaves], axis=1)


def one(updates: Any) -> Any:
    return jax.tree.map(lambda u: u[0], updates)


class Compiled(NamedTuple):
    """An aggregator and its jitted apply(key, state, updates, weights), which counts traces."""

    aggregator: Aggregator
    apply: Callable
    traces: list[None]


@functools.cache
def compiled(row: Row) -> Compiled:
    aggregator, traces = row.build(), []

    def apply(*args: Any) -> Any:
        traces.append(None)
        return aggregator.apply(*args)

    return Compiled(aggregator, jax.jit(apply), traces)


def aggregate(row: Row, updates: Any, weights: np.ndarray) -> Any:
    part = compiled(row)
    return part.apply(KEY, part.aggregator.init(one(updates)), updates, weights)[1]


@law(AGGREGATORS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_an_aggregate_equals_the_float64_reference(row, data):
    updates, weights = data.draw(stacks(row.least))
    out = aggregate(row, updates, weights)
    assert jax.tree.structure(out) == jax.tree.structure(updates)
    found = np.concatenate([np.ravel(u) for u in jax.tree.leaves(out)])
    rows, weights = flat(updates), weights.astype(np.float64)
    expected = row.reference(rows, weights)
    error = np.abs(found - expected).max()
    # Rules add up C clients or D columns, two of each in a row, and n terms take n roundings by up
    # to eps / 2 of the largest: (C + D) eps.
    rounding = sum(rows.shape) * float(np.finfo(np.float32).eps)
    tolerance = rounding * np.abs(rows).max()
    if error > tolerance:
        # Some rules are as sensitive: between clients that are equally good but for that much they
        # choose either way, of two main directions that are equally long they take a mixture.
        noise = np.random.default_rng(0).uniform(-1, 1, (20, *rows.shape))
        nearby = [row.reference(rows * (1 + rounding * each), weights) for each in noise]
        tolerance += np.abs(np.array(nearby) - expected).max()
    assert error <= tolerance


@law(AGGREGATORS)
def test_a_row_of_weight_zero_may_hold_anything(row):
    updates, weights = cohort()
    expected = aggregate(row, updates, weights)
    for junk in (np.nan, np.inf, 1e30):
        spoilt = jax.tree.map(np.copy, updates)
        for leaf in jax.tree.leaves(spoilt):
            leaf[2] = junk
        assert_equal(aggregate(row, spoilt, weights), expected)


@law(AGGREGATORS)
def test_the_order_of_clients_does_not_matter(row):
    updates, weights = cohort()
    expected = aggregate(row, updates, weights)
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(COHORT)
        shuffled = jax.tree.map(lambda u: u[order], updates)  # noqa: B023
        assert_close(aggregate(row, shuffled, weights[order]), expected)


@law(AGGREGATORS)
@pytest.mark.parametrize("factor", [1e-4, 7.0, 1e4])
def test_only_ratios_of_weights_matter(row, factor):
    updates, weights = cohort()
    expected = aggregate(row, updates, weights)
    assert_close(aggregate(row, updates, np.float32(factor) * weights), expected)


def with_halves(updates: Any) -> Any:
    """With leaves of half precision, whose weighted sums stay in its range here."""
    halves = {"half": jnp.float16, "brain": jnp.bfloat16}
    return updates | {name: updates["a"].astype(dtype) for name, dtype in halves.items()}


@law(AGGREGATORS)
def test_dtypes_and_structure_are_kept(row):
    aggregator = row.build()
    updates, weights = cohort()
    updates = with_halves(updates)
    state = aggregator.init(one(updates))
    out = jax.eval_shape(lambda u: aggregator.apply(KEY, state, u, weights)[1], updates)
    assert shapes(out) == shapes(one(updates))


@law(AGGREGATORS)
def test_an_aggregators_state_is_a_stable_carry(row):
    aggregator = row.build()
    updates, weights = cohort()
    state = aggregator.init(one(updates))
    assert weak(state) == []

    def carried(state: Any, flag: jax.Array) -> tuple[Any, Any]:
        new, _, info = aggregator.apply(KEY, state, updates, weights)
        return jax.lax.cond(flag, lambda: new, lambda: state), info

    end, _ = jax.eval_shape(lambda s: jax.lax.scan(carried, s, jnp.ones(3, bool)), state)
    assert shapes(end) == shapes(state)


@law(AGGREGATORS)
def test_two_calls_of_equal_shapes_are_traced_once(row):
    updates, weights = cohort()
    part = compiled(row)
    state, _, _ = part.apply(KEY, part.aggregator.init(one(updates)), updates, weights)
    traced = len(part.traces)
    part.apply(jax.random.fold_in(KEY, 1), state, jax.tree.map(lambda u: u + 1, updates), weights)
    assert len(part.traces) == traced


# One of each kind: without jit every operation is compiled by itself, for minutes in all.
@law({name: AGGREGATORS[name] for name in ("mean", "trimmed_mean", "krum", "geometric_median")})
def test_jit_changes_nothing(row):
    updates, weights = cohort()
    aggregator = row.build()
    with jax.disable_jit():
        _, plain, _ = aggregator.apply(KEY, aggregator.init(one(updates)), updates, weights)
    assert_close(aggregate(row, updates, weights), plain)


@law(AGGREGATORS)
def test_a_vmapped_aggregator_is_a_loop(row):
    """Or, what says more where there is a reference, equals it; then in half precision too."""
    updates, weights = cohort()
    if row.reference is not None:
        updates = with_halves(updates)
    aggregator = row.build()
    several = jax.tree.map(lambda u: np.stack([u, 2 * u, u[::-1]]), updates)
    weights3 = np.stack([weights, weights[::-1], np.ones(COHORT, np.float32)])
    states = jax.vmap(aggregator.init)(jax.tree.map(lambda u: u[:, 0], several))
    keys = jax.random.split(KEY, 3)
    _, out, _ = jax.jit(jax.vmap(aggregator.apply))(keys, states, several, weights3)
    for i in range(3):
        alone, found = (jax.tree.map(lambda u: u[i], x) for x in (several, out))  # noqa: B023
        if row.reference is None:
            state = aggregator.init(one(alone))
            assert_close(found, compiled(row).apply(keys[i], state, alone, weights3[i])[1])
            continue
        expected = row.reference(flat(alone), weights3[i].astype(np.float64))
        found = np.concatenate([np.ravel(np.float64(u)) for u in jax.tree.leaves(found)])
        num_single = sum(u[0].size for u in jax.tree.leaves(cohort()[0]))
        assert_close(found[:num_single], expected[:num_single], 1e-5)
        assert_close(found[num_single:], expected[num_single:], 6e-2)


@law(AGGREGATORS)
def test_an_aggregator_that_is_a_sum_says_how_it_begins_and_how_it_ends(row):
    aggregator = row.build()
    assert (aggregator.summand is None) == (aggregator.from_sum is None)


SUMS = {name: row for name, row in AGGREGATORS.items() if row.build().summand is not None}


def test_the_sums_are_known():
    """Or the laws of sums would hold of nothing."""
    private = {name for name in AGGREGATORS if name.startswith("private_mean")}
    plain = {"mean", "uniform_mean", "majority_vote", "norm_clipping, mean"}
    assert SUMS.keys() == plain | private | {"secure", "distributed_dp"}


@law(SUMS)
def test_a_streamed_aggregate_equals_the_float64_reference(row):
    """Terms added up one after another, and an own sum of NumPy's over the stack."""
    aggregator = row.build()
    updates, weights = cohort()
    spoilt = jax.tree.map(np.copy, updates)
    for leaf in jax.tree.leaves(spoilt):
        leaf[2] = np.nan  # of weight 0
    state = aggregator.init(one(updates))
    summand, total = jax.jit(aggregator.summand), None
    for i in range(COHORT):
        update = jax.tree.map(lambda u: u[i], spoilt)  # noqa: B023
        term = summand(KEY, state, jnp.int32(i), update, weights[i])
        total = term if total is None else trees.add(total, term)
    new, found, _ = jax.jit(aggregator.from_sum)(KEY, state, total)
    expected = row.reference(flat(updates), weights.astype(np.float64))
    np.testing.assert_allclose(flat(jax.tree.map(lambda u: u[None], found))[0], expected, 1e-5)
    assert shapes(new) == shapes(state)
    assert shapes(found) == shapes(one(updates))


def collecting() -> Aggregator:
    """Takes the first update, and shows all of them as they were stacked."""

    def apply(key: Any, state: Any, updates: Any, weights: Any) -> Any:
        return state, one(updates), {"updates": updates, "weights": weights}

    return Aggregator(lambda update: (), apply)


@functools.cache
def aggregated(aggregator: Aggregator, width: int) -> tuple[Any, Any]:
    """(how a round moves the model, its info)."""
    data, start = contracts.population(), contracts.initial_params(KEY)
    algorithm = contracts.fedavg(width=width, aggregator=aggregator)
    state, info = jax.jit(algorithm.step)(KEY, algorithm.init(KEY, start, data), data)
    return trees.subtract(algorithm.params(state), start), info


COLLECTING = collecting()


@law(SUMS)
@pytest.mark.parametrize("width", [1, 3])
def test_a_round_that_adds_updates_up_aggregates_the_stack_of_another(row, width):
    """The stack that another aggregator was given, aggregated by the float64 reference."""
    aggregator = row.build()
    moved, info = aggregated(aggregator, width)
    _, seen = aggregated(COLLECTING, width)
    sent = seen.cohort.num_bytes if aggregator.num_bytes is None else info.cohort.num_bytes
    assert_equal(info.cohort, seen.cohort._replace(num_bytes=sent))
    rows, weights = seen.aggregator["updates"], seen.aggregator["weights"]
    expected = row.reference(flat(rows), np.asarray(weights, np.float64))
    found = flat(jax.tree.map(lambda u: u[None], moved))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@law(AGGREGATORS)
def test_an_aggregate_moves_with_the_updates(row):
    updates, weights = cohort()
    moved = jax.tree.map(lambda u: u + np.float32(3), updates)
    expected = jax.tree.map(lambda u: u + 3, aggregate(row, updates, weights))
    assert_close(aggregate(row, moved, weights), expected, 1e-5)


@law(AGGREGATORS)
@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_an_aggregate_scales_with_the_updates(row, factor):
    updates, weights = cohort()
    scaled = jax.tree.map(lambda u: np.float32(factor) * u, updates)
    expected = jax.tree.map(lambda u: factor * u, aggregate(row, updates, weights))
    assert_close(aggregate(row, scaled, weights), expected, 1e-5 * factor)


JUNK = {
    "nan": lambda i, rows: np.full_like(rows, np.nan),
    "some nan": lambda i, rows: np.where(rows > 0, np.nan, rows),
    "infinite": lambda i, rows: np.full_like(rows, np.inf),
    "1e30": lambda i, rows: np.full_like(rows, 1e30 * (-1) ** i),
    "1e12": lambda i, rows: 1e12 * (i + 1) * rows,
    "together": lambda i, rows: np.full_like(rows, -1e3),
}


@law({name: row for name, row in AGGREGATORS.items() if row.tolerates})
@pytest.mark.parametrize("junk", JUNK)
def test_byzantine_clients_cannot_move_an_aggregate_far(row, junk):
    """As many clients as the rule tolerates send junk, at full weight; the others are honest."""
    updates, weights = cohort()
    updates = jax.tree.map(lambda u: u + np.float32(0.5), updates)
    present = np.flatnonzero(weights)
    candidates = present if row.trusted is None else np.delete(present, row.trusted)
    bad = np.random.default_rng(3).permutation(candidates)[: row.tolerates]
    honest = flat(jax.tree.map(lambda u: u[np.setdiff1d(present, bad)], updates))
    for i, slot in enumerate(bad):
        for leaf in jax.tree.leaves(updates):
            leaf[slot] = JUNK[junk](i, leaf[slot])
    out = aggregate(row, updates, (weights > 0).astype(np.float32))
    found = np.concatenate([np.ravel(u) for u in jax.tree.leaves(out)])
    if row.hull:
        assert (found >= honest.min(axis=0) - 1e-5).all()
        assert (found <= honest.max(axis=0) + 1e-5).all()
    else:
        assert np.linalg.norm(found) <= 3 * np.linalg.norm(honest, axis=1).max()


def test_a_mean_would_be_moved_far():
    """The law above can fail."""
    row = AGGREGATORS["mean"]
    planted = dataclasses.replace(row, tolerates=1)
    with pytest.raises(AssertionError):
        test_byzantine_clients_cannot_move_an_aggregate_far(planted, "1e12")


@law(AGGREGATORS)
def test_no_weight_at_all_gives_zero(row):
    updates, weights = cohort()
    spoilt = jax.tree.map(lambda u: np.full_like(u, np.nan), updates)
    for rows in (updates, spoilt):
        out = aggregate(row, rows, 0 * weights)
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(out))


# Noise.

NOISE_ROUNDS = 8


@functools.cache
def noises(row: Row, multiplier: float = 1.5, sensitivity: float = 2.0) -> Any:
    """What eight rounds add to a sum, leaves [8, ...], and the states before and after."""
    part, total = row.build(multiplier), one(with_halves(cohort()[0]))
    start = part.init(total)

    def round(state: Any, key: Any) -> tuple[Any, Any]:
        return part.apply(key, state, total, sensitivity)

    end, drawn = jax.jit(jax.lax.scan, static_argnums=0)(round, start, jax.random.split(KEY, 8))
    return drawn, start, end


@law(NOISES)
def test_noise_is_shaped_like_the_sum_and_its_state_is_a_stable_carry(row):
    drawn, start, end = noises(row)
    total = one(with_halves(cohort()[0]))
    assert weak(start) == []
    assert shapes(end) == shapes(start)
    # Added to sums, which are wide whatever updates are.
    wide = jax.tree.map(lambda x: jnp.float32(x)[None].repeat(NOISE_ROUNDS, 0), total)
    assert shapes(drawn) == shapes(wide)


@law(NOISES)
def test_noise_is_as_large_as_what_it_hides(row):
    drawn, _, _ = noises(row)
    unit, _, _ = noises(row, 1.0, 1.0)
    assert_close(drawn, jax.tree.map(lambda x: 3 * x, unit), 1e-5)
    assert_equal(noises(row, 0.0)[0], jax.tree.map(lambda x: 0 * x, drawn))
    assert row.build(1.5).std == pytest.approx(1.5 * row.build(1.0).std)


@law({name: row for name, row in NOISES.items() if row.build(1.0).encoder is not None})
def test_noise_that_hangs_together_is_decoded_from_independent_noise(row):
    """E w = z for the z that `gaussian` draws from the same keys, in float64."""
    encoder = row.build(1.0).encoder(NOISE_ROUNDS).toarray()
    assert (encoder >= 0).all() and (np.triu(encoder, 1) == 0).all()
    drawn, independent = flat(noises(row)[0]), flat(noises(NOISES["gaussian"])[0])
    np.testing.assert_allclose(encoder @ drawn, independent, atol=2e-5)


# Samplers.

NUM_CLIENTS = len(contracts.SIZES)
SAMPLER_SIZES = jnp.array(contracts.SIZES, jnp.int32)
NUM_DRAWS = 4000


@functools.cache
def drawn(row: Row, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ids and masks [NUM_DRAWS, C] of a sampler."""
    sampler = row.build(3)
    state = sampler.init(SAMPLER_SIZES)
    draw = jax.jit(jax.vmap(lambda key: sampler.apply(key, state, SAMPLER_SIZES, jnp.int32(0))[1]))
    cohorts = draw(jax.random.split(jax.random.key(seed), NUM_DRAWS))
    return np.asarray(cohorts.ids), np.asarray(cohorts.mask)


@law(SAMPLERS)
def test_a_cohort_holds_ids_or_nobody(row):
    ids, mask = drawn(row)
    assert ids.dtype == np.int32 and mask.dtype == np.bool_
    assert ids.shape == mask.shape
    assert ids.min() >= 0
    assert (ids[mask] < NUM_CLIENTS).all()
    assert (ids[~mask] == NUM_CLIENTS).all()


@law(SAMPLERS)
def test_a_cohort_has_distinct_clients(row):
    ids, mask = drawn(row)
    ordered = np.sort(np.where(mask, ids, -1 - np.arange(ids.shape[1])), axis=1)
    assert (np.diff(ordered, axis=1) > 0).all()


@law(SAMPLERS)
def test_a_sampler_is_deterministic_and_its_state_stable(row):
    sampler = row.build(3)
    state = sampler.init(SAMPLER_SIZES)
    apply = jax.jit(sampler.apply)
    new, first = apply(KEY, state, SAMPLER_SIZES, jnp.int32(0))
    _, again = apply(KEY, state, SAMPLER_SIZES, jnp.int32(0))
    assert_equal(first, again)
    assert shapes(new) == shapes(state)


@law(SAMPLERS)
def test_two_keys_draw_different_cohorts(row):
    ids, _ = drawn(row)
    assert len(np.unique(ids, axis=0)) > 10
    same = np.all(ids[1:] == ids[:-1], axis=1).mean()
    assert same < 0.2


def too_far(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Where counts are five standard deviations from what is expected, or should be zero."""
    # A client is drawn at most C times a round and draws are no more spread than Poisson.
    return np.abs(counts - expected) > 5 * np.sqrt(expected)


@law(SAMPLERS)
def test_clients_are_drawn_as_often_as_promised(row):
    ids, mask = drawn(row)
    counts = np.bincount(ids[mask], minlength=NUM_CLIENTS)
    assert not too_far(counts, NUM_DRAWS * row.reference).any()


def test_wrong_frequencies_would_be_noticed():
    """Every sampler's counts against the promises of all that promise something else."""
    for row in SAMPLERS.values():
        ids, mask = drawn(row)
        counts = np.bincount(ids[mask], minlength=NUM_CLIENTS)
        for other in SAMPLERS.values():
            if not np.allclose(other.reference, row.reference):
                assert too_far(counts, NUM_DRAWS * other.reference).any()


@law(SAMPLERS)
def test_a_cohort_that_is_too_large_is_refused(row):
    sampler = row.build(NUM_CLIENTS + 1)
    with pytest.raises(ValueError, match=rf"cohort_size must be <= {NUM_CLIENTS}.*got 7"):
        sampler.init(SAMPLER_SIZES)


# Client rules.


@functools.cache
def one_round(build: Callable[[int], Algorithm], width: int) -> Any:
    """(params, client states, info) after a round at `width`."""
    data = contracts.population()
    algorithm = build(width)
    state = algorithm.init(KEY, contracts.initial_params(KEY), data)
    state, info = jax.jit(algorithm.step)(KEY, state, data)
    return algorithm.params(state), state.clients, info.cohort


@law(CLIENT_RULES)
def test_a_zero_coefficient_is_local_sgd(row):
    plain, _, _ = one_round(row.reference, 1)
    assert_close(one_round(row.without, 1)[0], plain, 1e-7)


@law(CLIENT_RULES)
def test_the_width_of_a_round_does_not_matter(row):
    assert_close(one_round(row.within, 1), one_round(row.within, 3))


@law(CLIENT_RULES)
def test_a_rule_carries_stable_states(row):
    """What `lax.scan` over steps and over rounds needs, for one client and unbatched."""
    rule = row.build()
    params = contracts.initial_params(KEY)
    shared = params
    if row.factory is contracts.clients.scaffold:
        shared = contracts.clients.ControlledModel(params, params)
    if row.factory in ATTACKERS:
        shared = History(params, params)
    message = Message(shared, round=jnp.int32(3))
    client = Client(jnp.int32(2), jnp.int32(9), jnp.int32(3))
    examples = {"x": jnp.ones((2, contracts.FEATURES)), "y": jnp.zeros(2, jnp.int32)}
    batch = Batch(examples, jnp.array([True, False]))

    def whole(state: Any) -> tuple[Any, ...]:
        work = rule.begin(KEY, state, message, client)
        after = rule.step(KEY, work, message, batch)
        return work, after, rule.finish(KEY, state, message, client, after)

    state = rule.init(params)
    work, after, (new_state, upload, info) = jax.eval_shape(whole, state)
    assert shapes(after) == shapes(work)
    assert shapes(new_state) == shapes(state)
    assert (upload.weight.shape, upload.weight.dtype) == ((), jnp.float32)
    assert jnp.shape(upload.loss) == ()
    assert all(leaf.shape == () for leaf in info.values())


# Uplinks.


def arrived(link: Uplink, key: Any, state: Any, update: Any, weight: Any) -> tuple[Any, ...]:
    """(state, what the server has, bytes, info) of one client's update."""
    message = Message(update, round=jnp.int32(2))
    state, sent, num_bytes, info = link.apply(key, state, message, update, weight)
    received = sent if link.receive is None else link.receive(key, message, sent)
    return state, received, num_bytes, info


@functools.cache
def arriving(row: Row) -> tuple[Uplink, Callable]:
    """An uplink and its jitted `arrived`."""
    link = row.build()
    return link, jax.jit(functools.partial(arrived, link))


@law(UPLINKS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_an_uplink_equals_the_float64_reference(row, size):
    (link, arrive), (updates, weights) = arriving(row), cohort()
    for i in range(3):
        update = jax.tree.map(lambda u: np.float32(size) * u[i], updates)  # noqa: B023
        key = jax.random.fold_in(KEY, i)
        _, found, num_bytes, _ = arrive(key, link.init(update), update, weights[i])
        rows = flat(jax.tree.map(lambda u: u[None], update))
        expected = row.reference(rows[0], key)
        found = flat(jax.tree.map(lambda u: u[None], found))[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 * size)
        assert float(num_bytes) == row.num_bytes(rows.shape[1], 4)


@law(UPLINKS)
def test_bytes_are_those_of_a_packed_code(row):
    """Packed in NumPy, and unpacked again."""
    link, (updates, weights) = row.build(), cohort()
    update = one(updates)
    message = Message(update, round=jnp.int32(2))
    _, sent, num_bytes, _ = link.apply(KEY, link.init(update), message, update, weights[0])
    stream = b""
    for leaf in jax.tree.leaves(sent, is_leaf=coding.is_coded):
        if not coding.is_coded(leaf):
            stream += np.asarray(leaf).tobytes()
            continue
        values, each = np.asarray(leaf.values).ravel(), np.arange(leaf.bits)
        packed = np.packbits((values[:, None].astype(int) >> each & 1).astype(bool))
        bits = np.unpackbits(packed, count=values.size * leaf.bits).reshape(-1, leaf.bits)
        np.testing.assert_array_equal(bits @ (1 << each), values)
        stream += packed.tobytes()
    assert len(stream) == float(num_bytes)


VECTOR = 12
NUM_KEYS = 1000


@functools.cache
def received_often(row: Row) -> Callable:
    """update [VECTOR] -> what the server receives under many keys, [NUM_KEYS, VECTOR]."""
    link = row.build()

    def receive(key: Any, update: Any) -> Any:
        return arrived(link, key, link.init(update), update, jnp.float32(1))[1]

    return jax.jit(jax.vmap(receive, (0, None)))


def above(samples: np.ndarray) -> np.ndarray:
    """What a mean of samples [n, ...] is at least: five standard errors below."""
    return samples.mean(axis=0) - 5 * samples.std(axis=0) / np.sqrt(len(samples))


@st.composite
def vectors(draw: Any) -> np.ndarray:
    """Numbers alike in size, or of some sizes that differ, from 0 on."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    sizes = draw(st.lists(st.sampled_from([1.0, 0.0, 0.03, 300.0]), min_size=1, max_size=4))
    signs = rng.choice([-1, 1], VECTOR)
    return (signs * rng.choice(sizes, VECTOR) * rng.choice([1.0, 0.7], VECTOR)).astype(np.float32)


@law({name: row for name, row in UPLINKS.items() if row.unbiased or row.error or row.longest})
@settings(max_examples=8, deadline=None)
@given(update=vectors())
def test_what_arrives_is_as_near_and_as_short_as_promised(row, update):
    """On average over keys the update itself, at most so far from it, and never longer."""
    keys = jax.random.split(KEY, NUM_KEYS)
    found = np.asarray(received_often(row)(keys, update), np.float64)
    norm = np.linalg.norm(update)
    rounding = 1e-5 * norm + 1e-12
    if row.unbiased:
        unseen = 0.02 * norm  # what happens in less than one of a hundred keys
        apart = np.maximum(above(found) - update, above(-found) + update)
        assert apart.max() <= rounding + unseen
    if row.error is not None:
        errors = ((found - update) ** 2).sum(axis=1)
        assert above(errors) <= row.error(VECTOR) * norm**2 + rounding**2
    if row.longest is not None:
        assert np.linalg.norm(found, axis=1).max() <= row.longest(norm, VECTOR) + rounding


@pytest.mark.parametrize(
    "promise",
    [{"unbiased": True}, {"error": lambda size: 1 - 6 / size}, {"longest": lambda n, size: n / 2}],
    ids=lambda promise: next(iter(promise)),
)
def test_a_promise_that_is_not_kept_is_found(promise):
    planted = dataclasses.replace(UPLINKS["top_k"], **{"longest": None, "error": None} | promise)
    with pytest.raises(AssertionError):
        test_what_arrives_is_as_near_and_as_short_as_promised(planted)


@law(UPLINKS)
def test_an_uplink_keeps_shapes_and_dtypes_and_its_state_is_a_stable_carry(row):
    link, (updates, weights) = row.build(), cohort()
    update = one(with_halves(updates))
    state = link.init(update)
    assert weak(state) == []
    new, received, num_bytes, info = jax.eval_shape(
        lambda s, u: arrived(link, KEY, s, u, weights[0]), state, update
    )
    assert shapes(new) == shapes(state)
    assert shapes(received) == shapes(update)
    assert (num_bytes.shape, num_bytes.dtype) == ((), jnp.float32)
    assert all(leaf.shape == () for leaf in info.values())


@law(UPLINKS)
def test_numbers_of_half_precision_cost_half(row):
    link, (updates, weights) = row.build(), cohort()
    update = jax.tree.map(lambda u: jnp.asarray(u[0], jnp.float16), updates)
    _, found, num_bytes, _ = arrived(link, KEY, link.init(update), update, weights[0])
    assert float(num_bytes) == row.num_bytes(flat(updates).shape[1], 2)
    exact = jax.tree.map(lambda u: u.astype(jnp.float32), update)
    expected = row.reference(flat(jax.tree.map(lambda u: u[None], exact))[0], KEY)
    found = flat(jax.tree.map(lambda u: u[None], found))[0]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-2)


@law(UPLINKS)
def test_a_vmapped_uplink_is_a_loop(row):
    (link, arrive), (updates, weights) = arriving(row), cohort()
    keys = jax.random.split(KEY, COHORT)
    each = [jax.tree.map(lambda u: u[i], updates) for i in range(COHORT)]  # noqa: B023
    states = jax.tree.map(lambda *x: jnp.stack(x), *map(link.init, each))
    out = jax.jit(jax.vmap(functools.partial(arrived, link)))(keys, states, updates, weights)
    for i, update in enumerate(each):
        alone = arrive(keys[i], link.init(update), update, weights[i])
        assert_close(jax.tree.map(lambda x: x[i], out), alone)  # noqa: B023


@functools.cache
def uplinked(width: int) -> Callable:
    """number of an uplink -> what a round with it leaves at a width; one program for all."""
    links, data = [row.build() for row in UPLINKS.values()], contracts.population()

    def after(number: Any) -> Any:
        link = contracts.one_uplink_of(links, number)
        algorithm = contracts.fedavg(width=width, uplink=link)
        state = algorithm.init(KEY, contracts.initial_params(KEY), data)
        state, info = algorithm.step(KEY, state, data)
        return algorithm.params(state), state.uplink, info.cohort

    return jax.jit(after)


@law(UPLINKS)
def test_the_width_of_a_round_with_an_uplink_does_not_matter(row):
    number = jnp.int32(list(UPLINKS.values()).index(row))
    assert_close(uplinked(1)(number), uplinked(3)(number))


# Attacks.

ATTACKERS = {
    contracts.clients.malicious,
    contracts.clients.targeted_poisoning,
    contracts.clients.stealthy_poisoning,
    contracts.clients.alternating_poisoning,
}


class Scene(NamedTuple):
    """Seven updates, of which two are malicious and one, of weight 0, is NaN."""

    updates: Any
    report: Report
    malicious: np.ndarray
    message: Message


def scene(seed: int = 3) -> Scene:
    rng = np.random.default_rng(seed)

    def tree(*shape: int) -> Any:
        each = {"a": rng.normal(size=(*shape, 2, 3)), "b": [rng.normal(size=(*shape, 4))]}
        return jax.tree.map(lambda x: np.float32(x + 0.3), each)

    updates, params, previous = tree(7), tree(), tree()
    for leaf in jax.tree.leaves(updates):
        leaf[2] = np.nan
    weights = np.array([1, 4, 0, 2.5, 3, 1, 2], np.float32)
    ids = np.array([8, 3, 9, 0, 5, 1, 7], np.int32)
    malicious = np.array([0, 1, 0, 0, 0, 1, 0], bool)
    message = Message(History(params, previous), round=np.int32(5))
    return Scene(updates, told(ids, weights), malicious, message)


@functools.cache
def attacking(row: Row) -> tuple[Any, Callable]:
    attack = row.build()
    return attack, jax.jit(attack.apply)


def starting(attack: Any, act: Scene) -> Any:
    """The state of an attack that has seen the round before, if it looks at one."""
    previous = act.message.shared.previous

    def seen(state: Any) -> Any:
        if type(state) is tuple:  # of several attacks
            return tuple(map(seen, state))
        # What follows the model keeps its params of the round before; those are zeros at first.
        return previous if jax.tree.structure(state) == jax.tree.structure(previous) else state

    return seen(attack.init(one(act.updates)))


def attacked(row: Row, act: Scene) -> tuple[Any, Any, Any]:
    attack, apply = attacking(row)
    return apply(KEY, starting(attack, act), *act)


@law(ATTACKS)
def test_an_attack_equals_the_float64_reference(row):
    for seed in (3, 4):
        act = scene(seed)
        _, updates, _ = attacked(row, act)
        change = flat(jax.tree.map(lambda p, q: (p - q)[None], *act.message.shared))[0]
        rows = flat(act.updates)
        expected = row.reference(rows, act.report.weights.astype(float), act.malicious, change)
        np.testing.assert_allclose(flat(updates), expected, rtol=2e-5, atol=2e-5)


@law(ATTACKS)
def test_honest_rows_are_bit_identical(row):
    act = scene()
    _, updates, _ = attacked(row, act)
    honest = ~act.malicious
    assert_equal(*(jax.tree.map(lambda u: u[honest], x) for x in (updates, act.updates)))
    assert np.isfinite(flat(updates)[act.malicious]).all()  # whatever the NaN row holds


@law(ATTACKS)
def test_with_nobody_malicious_nothing_changes(row):
    act = scene()._replace(malicious=np.zeros(7, bool))
    assert_equal(attacked(row, act)[1], act.updates)


@law(ATTACKS)
def test_with_nobody_honest_what_is_sent_is_finite(row):
    act = scene()
    _, updates, _ = attacked(row, act._replace(malicious=act.report.weights > 0))
    assert np.isfinite(flat(updates)[act.report.weights > 0]).all()


@law(ATTACKS)
def test_an_attack_does_not_depend_on_the_order_of_clients(row):
    act = scene()
    order = np.array([6, 2, 0, 5, 3, 1, 4])
    report = Report(*(x[order] for x in act.report[:-1]), {})
    shuffled = jax.tree.map(lambda u: u[order], act.updates)
    moved = Scene(shuffled, report, act.malicious[order], act.message)
    found, expected = attacked(row, moved), attacked(row, act)
    assert_close(found[1], jax.tree.map(lambda u: u[order], expected[1]), 1e-5)
    assert_close(found[2], expected[2], 1e-5)


@law(ATTACKS)
def test_an_attacks_state_is_a_stable_carry_and_dtypes_are_kept(row):
    act = scene()
    act.updates["half"] = jnp.asarray(act.updates["a"], jnp.float16)
    halves = [{**each, "half": jnp.float16(each["a"])} for each in act.message.shared]
    act = act._replace(message=act.message._replace(shared=History(*halves)))
    attack, _ = attacking(row)
    state = attack.init(one(act.updates))
    new, updates, _ = jax.eval_shape(lambda s, a: attack.apply(KEY, s, *a), state, act)
    assert shapes(new) == shapes(state)
    assert shapes(updates) == shapes(act.updates)


@law(ATTACKS)
def test_a_vmapped_attack_is_a_loop(row):
    attack, _ = attacking(row)
    acts = [scene(), scene(8)]
    expected = [attacked(row, act) for act in acts]
    stacked = jax.tree.map(lambda *x: np.stack(x), *acts)
    states = jax.tree.map(lambda *x: jnp.stack(x), *(starting(attack, act) for act in acts))
    together = jax.jit(jax.vmap(lambda s, a: attack.apply(KEY, s, *a)))
    out = jax.device_get(together(states, stacked))
    for i in range(2):
        assert_close(jax.tree.map(lambda x: x[i], out), expected[i], 1e-5)  # noqa: B023


# Servers.


@law(SERVERS)
def test_a_servers_state_is_stable_and_its_params_come_back(row):
    server = row.build(optax.adam(0.1))
    data, params = contracts.population(), contracts.initial_params(KEY)
    state = server.init(KEY, params, data)
    assert_equal(server.params(state), params)
    four = jnp.arange(4)
    report = told(four, four + 1.0)
    new, _ = server.apply(KEY, state, jax.tree.map(jnp.ones_like, params), report)
    assert shapes(new) == shapes(state)
    assert shapes(server.params(new)) == shapes(params)


@law(SERVERS)
def test_a_server_moves_along_the_aggregate(row):
    server = row.build(optax.sgd(1.0))
    params = contracts.initial_params(KEY)
    state = server.init(KEY, params, contracts.population())
    four = jnp.arange(4)
    aggregate = jax.tree.map(lambda p: p * 0.5 + 1, params)
    new, _ = server.apply(KEY, state, aggregate, told(four, four + 1.0))
    assert_close(server.params(new), trees.add(params, aggregate))


# Algorithms.

NUM_ROUNDS = 4


class Trajectory(NamedTuple):
    """What a plain loop of the jitted step gave."""

    algorithm: Algorithm
    states: list[Any]
    info: Any
    first_traces: int
    all_traces: int


@functools.cache
def looped(row: AlgorithmRow, seed: int = 0) -> Trajectory:
    algorithm, step, traces = contracts.stepping(row)
    data = contracts.population()
    key = jax.random.key(seed)
    before = len(traces)
    states = [algorithm.init(key, row.params(KEY), data)]
    del traces[before:]  # a broadcast that looks at the data is traced by init, for its shape
    infos, counts = [], []
    for r in range(NUM_ROUNDS):
        with jax.debug_nans(True):  # as record.py has it, which shares the compiled step
            state, info = step(jax.random.fold_in(key, r), states[-1], data)
        states.append(state)
        infos.append(info)
        counts.append(len(traces))
    stacked = jax.tree.map(lambda *x: np.stack(x), *infos)
    return Trajectory(algorithm, states, stacked, counts[0], counts[-1])


def scanned(algorithm: Algorithm) -> Callable:
    """(key, state, data) -> (state, infos), all rounds in one scan."""

    def run(key: Any, state: Any, data: Any) -> tuple[Any, Any]:
        def body(state: Any, r: Any) -> tuple[Any, Any]:
            return algorithm.step(jax.random.fold_in(key, r), state, data)

        return jax.lax.scan(body, state, jnp.arange(NUM_ROUNDS))

    return run


# One of each kind: every row is scanned, too, where seeds are vmapped.
@law(
    {
        name: ALGORITHMS[name]
        for name in (
            *("fedavg", "federated", "scaffold", "mime", "agnostic_fedavg", "fair_flearn_afl"),
            *("fedfv", "feddf", "dp_ftrl", "drfa", "ditto", "ifca", "fedper", "fedala"),
        )
    }
)
def test_a_scan_is_a_python_loop_bit_for_bit(row):
    loop = looped(row)
    run = jax.jit(scanned(loop.algorithm))
    state, info = run(jax.random.key(0), loop.states[0], contracts.population())
    assert_equal(state, loop.states[-1])
    assert_equal(info, loop.info)


@law(ALGORITHMS)
def test_seeds_vmapped_are_separate_runs(row):
    seeds = range(3)
    loops = [looped(row, seed) for seed in seeds]
    states = jax.tree.map(lambda *x: np.stack(x), *(loop.states[0] for loop in loops))
    keys = jax.vmap(jax.random.key)(jnp.arange(3, dtype=jnp.uint32))
    run = jax.jit(jax.vmap(scanned(loops[0].algorithm), in_axes=(0, 0, None)))
    out = jax.device_get(run(keys, states, contracts.population()))
    for seed, loop in zip(seeds, loops, strict=True):
        found = jax.tree.map(lambda x: x[seed], out)  # noqa: B023
        assert_close(found, (loop.states[-1], loop.info))


# One of each kind: what sums up, has an aggregator, an uplink and an attack, keeps states, weighs
# gradients, solves a program, trains at the server, adds noise, takes two steps, splits its model.
@law(
    {
        name: ALGORITHMS[name]
        for name in (
            *("fedavg", "federated", "scaffold", "agnostic, per domain", "agnostic, weighted"),
            *("agnostic_fedavg", "fedfv", "feddf", "dp_fedavg", "drfa", "ditto", "fedper"),
        )
    }
)
def test_a_round_without_jit_is_the_same(row):
    loop = looped(row)
    key = jax.random.fold_in(jax.random.key(0), 0)
    with compilation.only_draws_jitted(), jax.disable_jit():
        state, info = loop.algorithm.step(key, loop.states[0], contracts.population())
    assert_close(state, loop.states[1])
    assert_close(info, jax.tree.map(lambda x: x[0], loop.info))


def test_what_is_drawn_without_jit_is_the_same():
    """Which rounds without jit leave compiled."""

    def draw(key: Any) -> tuple[Any, Any, Any]:
        words = permutation.words(key)
        shuffled = permutation.permute(words, 5, jnp.arange(5))
        return words, shuffled, jax.random.key_data(keys.fold_in(key, 3))

    expected = jax.jit(draw)(KEY)
    with jax.disable_jit():
        assert_equal(draw(KEY), expected)


@law(ALGORITHMS)
def test_one_compilation_serves_all_rounds_and_seeds(row):
    loops = [looped(row, seed) for seed in range(3)]
    assert {loop.all_traces for loop in loops} == {loops[0].first_traces}


@jax.jit
def distance(a: Any, b: Any) -> jax.Array:
    return trees.norm(trees.subtract(a, b))


@law(ALGORITHMS)
def test_an_algorithms_state_is_a_stable_carry(row):
    loop = looped(row)
    data, params = contracts.population(), row.params(KEY)
    assert weak(loop.states[0]) == []
    for state in loop.states[1:]:
        assert shapes(state) == shapes(loop.states[0])
    as_carry = jax.eval_shape(lambda s: loop.algorithm.step(KEY, s, data)[0], loop.states[0])
    assert shapes(as_carry) == shapes(loop.states[0])
    for state in loop.states:
        assert shapes(loop.algorithm.params(state)) == shapes(params)
    assert_equal(loop.algorithm.params(loop.states[0]), params)
    assert distance(loop.algorithm.params(loop.states[-1]), params) > 0.05


@law(ALGORITHMS)
def test_an_algorithm_computes_what_is_recorded(row):
    """The others: test_record.py. Here the compiled step is at hand."""
    (name,) = (name for name, each in ALGORITHMS.items() if each is row)
    record.assert_recorded(f"algorithm/{name}")


@law(ALGORITHMS)
def test_two_seeds_draw_different_cohorts(row):
    ids = [looped(row, seed).info.cohort.ids for seed in range(3)]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (np.sort(ids[a]) != np.sort(ids[b])).any()
    assert len(np.unique(np.sort(ids[0]), axis=0)) > 1  # and so do two rounds


@law(ALGORITHMS)
def test_two_seeds_draw_different_batches(row):
    """The same client from the same params: with another order, another loss after an epoch."""
    a, b = (looped(row, seed).info.cohort for seed in (0, 1))
    several = {k for k, size in enumerate(contracts.SIZES) if size > contracts.BATCH_SIZE}
    shared = several & set(a.ids[0].tolist()) & set(b.ids[0].tolist())
    assert shared
    losses = [{k: c.loss[0][c.ids[0] == k].item() for k in shared} for c in (a, b)]
    assert losses[0] != losses[1]  # a client of five may draw the same three batches twice


# Models.


@functools.cache
def model(row: Row) -> tuple[Model, Any, Callable]:
    """(model, params, jitted apply in evaluation mode)."""
    built = row.build()
    inputs, _ = row.reference
    return built, built.init(KEY, inputs), jax.jit(lambda p, x: built.apply(p, x))


@law(MODELS)
def test_params_are_float32(row):
    _, params, _ = model(row)
    leaves = jax.tree.leaves(params)
    assert leaves and {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@law(MODELS)
def test_init_follows_its_key(row):
    built, params, _ = model(row)
    inputs, _ = row.reference
    assert_equal(built.init(KEY, inputs), params)
    other = built.init(jax.random.fold_in(KEY, 1), inputs)
    assert shapes(other) == shapes(params)
    assert not np.allclose(jax.tree.leaves(other)[-1], jax.tree.leaves(params)[-1])


@law(MODELS)
def test_init_looks_at_shapes_alone(row):
    """Of the inputs only shape and dtype matter, not even how many there are."""
    built, params, _ = model(row)
    inputs, _ = row.reference
    assert_equal(built.init(KEY, np.zeros_like(inputs[:1])), params)


@law(MODELS)
def test_outputs_are_deterministic_finite_and_of_the_right_shape(row):
    built, params, apply = model(row)
    inputs, shape = row.reference
    out = apply(params, inputs)
    assert out.shape == shape and out.dtype == jnp.float32
    assert np.isfinite(out).all()
    assert_close(out, built.apply(params, inputs))  # jit changes nothing
    assert_equal(out, apply(params, inputs))
    first = apply(params, inputs[:1])
    assert_close(first, out[:1])  # an example's outputs do not depend on its neighbours


@law(MODELS)
def test_models_vmap_over_params(row):
    built, params, apply = model(row)
    inputs, _ = row.reference
    two = jax.tree.map(lambda p: np.stack([p, np.float32(0.5) * p]), params)
    out = jax.jit(jax.vmap(built.apply, in_axes=(0, None)))(two, inputs)
    for i in range(2):
        assert_close(out[i], apply(jax.tree.map(lambda p: p[i], two), inputs))  # noqa: B023


@law(MODELS)
def test_training_moves_statistics_and_keeps_their_structure(row):
    built, params, _ = model(row)
    inputs, shape = row.reference
    out, moved = jax.eval_shape(lambda p: built.train(p, inputs, KEY), params)
    assert out.shape == shape
    assert shapes(moved) == shapes(split(params, built.kinds).statistics)


@law(MODELS)
def test_leaves_taken_apart_are_put_together_again(row):
    built, params, _ = model(row)
    leaves = split(params, built.kinds)
    assert_equal(leaves.params, params)
    sizes = [len(jax.tree.leaves(part)) for part in leaves]
    assert sum(sizes) == len(jax.tree.leaves(params)) and sizes[0] > 0

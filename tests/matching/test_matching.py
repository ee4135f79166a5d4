"""Linear assignment against SciPy; PFNM against the authors' numbers and a NumPy twin."""

import functools
import itertools

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import reference_matching as reference
from fedjax_sim import matching
from fedjax_sim.matching import Prior
from fedjax_sim.matching.assignment import assign_or_leave
from fedjax_sim.matching.neurons import Spread, estimated

jitted_assign_or_leave = jax.jit(assign_or_leave)


def best(costs: np.ndarray) -> float:
    return costs[linear_sum_assignment(costs)].sum()


def check_assignment(columns: np.ndarray, costs: np.ndarray, tolerance: float = 1e-6) -> None:
    """It is one, and as good as SciPy's to a fraction of what costs could add up to."""
    rows = np.flatnonzero(columns >= 0)
    assert len(rows) == min(costs.shape)
    assert len(set(columns[rows])) == len(rows) and columns.max() < costs.shape[1]
    scale = np.abs(costs).max() * len(rows) + 1
    assert abs(costs[rows, columns[rows]].sum() - best(costs)) <= tolerance * scale


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    st.sampled_from([(1, 1), (4, 4), (4, 7), (7, 4), (1, 5), (5, 1)]).flatmap(
        lambda shape: arrays.arrays(
            np.float32,
            shape,
            # Small integers make ties, the others do not. Of these float32 adds up and subtracts
            # hundreds without rounding, and the solver does nothing else: the optimum is exact.
            elements=st.one_of(
                st.integers(-2, 2), st.integers(-64_000, 64_000).map(lambda n: n / 64)
            ),
        )
    )
)
def test_assignment_is_as_good_as_scipys(costs):
    check_assignment(np.asarray(matching.assignment(costs)), costs.astype(float), tolerance=0)


@pytest.mark.parametrize("shape", [(1000, 1000), (100, 700), (300, 40)])
def test_large_assignments(shape, rng):
    points = rng.normal(size=(shape[0], 1, 6)) - rng.normal(size=(1, shape[1], 6))
    costs = (points**2).sum(axis=-1).astype(np.float32)
    check_assignment(np.asarray(matching.assignment(costs)), costs.astype(float))


def test_assignment_in_batches_and_under_vmap(rng):
    costs = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    together = np.asarray(matching.assignment(costs))
    mapped = np.asarray(jax.jit(jax.vmap(jax.vmap(matching.assignment)))(costs))
    assert together.shape == (2, 3, 4)
    for index in np.ndindex(2, 3):
        check_assignment(together[index], costs[index].astype(float))
        check_assignment(mapped[index], costs[index].astype(float))


@pytest.mark.parametrize("num_columns", [2, 3, 6])
def test_padded_rows_change_nothing(num_columns, rng):
    costs = rng.normal(size=(5, num_columns)).astype(np.float32)
    live = np.array([True, False, True, True, False])
    costs[~live] = np.nan
    columns = np.asarray(matching.assignment(costs, rows=live))
    assert (columns[~live] == -1).all()
    check_assignment(columns[live], costs[live].astype(float))


def test_integer_costs_and_no_costs():
    assert matching.assignment(np.array([[3, 1], [1, 5]])).tolist() == [1, 0]
    assert matching.assignment(np.empty((2, 0, 3))).shape == (2, 0)
    assert matching.assignment(np.empty((2, 0))).tolist() == [-1, -1]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_costs_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match=r"costs must be finite.*index \[1, 0\]"):
        matching.assignment(np.array([[0.0, 1.0], [bad, 2.0]]))
    inside_jit = jax.jit(matching.assignment)(np.array([[0.0, 1.0], [bad, 2.0]]))
    assert inside_jit.shape == (2,)  # arbitrary, but it ends


def test_assignment_refuses_other_shapes():
    with pytest.raises(ValueError, match="costs must have shape"):
        matching.assignment(np.zeros(3))
    with pytest.raises(ValueError, match="rows must have shape"):
        matching.assignment(np.zeros((3, 2)), rows=np.ones(2, bool))


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(3, 8), st.booleans())
def test_leaving_rows_alone_is_as_good_as_with_a_column_for_each(seed, capacity, ties):
    """Against SciPy on the matrix in which every exit is a column of its own."""
    rng = np.random.default_rng(seed)
    num_rows, num_columns = 8, 5
    costs = rng.normal(size=(num_rows, num_columns))
    alone = rng.normal(size=num_rows)
    if ties:
        costs, alone = np.round(costs), np.round(alone)
    # Multiples of 1/1024, of which float32 makes exact sums: nothing is to be pardoned.
    costs, alone = np.round(costs * 1024) / 1024, np.round(alone * 1024) / 1024
    costs[:, rng.random(num_columns) < 0.2] = np.inf
    capacity = max(capacity, num_rows - int(np.isfinite(costs[0]).sum()))
    crowding = np.full(num_rows, np.inf)
    crowding[:capacity] = np.round(2048 * np.log(np.arange(1, capacity + 1))) / 1024
    chosen = np.asarray(
        jitted_assign_or_leave(
            *(jnp.asarray(x, jnp.float32) for x in (costs, alone, crowding)),
            jnp.ones(num_rows, bool),
        )
    )
    leaves = chosen == num_columns
    value = costs[~leaves, chosen[~leaves]].sum() + alone[leaves].sum()
    value += crowding[: leaves.sum()].sum()
    exits = alone[:, None] + crowding[None, :capacity]
    table = np.where(np.isfinite(costs), costs, 1e6)
    assert len(set(chosen[~leaves])) == (~leaves).sum()
    assert value == best(np.concatenate([table, exits], axis=1))


# PFNM


def one_hidden_layer(J=3, L=4, D=3, K=2, seed=0):
    """Clients with noisy copies of 4 of 6 neurons; the authors' code gave GOLDEN for them."""
    r = np.random.RandomState(seed)
    atoms = r.normal(0, 1, (6, D + 1 + K))
    clients, counts = [], []
    for j in range(J):
        rows = atoms[r.permutation(6)[:L]] + r.normal(0, 0.1, (L, D + 1 + K))
        clients.append(
            [(rows[:, :D].T, rows[:, D]), (rows[:, D + 1 :], np.full(K, 0.1) + 0.01 * j)]
        )
        counts.append([10 * (j + 1), 5 * (J - j)])
    return clients, np.array(counts)


def two_hidden_layers(J=3, seed=1):
    """Permuted noisy copies of one network 3-4-5-2."""
    r = np.random.RandomState(seed)
    base = [
        *(r.normal(0, 1, (3, 4)), r.normal(0, 0.1, 4), r.normal(0, 1, (4, 5))),
        *(r.normal(0, 0.1, 5), r.normal(0, 1, (5, 2)), np.full(2, 0.1)),
    ]
    clients, counts = [], []
    for j in range(J):
        p, q = r.permutation(4), r.permutation(5)
        order = [base[0][:, p], base[1][p], base[2][p][:, q], base[3][q], base[4][q], base[5]]
        noisy = [a + r.normal(0, 0.05, a.shape) for a in order]
        clients.append(list(zip(noisy[::2], noisy[1::2], strict=True)))
        counts.append([10 * (j + 1), 5 * (J - j)])
    return clients, np.array(counts)


# (problem, sigma, sigma0, gamma, passes): widths, which neurons coincide (None: none), and the sum
# and the sum of squares of every array, as the authors' code at commit f44cf42 gives them.
SAME = [[0, 1, 2, 3], [0, 1, 4, 2], [1, 0, 2, 4]]
DEEP = (
    [[0, 1, 2, 3], [1, 2, 3, 0], [0, 2, 3, 1]],
    [[0, 1, 2, 3, 4], [3, 4, 1, 2, 0], [2, 3, 0, 4, 1]],
)
UNIT = (
    [1.362172, 0.979332, 2.096393, 0.21],
    [7.556799, 2.74875, 2.090844, 0.022056],
)
DEEP_UNIT = (
    [-1.285749, 0.068465, -2.14749, 0.185101, 1.399356, 0.213355],
    [11.778903, 0.010642, 5.319295, 0.037067, 2.392748, 0.023362],
)
GOLDEN = [
    (one_hidden_layer, 1, 1, 1, 0, [5], [SAME], *UNIT),
    (one_hidden_layer, 1, 1, 1, 3, [5], [SAME], *UNIT),
    (
        *(one_hidden_layer, 0.1, 1, 1, 3, [6], [[[0, 1, 2, 3], [0, 4, 5, 2], [4, 3, 1, 5]]]),
        [2.952144, 1.246363, 5.703567, 0.218182],
        [18.644825, 9.135494, 11.178614, 0.02382],
    ),
    (
        *(one_hidden_layer, 0.1, 10, 50, 3, [12], None),
        [6.13812, 2.543922, 12.798507, 0.219802],
        [40.427487, 19.775864, 27.742522, 0.024178],
    ),
    (two_hidden_layers, 1, 1, 1, 0, [4, 5], DEEP, *DEEP_UNIT),
    (two_hidden_layers, 1, 1, 1, 3, [4, 5], DEEP, *DEEP_UNIT),
    (
        *(two_hidden_layers, 0.1, 1, 1, 3, [4, 5], DEEP),
        [-1.659031, -0.027787, -2.770955, 0.093678, 2.544285, 0.224281],
        [19.611077, 0.01596, 8.856267, 0.05206, 7.909911, 0.027139],
    ),
    (
        *(two_hidden_layers, 0.1, 10, 50, 3, [12, 15], None),
        [-5.092074, -0.113009, -8.504911, 0.252874, 8.045553, 0.226445],
        [61.637023, 0.055233, 27.901323, 0.181258, 26.799561, 0.027997],
    ),
]


def together(assignments) -> set[frozenset[tuple[int, int]]]:
    """Which neurons (client, number) are one: an assignment up to the numbering of neurons."""
    groups: dict[int, set[tuple[int, int]]] = {}
    for j, slots in enumerate(assignments):
        for row, slot in enumerate(np.asarray(slots).tolist()):
            groups.setdefault(slot, set()).add((j, row))
    return {frozenset(group) for group in groups.values()}


@pytest.mark.parametrize(
    ("problem", "sigma", "sigma0", "gamma", "passes", "widths", "same", "sums", "squares"), GOLDEN
)
def test_the_authors_numbers(
    problem, sigma, sigma0, gamma, passes, widths, same, sums, squares, key
):
    clients, counts = problem()
    found = matching.pfnm(
        clients, counts, prior=Prior(sigma, sigma0, gamma), num_passes=passes, key=key
    )
    assert found.num_neurons.tolist() == widths and not found.full.any()
    for h, slots in enumerate(found.assignments):
        if same is not None:
            assert together(slots) == together(same[h])
    flat = [np.asarray(x, float) for layer in found.params for x in layer]
    np.testing.assert_allclose([x.sum() for x in flat], sums, atol=1e-5)
    np.testing.assert_allclose([(x**2).sum() for x in flat], squares, atol=1e-5)


def trained(rng, widths, num_inputs=6, num_classes=3, num_clients=4, atoms=9):
    """Clients of unequal widths, with noisy copies of neurons of one larger network."""
    depth = len(widths[0])
    big = [rng.normal(size=(atoms, atoms)) for _ in range(depth + 1)]
    clients = []
    for j in range(num_clients):
        chosen = [rng.permutation(atoms)[:width] for width in widths[j]]
        ends = [np.arange(num_inputs), *chosen, np.arange(num_classes)]
        network = []
        for kernel, rows, columns in zip(big, ends[:-1], ends[1:], strict=True):
            part = kernel[np.ix_(rows, columns)]
            noisy = part + 0.2 * rng.normal(size=part.shape)
            network.append((noisy, 0.3 * rng.normal(size=len(columns))))
        clients.append(network)
    return clients, rng.integers(0, 50, (num_clients, num_classes)) + 1


UNEQUAL = {
    "one hidden layer": [[5], [3], [6], [5]],
    "two hidden layers": [[5, 3], [3, 4], [6, 4], [5, 2]],
}


@pytest.mark.parametrize("widths", UNEQUAL.values(), ids=UNEQUAL.keys())
@pytest.mark.parametrize(
    "options",
    [
        {"sigma": 0.3, "sigma0": 2.0, "gamma": 1.5, "prior_scale": 1.0},
        {"sigma": 0.3, "sigma0": 2.0, "gamma": 1.5, "prior_scale": 2.0},
        {"sigma": 1.0, "sigma0": 1.0, "gamma": 5.0, "prior_scale": 1.0, "popularity_cap": 2},
    ],
    ids=["code", "derivation", "capped"],
)
def test_pfnm_is_the_numpy_reference(widths, options, rng):
    clients, counts = trained(rng, widths)
    orders = [np.array([rng.permutation(4) for _ in range(3)]) for _ in widths[0]]
    numbers = {"sigma": 0, "sigma0": 0, "gamma": 0} | options
    cap = numbers.pop("popularity_cap", np.inf)
    wanted, slots = reference.pfnm(clients, counts, orders=orders, cap=cap, **numbers)
    numbers["scale"] = numbers.pop("prior_scale")
    prior = Prior(popularity_cap=cap, **numbers)
    found = stacked(clients, counts, orders=orders, prior=prior, num_passes=3)
    for h, each in enumerate(slots):
        assert together(found.assignments[h]) == together(each)
    # Every client's own part of the global network, which does not depend on slot numbers.
    for j in range(4):
        mine = [np.arange(6), *(found.assignments[h][j] for h in range(len(slots))), np.arange(3)]
        theirs = [np.arange(6), *(slots[h][j] for h in range(len(slots))), np.arange(3)]
        for i, ((w, b), (w_ref, b_ref)) in enumerate(zip(found.params, wanted, strict=True)):
            np.testing.assert_allclose(
                np.asarray(w)[np.ix_(mine[i], mine[i + 1])],
                w_ref[np.ix_(theirs[i], theirs[i + 1])],
                atol=1e-5,
            )
            np.testing.assert_allclose(np.asarray(b)[mine[i + 1]], b_ref[theirs[i + 1]], atol=1e-5)


@functools.cache
def compiled(num_passes):
    return jax.jit(functools.partial(matching.pfnm_stacked, num_passes=num_passes))


def stacked(clients, counts, **options) -> matching.Matching:
    """`pfnm_stacked` on padded clients, its assignments without padding."""
    widths = [[w.shape[1] for w, _ in network[:-1]] for network in clients]
    sizes = [clients[0][0][0].shape[0], *np.max(widths, axis=0), clients[0][-1][0].shape[1]]
    params = []
    for i, shape in enumerate(itertools.pairwise(sizes)):
        # What is padding may hold anything.
        kernel = np.full((len(clients), *shape), np.nan, np.float32)
        bias = np.full((len(clients), shape[1]), np.nan, np.float32)
        for j, network in enumerate(clients):
            w, b = network[i]
            kernel[j, : w.shape[0], : w.shape[1]], bias[j, : len(b)] = w, b
        params.append((kernel, bias))
    live = [
        np.arange(sizes[h + 1])[None] < np.array(widths)[:, h, None] for h in range(len(sizes) - 2)
    ]
    run = compiled(options.pop("num_passes"))
    found = run(params, counts, live=live, **{"key": jax.random.key(0)} | options)
    slots = [
        [np.asarray(each)[j, : widths[j][h]] for j in range(len(clients))]
        for h, each in enumerate(found.assignments)
    ]
    return found._replace(assignments=slots)


PRIOR = Prior(sigma=0.3, sigma0=2.0, gamma=1.5)
OPTIONS = {"prior": PRIOR, "num_passes": 2}


def test_costs_computed_beside_the_solver_are_no_trap(rng):
    """Inlined into the solver, the same cost may be rounded in two ways: no row may get lost."""

    @jax.jit
    def solve(x, y):
        costs = 0.1 * ((x**2).sum(1)[:, None] - 2 * x @ y.T + (y**2).sum(1)[None]) + 0.3
        alone = 0.7 * (x**2).sum(1) + 0.1
        crowding = 2 * jnp.log(jnp.arange(1.0, 31.0))
        return costs, alone, crowding, assign_or_leave(costs, alone, crowding, jnp.ones(30, bool))

    for _ in range(20):
        x, y = (rng.normal(size=(n, 9)).astype(np.float32) for n in (30, 40))
        costs, alone, crowding, chosen = (np.asarray(each, float) for each in solve(x, y))
        leaves = chosen == 40
        kept = chosen[~leaves].astype(int)
        value = costs[~leaves, kept].sum() + alone[leaves].sum() + crowding[: leaves.sum()].sum()
        wanted = best(np.concatenate([costs, alone[:, None] + crowding[None]], axis=1))
        np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_float32_loses_next_to_nothing_of_the_objective(rng):
    """Wide rows that nearly coincide: as good as float64, though near-ties may fall otherwise."""
    clients, counts = trained(
        rng, [[30]] * 5, num_inputs=300, num_clients=5, atoms=300, num_classes=4
    )
    orders = [np.array([rng.permutation(5) for _ in range(2)])]
    numbers = {"sigma": 0.3, "sigma0": 2.0, "gamma": 1.5}
    _, wanted = reference.pfnm(clients, counts, orders=orders, cap=10, **numbers)
    found = stacked(clients, counts, orders=orders, num_passes=2, prior=Prior(**numbers))
    rows = [np.concatenate([n[0][0].T, n[0][1][:, None], n[1][0]], axis=1) for n in clients]
    share = counts / counts.sum(axis=0)
    precisions = [np.append(np.full(301, 1 / 0.3), f / 0.3) for f in share]
    mean = np.zeros(rows[0].shape[1])
    mean[300] = 0.1
    values = [
        reference.objective(slots, rows, precisions, mean, 2.0)
        for slots in (wanted[0], found.assignments[0])
    ]
    assert abs(values[1] - values[0]) <= 1e-4 * abs(values[0])


def test_the_order_of_a_clients_neurons_does_not_matter(rng, key):
    clients, counts = trained(rng, UNEQUAL["one hidden layer"])
    order = rng.permutation(6)
    (w, b), (out, last) = clients[2]
    shuffled = [*clients[:2], [(w[:, order], b[order]), (out[order], last)], clients[3]]
    plain = matching.pfnm(clients, counts, key=key, **OPTIONS)
    other = matching.pfnm(shuffled, counts, key=key, **OPTIONS)
    x = rng.normal(size=(7, 6))
    np.testing.assert_allclose(forward(plain.params, x), forward(other.params, x), atol=1e-5)
    assert together(plain.assignments[0]) != together(other.assignments[0])


def forward(params, x):
    for w, b in params[:-1]:
        x = np.maximum(x @ np.asarray(w) + np.asarray(b), 0)
    return x @ np.asarray(params[-1][0]) + np.asarray(params[-1][1])


def test_the_padded_network_computes_the_same(rng, key):
    clients, counts = trained(rng, UNEQUAL["two hidden layers"])
    small = matching.pfnm(clients, counts, key=key, **OPTIONS)
    padded = stacked(clients, counts, key=key, **OPTIONS)
    x = rng.normal(size=(7, 6))
    np.testing.assert_allclose(forward(small.params, x), forward(padded.params, x), atol=1e-5)
    assert padded.params[0][0].shape[1] > small.params[0][0].shape[1]
    assert small.num_neurons.tolist() == [w.shape[1] for w, _ in small.params[:-1]]


def test_a_grid_under_vmap_is_a_loop_over_it(rng, key):
    clients, counts = trained(rng, [[4]] * 4)
    params = [
        tuple(np.stack(x).astype(np.float32) for x in zip(*layers, strict=True))
        for layers in zip(*clients, strict=True)
    ]

    def one(sigma, gamma):
        return matching.pfnm_stacked(
            params, counts, prior=Prior(sigma, 2.0, gamma), num_passes=2, key=key
        )

    grid = np.array([[0.1, 1.0], [1.0, 1.0], [0.3, 20.0]], np.float32)
    together_ = jax.jit(jax.vmap(one))(*grid.T)
    for g, point in enumerate(grid):
        alone = jax.jit(one)(*point)
        np.testing.assert_array_equal(together_.assignments[0][g], alone.assignments[0])
        np.testing.assert_allclose(together_.params[0][0][g], alone.params[0][0], atol=1e-6)


def test_no_pass_over_a_given_assignment_keeps_it(rng, key):
    clients, counts = trained(rng, [[4]] * 4)
    slots = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [4, 5, 6, 7], [4, 1, 2, 0]], np.int32)
    found = stacked(clients, counts, assignments=[slots], **OPTIONS | {"num_passes": 0})
    assert [each.tolist() for each in found.assignments[0]] == slots.tolist()
    assert found.counts[0][:9].tolist() == [3, 3, 3, 2, 2, 1, 1, 1, 0]


def test_a_budget_that_is_reached_is_reported(rng, key):
    clients, counts = trained(rng, UNEQUAL["one hidden layer"])
    eager = OPTIONS | {"prior": PRIOR._replace(gamma=1e4, sigma=1e-3)}
    free = matching.pfnm(clients, counts, key=key, **eager)
    assert free.num_neurons.tolist() == [19] and not free.full.any()
    tight = matching.pfnm(clients, counts, key=key, max_neurons=8, **eager)
    assert tight.num_neurons.tolist() == [8] and tight.full.all()
    assert all(len(set(np.asarray(s).tolist())) == len(s) for s in tight.assignments[0])
    with pytest.raises(ValueError, match="at least the width of the widest client, 6"):
        matching.pfnm(clients, counts, key=key, max_neurons=5, **OPTIONS)
    with pytest.raises(ValueError, match="one for each of the 1 hidden"):
        matching.pfnm(clients, counts, key=key, max_neurons=[9, 9], **OPTIONS)


def test_one_client_keeps_its_neurons(rng, key):
    """Nobody to match with: its own network, pulled to the prior mean."""
    clients, counts = trained(rng, [[5]], num_clients=1)
    found = matching.pfnm(clients, counts, key=key, **OPTIONS)
    assert found.num_neurons.tolist() == [5]
    shrink = (1 / 0.3) / (1 / 0.3 + 1 / 2.0)
    mine = np.asarray(found.params[0][0])[:, np.asarray(found.assignments[0][0])]
    np.testing.assert_allclose(mine, shrink * clients[0][0][0], atol=1e-5)


def test_empirical_bayes_recovers_the_variances(rng, key):
    """40 neurons of variance 1, copied by 6 clients with noise of variance 0.04."""
    atoms = rng.normal(size=(40, 60))
    clients = []
    for _ in range(6):
        chosen = rng.permutation(40)[:30]
        w = atoms[chosen] + 0.2 * rng.normal(size=(30, 60))
        clients.append([(w.T, np.zeros(30)), (0.01 * rng.normal(size=(30, 3)), np.zeros(3))])
    found = matching.pfnm(
        *(clients, np.ones((6, 3))),
        prior=Prior(1.0, 1.0, 1.0, scale=2.0, popularity_cap=None, bias=0.0),
        num_passes=3, key=key, empirical_bayes=True,
    )  # fmt: skip
    assert found.num_neurons.tolist() == [40]
    # The mean over 64 weights, of which the bias and the 3 into the outputs hardly vary.
    np.testing.assert_allclose(found.sigma, 0.04 * 60 / 64, rtol=0.05)
    np.testing.assert_allclose(found.sigma0, 60 / 64, rtol=0.1)


def test_every_weight_has_moment_estimates_of_its_own(rng):
    """Those of SPAHM, in loops; a weight that a client does not know counts by what is known."""
    num_clients, num_rows, width, budget = 4, 5, 7, 9
    slots = np.array([rng.permutation(budget)[:num_rows] for _ in range(num_clients)])
    rows = rng.normal(size=(num_clients, num_rows, width)) * np.linspace(0.1, 3, width) + 1
    share = np.ones((num_clients, num_rows, width))
    share[..., -1] = rng.random((num_clients, 1))
    share[2, :, -1] = 0
    before = Spread(*np.ones((3, width), np.float32))
    found = estimated(
        *(jnp.asarray(x.reshape(-1, width), jnp.float32) for x in (rows, share)),
        jnp.asarray(slots.reshape(-1)), budget, before,
    )  # fmt: skip
    for d in range(width):
        means, squares, spare, noise = [], 0.0, 0, []
        for neuron in range(budget):
            own = share[..., d][slots == neuron]
            x, own = rows[..., d][slots == neuron][own > 0], own[own > 0]
            if len(x):
                means.append((own * x).sum() / own.sum())
                squares += (own * (x - means[-1]) ** 2).sum()
                spare += len(x) - 1
                noise.append(1 / own.sum())
        mean, sigma = np.mean(means), squares / spare
        sigma0 = np.var(means) - sigma * np.mean(noise)
        np.testing.assert_allclose(found.mean[d], mean, rtol=1e-4)
        np.testing.assert_allclose(found.sigma[d], sigma, rtol=1e-3)
        floor = 1e-2 * np.var(means)
        np.testing.assert_allclose(found.sigma0[d], max(sigma0, floor), rtol=1e-3, atol=floor / 10)


def test_weights_that_tell_nothing_are_found_out(rng, key):
    """Half of the inputs have the same noise as signal: as one variance they would drown it."""
    atoms = rng.normal(size=(12, 40)) * np.repeat([1.0, 0.02], [10, 30])
    order = [rng.permutation(12) for _ in range(5)]
    clients = []
    for own in order:
        w = atoms[own] + rng.normal(size=(12, 40)) * np.repeat([0.1, 1.5], [10, 30])
        clients.append([(w.T, np.zeros(12)), (np.zeros((12, 2)), np.zeros(2))])
    prior = Prior(1.0, 1.0, 1.0, scale=2.0, popularity_cap=np.inf, bias=0.0)
    found = matching.pfnm(
        clients, np.ones((5, 2)), prior=prior, num_passes=5, key=key, empirical_bayes=True
    )
    pairs = zip(found.assignments[0], order, strict=True)
    places = [np.asarray(slots)[np.argsort(own)].tolist() for slots, own in pairs]
    assert found.num_neurons.tolist() == [12] and places == [places[0]] * 5


@pytest.mark.parametrize(("absent", "factor"), [("zero", 0.5), ("unknown", 1.0)])
def test_weights_towards_neurons_that_a_client_lacks(absent, factor, rng, key):
    """Two clients alike in the first hidden layer, unlike in the second, with a sigma for each."""
    below = rng.normal(size=(6, 5)), rng.normal(size=5)
    clients = [
        [below, *((rng.normal(size=shape), np.zeros(shape[1])) for shape in ((5, 4), (4, 3)))]
        for _ in range(2)
    ]
    found = matching.pfnm(
        clients, np.ones((2, 3)), prior=Prior((10.0, 1e-4), 1e4, 1.0, bias=0.0), num_passes=1,
        key=key, absent=absent,
    )  # fmt: skip
    assert found.num_neurons.tolist() == [5, 8]
    for j in range(2):
        mine = matching.sub_network(found.params, [slots[j] for slots in found.assignments])
        np.testing.assert_allclose(mine[0][0], below[0], rtol=1e-2)
        np.testing.assert_allclose(mine[1][0], factor * clients[j][1][0], rtol=1e-2)


def broken(change):
    clients, counts = trained(np.random.default_rng(0), UNEQUAL["two hidden layers"])
    return change([[*network] for network in clients], counts)


def without_layer(clients, counts):
    clients[1].pop()
    return clients, counts


def with_nan(clients, counts):
    clients[1][1][0][0, 0] = np.nan
    return clients, counts


def other_inputs(clients, counts):
    clients[2][0] = (np.zeros((7, 6)), np.zeros(6))
    return clients, counts


def wrong_fan_in(clients, counts):
    clients[2][1] = (np.zeros((2, 4)), np.zeros(4))
    return clients, counts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda clients, counts: ([], counts), "at least one network"),
        (without_layer, "equal depth"),
        (other_inputs, "agree in inputs and outputs"),
        (wrong_fan_in, "layer 1 of client 2 must be a kernel"),
        (with_nan, "layer 1 of client 1 has weights that are not finite"),
        (lambda clients, counts: (clients, counts[:3]), r"class_counts must have shape \(4, 3\)"),
        (lambda clients, counts: (clients, counts * [1, 0, 1]), r"nobody has \[1\]"),
        (lambda clients, counts: (clients, -counts), "class_counts must be finite and >= 0"),
    ],
)
def test_bad_networks_are_refused(change, message, key):
    clients, counts = broken(change)
    with pytest.raises(ValueError, match=message):
        matching.pfnm(clients, counts, key=key, **OPTIONS)


def test_a_hyperparameter_is_one_number_or_one_a_layer(key):
    clients, counts = trained(np.random.default_rng(0), [[4, 3]] * 4)
    with pytest.raises(ValueError, match=r"sigma0 must be one number or one for each of the 2"):
        matching.pfnm(
            clients, counts, key=key, prior=PRIOR._replace(sigma0=[1.0, 1.0, 1.0]), num_passes=2
        )
    with pytest.raises(ValueError, match=r"unknown absent 'nil'"):
        matching.pfnm(clients, counts, key=key, absent="nil", **OPTIONS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("sigma", 0.0), ("sigma0", -1.0), ("gamma", 0.0)),
        *(("num_passes", -1), ("scale", -1.0), ("popularity_cap", 0)),
    ],
)
def test_hyperparameters_are_checked(name, value, key):
    clients, counts = trained(np.random.default_rng(0), [[4]] * 4)
    with pytest.raises(ValueError, match=f"{name} must"):
        if name == "num_passes":
            matching.pfnm(clients, counts, key=key, prior=PRIOR, num_passes=value)
        matching.pfnm(clients, counts, key=key, prior=PRIOR._replace(**{name: value}), num_passes=2)


def test_permuted_copies_average_to_their_original(rng):
    original = [(rng.normal(size=s), rng.normal(size=s[1])) for s in ((5, 7), (7, 6), (6, 3))]
    copies = []
    for _ in range(3):
        p, q = rng.permutation(7), rng.permutation(6)
        (a, b), (c, d), last = original
        copies.append([(a[:, p], b[p]), (c[p][:, q], d[q]), (last[0][q], last[1])])
    params = [
        tuple(map(np.stack, zip(*layers, strict=True))) for layers in zip(*copies, strict=True)
    ]
    found = jax.jit(matching.matched_average)(params)
    x = rng.normal(size=(8, 5))
    np.testing.assert_allclose(forward(found, x), forward(original, x), atol=1e-4)
    plain = [tuple(np.mean(each, axis=0) for each in layer) for layer in params]
    assert np.abs(forward(plain, x) - forward(original, x)).max() > 0.5


def test_matched_average_needs_two_clients_and_a_hidden_layer():
    layers = [(np.ones((1, 2, 3)), np.ones((1, 3))), (np.ones((1, 3, 2)), np.ones((1, 2)))]
    with pytest.raises(ValueError, match="2 networks at least, got 1"):
        matching.matched_average(layers)
    with pytest.raises(ValueError, match="must have a hidden layer"):
        matching.matched_average(layers[:1])


def test_params_of_another_form_are_refused():
    params = {"dense_0": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}}
    assert matching.params_of(matching.layers_of(params)).keys() == params.keys()
    for other in ({"dense_1": params["dense_0"]}, {"dense_0": {"scale": 1}}, [1.0]):
        with pytest.raises(ValueError, match=r"of the form of models\.mlp"):
            matching.layers_of(other)

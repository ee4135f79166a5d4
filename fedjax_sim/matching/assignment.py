"""Exact linear assignment inside jit: shortest augmenting paths, with a priced way out.

One solver serves two problems. The plain one gives every row a column of its own at the least
total cost. The other, which neuron matching needs, lets rows also stay alone: the n-th row that
does so costs its own price plus `crowding[n - 1]`. As `crowding` never falls, this is a
minimum-cost flow in which "alone" is one node with several exits of rising price, instead of one
column for each exit; since those columns would be equal up to a constant, searching them one by one
is what makes a plain solver slow on such problems.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array
from fedjax_sim.ops import checks


def assignment(costs: Array, *, rows: Array | None = None) -> Array:
    """Give every row a column of its own so that the sum of the costs is as small as possible.

    Exact, to rounding, like `scipy.optimize.linear_sum_assignment`, but a pure function to use
    inside jit, scan and vmap. With more rows than columns the best choice of rows is matched. To
    maximise, negate. Among equally good assignments any may be returned.

    Args:
        costs: [..., R, C] finite numbers; all but the last two axes are batch axes.
        rows: [..., R] bool, False for rows that are padding, which may hold anything; all by
            default.

    Returns:
        [..., R] int32, the column of every row, -1 for rows without one.

    Raises:
        ValueError: costs without two axes, or with a NaN or an infinity (where they are known:
            inside jit this is not checked, and the result is then arbitrary).

    Cost: O(R^2 C) in the worst case. A first greedy round settles every row whose best column
    nobody else wants, so that only conflicts are searched for.

    Example:
        >>> assignment(jnp.array([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0]])).tolist()
        [1, 0]

    References:
        Jonker, Volgenant, "A shortest augmenting path algorithm for dense and sparse linear
        assignment problems", Computing 1987. Crouse, "On implementing 2D rectangular assignment
        algorithms", IEEE Transactions on Aerospace and Electronic Systems 2016.
    """
    costs = jnp.asarray(costs)
    if not jnp.issubdtype(costs.dtype, jnp.floating):
        costs = costs.astype(jnp.float32)
    if costs.ndim < 2:
        raise ValueError(f"costs must have shape [..., rows, columns], got {costs.shape}.")
    live = jnp.ones(costs.shape[:-1], bool) if rows is None else jnp.asarray(rows, bool)
    if live.shape != costs.shape[:-1]:
        raise ValueError(f"rows must have shape {costs.shape[:-1]}, got {live.shape}.")
    if not checks.is_traced(costs) and not checks.is_traced(live):
        bad = ~np.isfinite(np.asarray(costs)) & np.asarray(live)[..., None]
        if bad.any():
            where = np.argwhere(bad)[0].tolist()
            raise ValueError(
                f"costs must be finite, got {np.asarray(costs)[tuple(where)]} at index {where}. "
                "To forbid a pair, give it a cost above the sum of all others."
            )
    if 0 in costs.shape:
        return jnp.full(costs.shape[:-1], -1, jnp.int32)
    batch = costs.shape[:-2]
    flat = _assign_batch(
        costs.reshape(-1, *costs.shape[-2:]),
        live.reshape(-1, costs.shape[-2]),
        is_batch=bool(batch),
    )
    return flat.reshape(live.shape)


def _assign_batch(costs: Array, live: Array, *, is_batch: bool) -> Array:
    if not is_batch:
        return _assign(costs[0], live[0])[None]
    return jax.lax.map(lambda pair: _assign(*pair), (costs, live))


@jax.jit
def _assign(costs: Array, live: Array) -> Array:
    num_rows, num_columns = costs.shape
    # More valid rows than columns: exactly the surplus has to stay alone, at no price.
    surplus = jnp.maximum(live.sum() - num_columns, 0)
    alone = jnp.where(surplus > 0, jnp.zeros(num_rows, costs.dtype), jnp.inf)
    crowding = jnp.where(jnp.arange(num_rows) < surplus, jnp.zeros((), costs.dtype), jnp.inf)
    columns = assign_or_leave(jnp.where(live[:, None], costs, 0), alone, crowding, live)
    return jnp.where(columns < num_columns, columns, -1)


class _Search(NamedTuple):
    """A shortest-path search from one row; the two extra columns are "alone" and its exit.

    distance: [C + 2]. parent: [C + 2] the row from which a column was reached. done: [C + 2].
    sink: the last column settled. reach: its distance.
    """

    distance: Array
    parent: Array
    done: Array
    sink: Array
    reach: Array


class _State(NamedTuple):
    """columns: [R] of each row, C + 2 for none. owners: [C + 2] row of each column, -1 for free.

    u: [R] and v: [C + 2] the dual prices: costs - u - v >= 0, and 0 for assigned pairs.
    num_alone: rows that stay alone.
    fresh: bool, nobody is placed yet.
    """

    columns: Array
    owners: Array
    u: Array
    v: Array
    num_alone: Array
    fresh: Array


def assign_or_leave(costs: Array, alone: Array, crowding: Array, live: Array) -> Array:
    """Minimise the costs of matched rows, plus alone[r] of the others, plus their crowding.

    Args:
        costs: [R, C], inf for forbidden pairs.
        alone: [R], inf if no row may.
        crowding: [R] not falling, what the n-th row alone costs beyond its own price; inf beyond
            capacity. Everybody must fit: R rows <= columns that are not all inf + capacity.
        live: [R] bool, the rows to place.

    Returns:
        [R] int32, C for a row that stays alone, C + 1 for one that is not valid.
    """
    num_rows, num_columns = costs.shape
    exit_column, no_column = num_columns + 1, num_columns + 2
    infinite = jnp.full((num_rows, 1), jnp.inf, costs.dtype)
    extended = jnp.concatenate([costs, alone[:, None], infinite], axis=1)
    next_crowding = jnp.append(crowding, jnp.inf)
    nobody = _State(
        columns=jnp.full(num_rows, no_column, jnp.int32),
        owners=jnp.full(num_columns + 2, -1, jnp.int32),
        u=jnp.zeros(num_rows, costs.dtype),
        v=jnp.zeros(num_columns + 2, costs.dtype),
        num_alone=jnp.int32(0),
        fresh=jnp.bool_(True),
    )
    # The greedy round is in the loop because what enters a loop is in memory: see _min_and_where.
    state = jax.lax.while_loop(
        lambda state: (live & (state.columns == no_column)).any(),
        lambda state: jax.lax.cond(
            state.fresh,
            lambda state: _greedy(costs, alone, next_crowding, live),
            lambda state: _augment(state, extended, next_crowding, live),
            state,
        ),
        nobody,
    )
    return jnp.where(live, state.columns, exit_column)


def _augment(state: _State, extended: Array, next_crowding: Array, live: Array) -> _State:
    """Place the first row that is not placed, along the shortest path to a free column."""
    num_rows, num_extended = extended.shape
    alone_column, exit_column, no_column = num_extended - 2, num_extended - 1, num_extended
    pending = live & (state.columns == no_column)
    start = jnp.where(pending, jnp.arange(num_rows, dtype=jnp.int32), num_rows).min()
    first = _Search(
        distance=extended[start] - state.u[start] - state.v,
        parent=jnp.full(num_extended, start, jnp.int32),
        done=jnp.zeros(num_extended, bool),
        sink=jnp.int32(0),
        reach=jnp.zeros((), extended.dtype),
    )
    search = jax.lax.while_loop(
        lambda search: (state.owners[search.sink] >= 0) & jnp.isfinite(search.reach),
        lambda search: _settle(search, state, extended, next_crowding),
        _nearest(first),
    )
    # A NaN, or no way out: the row is given up, so that the loop always ends. Under vmap an
    # instance that is done comes here as well, while others go on.
    found = jnp.isfinite(search.reach) & (search.sink <= exit_column) & pending.any()
    # What was settled comes nearer by what the sink is farther, which keeps all pairs >= 0.
    slack = jnp.where(search.done & found, search.reach - search.distance, 0)
    v = (state.v - slack).at[exit_column].set(0)
    u = state.u + jnp.where(live, jnp.append(slack, 0)[state.columns], 0)
    u = u.at[start].add(jnp.where(found, search.reach, 0))
    leaves = found & (search.sink == exit_column)

    def shift(path: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        columns, owners, column = path
        row = search.parent[column]
        previous = columns[row]
        return columns.at[row].set(column), owners.at[column].set(row), previous

    end = jnp.where(leaves, alone_column, search.sink)
    columns, owners, _ = jax.lax.while_loop(
        lambda path: path[2] != no_column,
        shift,
        (state.columns, state.owners, jnp.where(found, end, no_column)),
    )
    columns = columns.at[start].min(jnp.where(found, no_column, exit_column))
    return _State(columns, owners, u, v, state.num_alone + leaves, state.fresh)


def _settle(search: _Search, state: _State, extended: Array, next_crowding: Array) -> _Search:
    """Relax what the last settled column leads to, and settle the nearest column."""
    alone_column, exit_column = extended.shape[1] - 2, extended.shape[1] - 1

    def from_alone(search: _Search) -> _Search:
        # Everybody alone may make room, so all their columns come within reach at once.
        reduced = jnp.where(
            (state.columns == alone_column)[:, None], extended - state.u[:, None], jnp.inf
        )
        least, row = _min_and_where(reduced.T)
        length = search.reach + least - state.v
        out = search.reach + next_crowding[state.num_alone] + state.v[alone_column]
        return _relax(search, length.at[exit_column].set(out), row)

    def from_row(search: _Search) -> _Search:
        row = state.owners[search.sink]
        return _relax(search, search.reach + extended[row] - state.u[row] - state.v, row)

    return _nearest(jax.lax.cond(search.sink == alone_column, from_alone, from_row, search))


def _relax(search: _Search, length: Array, row: Array) -> _Search:
    shorter = (length < search.distance) & ~search.done
    return search._replace(
        distance=jnp.where(shorter, length, search.distance),
        parent=jnp.where(shorter, row, search.parent),
    )


def _nearest(search: _Search) -> _Search:
    reach, sink = _min_and_where(jnp.where(search.done, jnp.inf, search.distance))
    return search._replace(sink=sink, reach=reach, done=search.done.at[sink].set(True))


def _greedy(costs: Array, alone: Array, next_crowding: Array, live: Array) -> _State:
    """Place all rows that do not conflict, with dual prices to which the searches can add.

    As if columns could be shared, rows gain by staying alone in a fixed order, so as many stay as
    gain more than their crowding. Conflicts only drive more rows out, so none of these returns for
    nothing. Of the others the first that wants a column gets it.
    """
    num_rows, num_columns = costs.shape
    rows = jnp.arange(num_rows, dtype=jnp.int32)
    best, wanted = _min_and_where(costs)
    gain = jnp.where(live & jnp.isfinite(alone), best - alone, -jnp.inf)
    more, equal = gain[None] > gain[:, None], gain[None] == gain[:, None]
    rank = (more | (equal & (rows[None] < rows[:, None]))).sum(axis=1)
    ranked = jnp.full(num_rows + 1, -jnp.inf, costs.dtype).at[rank].set(gain)
    num_alone = (ranked > next_crowding).sum().astype(jnp.int32)
    # The lowest price at which the others want in, and not below the crowding of the last one.
    last_crowding = jnp.where(num_alone > 0, next_crowding[jnp.maximum(num_alone - 1, 0)], -jnp.inf)
    price = jnp.maximum(ranked[num_alone], last_crowding)
    price = jnp.where(jnp.isfinite(price), price, 0)
    stays = rank < num_alone
    claims = jnp.where(live & ~stays & (wanted < num_columns), wanted, num_columns + 2)
    owners = jnp.full(num_columns + 2, num_rows, jnp.int32).at[claims].min(rows, mode="drop")
    gets = owners[wanted] == rows
    columns = jnp.where(stays, num_columns, jnp.where(gets, wanted, num_columns + 2))
    owners = jnp.where(owners == num_rows, -1, owners).at[num_columns].set(0)
    u = jnp.where(stays, jnp.where(live, alone, 0) + price, jnp.where(live, best, 0))
    v = jnp.zeros(num_columns + 2, costs.dtype).at[num_columns].set(-price)
    return _State(columns.astype(jnp.int32), owners, u, v, num_alone, jnp.bool_(False))


def _min_and_where(x: Array) -> tuple[Array, Array]:
    """The minimum along the last axis and its first place, int32; NaN and an end beyond for NaN.

    On a CPU XLA's argmin is a scalar loop, 15 times slower than these two vectorised minima. But x
    is compared with its own minimum, so it must not be rounded in two ways: it has to be in memory,
    or computed from there without products (XLA computes a product's sum again wherever it is used,
    in one rounding or in two).
    """
    least = x.min(axis=-1)
    places = jnp.arange(x.shape[-1], dtype=jnp.int32)
    places = jnp.broadcast_to(places, x.shape)
    return least, jnp.where(x == least[..., None], places, x.shape[-1]).min(axis=-1)

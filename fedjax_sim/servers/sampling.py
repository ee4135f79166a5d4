"""Which clients take part in a round."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Cohort, Key, PyTree, Sampler
from fedjax_sim.ops import checks, keys, permutation
from fedjax_sim.ops.arguments import checked


@checked
def everyone() -> Sampler:
    """All clients in every round, in the order of their ids (C = N)."""

    def apply(key: Key, state: PyTree, sizes: Array, round: Array) -> tuple[PyTree, Cohort]:
        ids = jnp.arange(sizes.shape[0], dtype=jnp.int32)
        return state, Cohort(ids, ids >= 0)

    return Sampler(lambda sizes: (), apply)


@checked
def uniform(cohort_size: int) -> Sampler:
    """Sample a cohort uniformly without replacement.

    Every client is as likely as any other, whatever it owns. Combine it with `aggregators.mean`
    (weights by examples) for the FedAvg of McMahan et al. 2017, or with `aggregators.uniform_mean`.

    Args:
        cohort_size: C, in [1, N].

    Raises:
        ValueError: at `init`, if the population has fewer than `cohort_size` clients.

    Cost: O(C) a round, whatever N is.
    """
    checks.positive_int("cohort_size", cohort_size)

    def init(sizes: Array) -> PyTree:
        _check_cohort(cohort_size, sizes.shape[0])
        return ()

    def apply(key: Key, state: PyTree, sizes: Array, round: Array) -> tuple[PyTree, Cohort]:
        slots = jnp.arange(cohort_size, dtype=jnp.int32)
        ids = permutation.permute(permutation.words(key), sizes.shape[0], slots, unroll=False)
        return state, Cohort(ids, slots >= 0)

    return Sampler(init, apply)


@checked
def by_weight(
    cohort_size: int, weights: Array | np.ndarray | None = None, *, replace: bool = True
) -> Sampler:
    """Sample clients with probability proportional to a weight.

    With replacement and the number of examples as the weight, the *uniform* mean of the cohort is
    an unbiased estimate of the data-weighted mean of the population (Li et al., "Federated
    Optimization in Heterogeneous Networks", MLSys 2020): combine it with
    `aggregators.uniform_mean`. A client that is drawn twice does the same work and counts twice.

    Args:
        cohort_size: C >= 1; without replacement at most N.
        weights: [N], >= 0, not all 0; None takes every client's number of examples.
        replace: False draws distinct clients, one after another (Gumbel top-k).

    Raises:
        ValueError: at `init`, if `weights` has the wrong length or the cohort is too large.

    Cost: O(N) a round with replacement, O(N log N) without.
    """
    checks.positive_int("cohort_size", cohort_size)
    if weights is not None:
        with np.errstate(over="ignore", under="ignore"):
            host = np.asarray(weights).astype(np.float32)  # as they are drawn with
        if host.ndim != 1 or not np.isfinite(host).all() or (host < 0).any() or not host.any():
            values = f" with range [{host.min()}, {host.max()}]" if host.size else ""
            raise ValueError(
                "weights must be one number >= 0 a client, finite in float32 and not all 0 there, "
                f"got an array of shape {host.shape}{values}. Divide them by the largest."
            )
        if not replace and (host > 0).sum() < cohort_size:
            raise ValueError(
                f"cohort_size must be <= {(host > 0).sum()}, the number of clients with a positive "
                f"weight, got {cohort_size}. Use replace=True or a smaller cohort."
            )

    def init(sizes: Array) -> PyTree:
        if weights is not None and len(weights) != sizes.shape[0]:
            raise ValueError(
                f"weights must have one entry a client ({sizes.shape[0]}), got {len(weights)}."
            )
        if not replace:
            _check_cohort(cohort_size, sizes.shape[0])
        return ()

    def apply(key: Key, state: PyTree, sizes: Array, round: Array) -> tuple[PyTree, Cohort]:
        key = keys.written_out(key)
        logits = jnp.log(jnp.asarray(sizes if weights is None else weights, jnp.float32))
        if replace:
            ids = jax.random.categorical(key, logits, shape=(cohort_size,))
        else:
            _, ids = jax.lax.top_k(logits + jax.random.gumbel(key, logits.shape), cohort_size)
        return state, Cohort(ids.astype(jnp.int32), jnp.ones(cohort_size, bool))

    return Sampler(init, apply)


@checked
def poisson(cohort_size: float, *, max_cohort_size: int | None = None) -> Sampler:
    """Let every client join by itself, with probability q = cohort_size / N, in every round.

    How many come is random. It is the sampling with the best privacy at a given noise: divide by
    the expected size, as `aggregators.private_mean` does, for how many came is private too.

    Args:
        cohort_size: q N, the expected size, in (0, N].
        max_cohort_size: C >= 1, the slots of a cohort; of more clients that would join, some are
            left out at random, which accounting for privacy does not foresee. None is the least C
            that is too small in fewer than 1e-12 of rounds, by the binomial distribution: so seldom
            that no delta in use would notice.

    Raises:
        ValueError: at `init`, if the population has fewer than `cohort_size` clients.

    Cost: O(N) a round. Slots that stay empty cost next to nothing.
    """
    checks.in_range("cohort_size", cohort_size, 0.0, open_low=True)
    if max_cohort_size is not None:
        checks.positive_int("max_cohort_size", max_cohort_size)

    def init(sizes: Array) -> PyTree:
        _check_cohort(cohort_size, sizes.shape[0])
        return ()

    def apply(key: Key, state: PyTree, sizes: Array, round: Array) -> tuple[PyTree, Cohort]:
        num_clients = sizes.shape[0]
        num_slots = max_cohort_size or _slots_enough(num_clients, cohort_size / num_clients)
        coin_key, first_key = keys.split(key)
        coins = jax.random.uniform(keys.written_out(coin_key), (num_clients,), jnp.float32)
        # Slots are filled from a random client on, so that nobody is left out more than others.
        first = jax.random.randint(keys.written_out(first_key), (), 0, num_clients, jnp.int32)
        joins = jnp.roll(coins < cohort_size / num_clients, -first)
        (places,) = jnp.nonzero(joins, size=num_slots, fill_value=num_clients)
        mask = places < num_clients
        ids = jnp.where(mask, (places + first) % num_clients, num_clients)
        return state, Cohort(ids.astype(jnp.int32), mask)

    return Sampler(init, apply)


def _slots_enough(num_clients: int, rate: float) -> int:
    """The least number that more than so many join with a probability below 1e-12."""
    from scipy import stats

    return max(1, int(stats.binom.isf(1e-12, num_clients, rate)))


@checked
def in_epochs(cohort_size: int) -> Sampler:
    """Take clients one cohort after another, in an order that is drawn once, over and over.

    Every client takes part once in each pass over the population, every ceil(N / C) rounds, so that
    how often it does is known and not left to chance: what `algorithms.dp_ftrl` is accounted by.
    Where C does not divide N, the last cohort of a pass has empty slots.

    Args:
        cohort_size: C, in [1, N].

    Raises:
        ValueError: at `init`, if the population has fewer than `cohort_size` clients.

    Cost: O(C) a round, whatever N is.
    """
    checks.positive_int("cohort_size", cohort_size)

    def init(sizes: Array) -> Array:
        _check_cohort(cohort_size, sizes.shape[0])
        return jnp.zeros(permutation.NUM_WORDS, jnp.uint32)

    def apply(key: Key, words: Array, sizes: Array, round: Array) -> tuple[Array, Cohort]:
        num_clients = sizes.shape[0]
        words = jnp.where(round == 0, permutation.words(key), words)
        first = round % -(-num_clients // cohort_size) * cohort_size
        places = first + jnp.arange(cohort_size, dtype=jnp.int32)
        mask = places < num_clients
        ids = permutation.permute(words, num_clients, places % num_clients, unroll=False)
        return words, Cohort(jnp.where(mask, ids, num_clients).astype(jnp.int32), mask)

    return Sampler(init, apply)


@checked
def with_root(sampler: Sampler) -> Sampler:
    """Let the last client of the population take part in every round, in the last slot.

    For a server that has data of its own (a root data set), as client N - 1: its update, made like
    everybody's, is what `aggregators.fltrust` and `aggregators.monna` trust. The other slots are
    filled by `sampler`, which sees a population of N - 1.

    Args:
        sampler: who else takes part.

    Raises:
        ValueError: at `init`, if there are no other clients.
    """

    def init(sizes: Array) -> PyTree:
        if sizes.shape[0] < 2:
            raise ValueError("with_root needs clients beside the root, got a population of 1.")
        return sampler.init(sizes[:-1])

    def apply(key: Key, state: PyTree, sizes: Array, round: Array) -> tuple[PyTree, Cohort]:
        num_clients = sizes.shape[0]
        state, cohort = sampler.apply(key, state, sizes[:-1], round)
        # An empty slot holds the id that nobody has, which is one more here.
        ids = jnp.append(jnp.where(cohort.mask, cohort.ids, num_clients), num_clients - 1)
        return state, Cohort(ids.astype(jnp.int32), jnp.append(cohort.mask, True))

    return Sampler(init, apply)


def _check_cohort(cohort_size: float, num_clients: int) -> None:
    if cohort_size > num_clients:
        raise ValueError(
            f"cohort_size must be <= {num_clients}, the number of clients, got {cohort_size}. "
            "Use sampling.everyone() for all of them."
        )

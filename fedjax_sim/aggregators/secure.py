"""Sums of which the server sees nothing but the sum, and private ones: `secure`, `distributed_dp`.

The terms of these aggregators are what the server sees. Call `summand` to look at one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_sim.aggregators._masking import (
    Info,
    Protocol,
    Use,
    centred,
    flat,
    key_of,
    masked_sum,
    shaped,
)
from fedjax_sim.base import Aggregator, Array, Key, PyTree
from fedjax_sim.ops import checks, hadamard, keys, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.privacy import discrete

_MORE_BITS = "Take more bits, or a smaller cohort."
_ONE_BLOCK = 1 << 30
_SLACK = 1 - 2.0**-18
"""Norms are a little wrong in float32, and else a rounding could be repeated for ever."""


@checked
def secure(
    aggregator: Aggregator,
    *,
    num_slots: int,
    max_abs: float | Array,
    max_weight: float | Array,
    bits: int = 32,
    stochastic: bool = False,
    num_neighbors: int | None = None,
    threshold: int = 0,
    dropout_rate: float | Array = 0.0,
    masked: bool = False,
) -> Aggregator:
    """Secure aggregation: the server learns the sum of the clients' terms, and no single one.

    A client cuts the entries of its term to a range [-r, r] and sends them as integers of `bits`
    bits in steps of r / floor((2^(bits-1) - 1) / num_slots), so that the sum of a cohort never
    leaves the range: nothing wraps around. The sum is the plain one but for half a step an entry
    and client (a whole one if `stochastic`) and what was cut off.

    On top, modulo 2^bits, come pseudorandom masks: one for each of its k neighbours in a ring of
    slots, which the neighbour subtracts, and one of its own. Every client leaves shares of the
    seeds with its neighbours. From those the server can make, of clients who arrive, their own
    masks, and of those who do not, the masks that they share, and take them off.

    Masks cancel bit for bit, so `masked` decides how long a round takes and not what comes out.
    Draw them to see what the server sees, which is the aggregator's `summand`.

    What is simulated: numbers, masks, who drops out, whether there are enough shares, bytes. What
    is not: key agreement, encryption, signatures, the polynomials of the shares, a server that
    cheats. Seeds come from the round's key. Statistics of a model travel in the clear.

    Args:
        aggregator: a sum, such as `mean`, `norm_clipping(mean(), ...)` or `private_mean`. Its terms
            are values shaped like an update, or a tuple of them and of weights.
        num_slots: C, the slots of a cohort, >= 3, or more; those that stay empty are like clients
            that drop out.
        max_abs: r > 0 of values, of an update of weight `max_weight`. May be traced.
        max_weight: > 0, the largest weight: a larger one counts as this. Weights are divided by
            it, so that r of weights is 1. May be traced.
        bits: of a sent number, in [2, 32].
        stochastic: round up or down at random, so that the mean is right, instead of to the
            nearest: what few bits need.
        num_neighbors: k in [2, C - 1], even if C is odd; None is everybody. What a client computes
            grows with k, as does what it takes to see through its masks.
        threshold: t in [0, k], how many neighbours must arrive for a seed to be found again. With
            fewer for any seed that is needed, nothing of the round is learnt: the aggregate is 0. A
            protocol takes more than k / 2; 0 lets every round succeed.
        dropout_rate: in [0, 1], the probability that a client drops out after masks are agreed.
            May be traced. Updates that the engine drops do so, too.
        masked: whether masks are drawn.

    Returns:
        An Aggregator with the state of `aggregator`. Info has, beside its entries, "num_arrived",
        "is_recovered" (0 or 1), "mask_words" (the words of masks that a client expands),
        "clipped_fraction" (of entries that were cut off) and "clipped_weights" (of clients), the
        last two as no server would see them. What a client sends is counted as b D / 8 bytes and
        32 for each of two public keys, 2 k shares that it deals and k that it gives back.

    Raises:
        ValueError: the aggregator is no sum, or there are too few bits for so many clients; when
            traced, the cohort is larger or the terms are of an unknown kind.

    Cost: with `masked`, (k + 1) D words a client, and as many for each on the server.

    References:
        Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS
        2017 (k = C - 1). Bell, Bonawitz, Gascon, Lepoint, Raykova, "Secure Single-Server
        Aggregation with (Poly)Logarithmic Overhead", CCS 2020 (k of order log C).
    """
    protocol = Protocol.of(bits, num_slots, num_neighbors, threshold, dropout_rate, masked)
    checks.in_range("max_abs", max_abs, 0.0, open_low=True)
    checks.in_range("max_weight", max_weight, 0.0, open_low=True)
    if aggregator.summand is None or aggregator.from_sum is None:
        raise ValueError(
            "aggregator must be a sum, such as mean(): secure aggregation shows the server the sum "
            "of the updates alone, and this rule needs single updates. Give one with summand and "
            "from_sum."
        )
    inner_summand, inner_from_sum = aggregator.summand, aggregator.from_sum
    levels = _levels(bits, num_slots)

    def encode(
        key: Key, state: PyTree, slot: Array, update: PyTree, weight: Array
    ) -> tuple[PyTree, Info]:
        inner = key_of(key, Use.INNER)
        share = jnp.minimum(weight / max_weight, 1)
        term = _of_known_range(inner_summand(inner, state, slot, update, share), update)
        scaled = jax.tree.map(lambda x, r: x.astype(jnp.float32) * (levels / r), term, ranges(term))
        cut = jax.tree.map(lambda y: jnp.clip(y, -levels, levels), scaled)
        rounding = key_of(key, Use.ROUNDING, slot) if stochastic else None
        beyond = jax.tree.map(lambda a, b: (a != b).sum(), scaled, cut)
        fraction = sum(jax.tree.leaves(beyond)) / trees.num_parameters(cut)
        too_heavy = (weight > max_weight).astype(jnp.float32)
        shown = {"clipped_fraction": jnp.float32(fraction), "clipped_weights": too_heavy}
        return jax.tree.map(lambda n: n.astype(jnp.uint32), _rounded(rounding, cut)), shown

    def decode(
        key: Key, state: PyTree, words: PyTree, num_arrived: Array
    ) -> tuple[PyTree, PyTree, Info]:
        numbers = jax.tree.map(lambda w: centred(w, bits).astype(jnp.float32), words)
        known = jax.tree.map(lambda n, r: n * (r / levels), numbers, ranges(numbers))
        total = known[0] if isinstance(known, list) else known
        return inner_from_sum(key_of(key, Use.INNER), state, total)

    def ranges(term: PyTree) -> PyTree:
        """For every leaf of a term the largest value that it may have."""
        leaves, form = jax.tree.flatten(term)
        num_values = len(jax.tree.leaves(term[0]))
        of_leaves = [max_abs] * num_values + [1.0] * (len(leaves) - num_values)
        return jax.tree.unflatten(form, of_leaves)

    part = masked_sum(protocol, encode, decode, aggregator.init)
    return part._replace(of_nobody=aggregator.of_nobody)


def _levels(bits: int, num_slots: int) -> float:
    """The largest integer that as many clients can add up in so many bits, as float32 has it."""
    most = (2 ** (bits - 1) - 1) // num_slots
    if most < 1:
        raise ValueError(f"bits={bits} cannot hold the sum of {num_slots} clients. {_MORE_BITS}")
    levels = np.float32(most)
    # Compared as Python's numbers: NumPy would round `most` first.
    return float(levels if int(levels) <= most else np.nextafter(levels, np.float32(0)))


def _of_known_range(term: PyTree, update: PyTree) -> PyTree:
    """A term that is a tuple of values and weights; of values alone, a list of them."""

    def form(tree: PyTree) -> Any:
        return jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]

    if form(term) == form(update):
        return [term]
    if isinstance(term, tuple) and term and form(term[0]) == form(update):
        return term
    raise ValueError(
        "aggregator must have terms whose range secure aggregation knows: values shaped like an "
        "update, or a tuple of them and of weights, got "
        f"{checks.shown(jax.tree.map(jnp.shape, term))}."
    )


def _rounded(key: Key | None, tree: PyTree) -> PyTree:
    """Leaves rounded to the nearest integers or, with a key, up or down at random; int32."""
    if key is None:
        return jax.tree.map(lambda y: jnp.round(y).astype(jnp.int32), tree)
    leaves, form = jax.tree.flatten(tree)
    rounded = [_at_random(keys.fold_in(key, i), y) for i, y in enumerate(leaves)]
    return jax.tree.unflatten(form, rounded)


def _at_random(key: Key, y: Array) -> Array:
    """Numbers rounded to one of their two neighbours, to be right in the mean; int32."""
    low = jnp.floor(y)
    up = jax.random.uniform(keys.written_out(key), y.shape) < y - low
    return low.astype(jnp.int32) + up.astype(jnp.int32)


@checked
def distributed_dp(
    *,
    num_slots: int,
    max_norm: float | Array,
    noise_multiplier: float | Array,
    bits: int = 20,
    noise: discrete.Noise = "skellam",
    num_stddevs: float | Array = 4.0,
    beta: float = 0.6065,
    num_neighbors: int | None = None,
    threshold: int = 0,
    dropout_rate: float | Array = 0.0,
    masked: bool = False,
) -> Aggregator:
    """The mean of clipped updates, private before the server sees it: distributed DP.

    Each client clips its update to a norm of c = `max_norm`, rotates it at random (signs and a
    Hadamard transform, alike for all), rounds it at random to a grid of g c
    (`privacy.discrete.granularity`) until its norm is at most `rounded_norm`, adds integer noise
    of variance (z / g)^2 / C, and sends that modulo 2^bits by secure aggregation. The server
    rotates the sum back and divides it by the number of clients who arrived, each of whom counts
    the same. `privacy.discrete.distributed_epsilon` says what that is worth.

    Prefer it to noise that the server adds where the server is not trusted with single updates; the
    noise in the sum is the same, z c, but for clients who drop out and take their part along. An
    entry of the sum beyond `num_stddevs` standard deviations wraps around, unseen.

    Args:
        num_slots: n, the slots of a cohort, >= 3; each client adds 1 / n of the noise's variance.
        max_norm: c > 0, may be traced; updates are clipped to 4 millionths less, since float32
            knows no norm exactly.
        noise_multiplier: z >= 0, the standard deviation of the sum's noise by c. May be traced.
        bits: of a sent number, in [2, 32].
        noise: of the Skellam distribution, whose sums are of it again, or of the discrete Gaussian.
        num_stddevs: k > 0, how many standard deviations of the sum the range holds. May be traced.
        beta: in (0, 1): a rounding is repeated with at most this probability; exp(-1/2) in the
            paper.
        num_neighbors, threshold, dropout_rate, masked: see `secure`.

    Returns:
        An Aggregator without state, of updates as one vector. Info has "num_arrived",
        "is_recovered", "mask_words" and "clipped_fraction" (of clients).

    Raises:
        ValueError: there are too few bits for so many clients; when traced, the cohort is larger.

    Cost: O(D log D) a client, for vectors filled up to a power of two, and its noise.

    References:
        Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning
        with Secure Aggregation", ICML 2021, algorithms 1 and 2. Agarwal, Kairouz, Liu, "The Skellam
        Mechanism for Differentially Private Federated Learning", NeurIPS 2021, algorithm 1.
    """
    protocol = Protocol.of(bits, num_slots, num_neighbors, threshold, dropout_rate, masked)
    checks.in_range("max_norm", max_norm, 0.0, open_low=True)
    checks.in_range("noise_multiplier", noise_multiplier, 0.0)
    checks.in_range("num_stddevs", num_stddevs, 0.0, open_low=True)
    checks.in_range("beta", beta, 0.0, 1.0, open_low=True, open_high=True)

    def grid(num_entries: int) -> float | Array:
        return discrete.granularity(
            noise_multiplier,
            cohort_size=num_slots,
            num_entries=num_entries,
            bits=bits,
            num_stddevs=num_stddevs,
        )

    grid(1)  # refuses what cannot be before anything is traced

    def encode(
        key: Key, state: PyTree, slot: Array, update: PyTree, weight: Array
    ) -> tuple[PyTree, Info]:
        vector = jnp.where(weight > 0, flat(update).astype(jnp.float32), 0)
        turned = hadamard.rotated(key_of(key, Use.ROTATION), vector, _ONE_BLOCK).reshape(-1)
        norm, allowed = jnp.linalg.norm(turned), max_norm * _SLACK
        is_long = norm > allowed
        turned *= jnp.where(is_long, allowed / jnp.where(is_long, norm, 1), 1) / max_norm
        step = grid(turned.size)
        bound = discrete.rounded_norm(1 / step, turned.size, beta)
        numbers = _within(bound, key_of(key, Use.ROUNDING, slot), turned / step)
        numbers += drawn(key_of(key, Use.NOISE, slot), noise_multiplier / step, turned.shape)
        words = numbers.astype(jnp.uint32)
        # In the shapes of an update, which the other end needs, and what the transform filled up.
        sent = shaped(words, update), words[vector.size :]
        return sent, {"clipped_fraction": is_long.astype(jnp.float32)}

    def drawn(key: Key, stddev: float | Array, shape: tuple[int, ...]) -> Array:
        """A client's part of noise of this standard deviation."""
        own_variance = jnp.float32(stddev) ** 2 / num_slots
        if noise == "skellam":
            return discrete.skellam(key, own_variance, shape)
        return discrete.discrete_gaussian(key, jnp.sqrt(own_variance), shape)

    def decode(
        key: Key, state: PyTree, words: PyTree, num_arrived: Array
    ) -> tuple[PyTree, PyTree, Info]:
        update, _ = words
        vector = centred(flat(words), bits).astype(jnp.float32)
        size = trees.num_parameters(update)
        back = hadamard.rotated_back(key_of(key, Use.ROTATION), vector[None], size)
        factor = grid(vector.size) * max_norm / jnp.maximum(num_arrived, 1)
        return state, shaped(back * factor, update), {}

    return masked_sum(protocol, encode, decode, lambda update: ())


def _within(bound: float | Array, key: Key, y: Array) -> Array:
    """Numbers rounded at random, again and again until their norm is at most the bound; int32."""

    def again(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        i, _ = carry
        return i + 1, _at_random(keys.fold_in(key, i), y)

    def too_long(carry: tuple[Array, Array]) -> Array:
        return jnp.linalg.norm(carry[1].astype(jnp.float32)) > bound

    return lax.while_loop(too_long, again, again((jnp.int32(0), y.astype(jnp.int32))))[1]

"""Masks that cancel in a sum modulo 2^bits: what secure aggregation hides single clients behind."""

import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_sim.aggregators._sums import summed
from fedjax_sim.base import Aggregator, Array, Key, PyTree
from fedjax_sim.ops import checks, keys, trees

Info = dict[str, Array]

_SEED_BYTES = 32
"""Of a public key, of a seed, and of a share of one."""


class Sent(NamedTuple):
    """What the server gets from one client, or the sum of that over clients.

    words: leaves of uint32, below 2^bits: the client's numbers, and its masks if there are any.
    arrived: [num_slots] uint32, 1 in the client's slot.
    shown: dict of float32 scalars which no client would send: the simulation shows them.
    """

    words: PyTree
    arrived: Array
    shown: Info


class Protocol(NamedTuple):
    """Who shares a mask with whom, and what happens to clients on the way; the options of `secure`.

    offsets: slot i shares masks with slots i + offset modulo `num_slots`, static.
    """

    bits: int
    num_slots: int
    offsets: tuple[int, ...]
    threshold: int
    dropout_rate: float | Array
    masked: bool

    @classmethod
    def of(
        cls,
        bits: int,
        num_slots: int,
        num_neighbors: int | None,
        threshold: int,
        dropout_rate: float | Array,
        masked: bool,
    ) -> "Protocol":
        """Check the options; `num_neighbors` None is everybody."""
        checks.integer("bits", bits, 2, 32)
        few = "Of the sum of fewer clients each knows too much of the others."
        checks.integer("num_slots", num_slots, 3, hint=few)
        most = num_slots - 1
        k = most if num_neighbors is None else num_neighbors
        checks.integer("num_neighbors", k, 2, most, hint=f"A cohort has {num_slots} slots.")
        if k % 2 and num_slots % 2:
            raise ValueError(
                f"num_neighbors must be even in a cohort of {num_slots}, got {k}: no graph of an "
                "odd number of clients has an odd number of edges at each."
            )
        checks.integer("threshold", threshold, 0, k, hint=f"A client has {k} neighbours.")
        checks.in_range("dropout_rate", dropout_rate, 0.0, 1.0)
        near = range(1, k // 2 + 1)
        offsets = (*near, *(num_slots - d for d in near), *[num_slots // 2] * (k % 2))
        return cls(bits, num_slots, offsets, threshold, dropout_rate, masked)

    def neighbors(self, slot: Array) -> Array:
        """The slots that share masks with one, [k]."""
        return (slot + jnp.array(self.offsets, jnp.int32)) % self.num_slots

    def lowest(self, words: PyTree) -> PyTree:
        """Words modulo 2^bits."""
        return jax.tree.map(lambda w: w & jnp.uint32(2**self.bits - 1), words)

    def num_bytes(self, num_words: int) -> int:
        """What a client sends, in bytes.

        Two public keys, for each neighbour shares of two seeds, its numbers and, when masks are
        taken off, a share of one seed of each neighbour.
        """
        seeds = 2 + 3 * len(self.offsets)
        return -(-self.bits * num_words // 8) + seeds * _SEED_BYTES


class Use(enum.IntEnum):
    """What the key of a round is used for: the numbers of its keys."""

    INNER = 0
    SELF_MASKS = 1
    PAIR_MASKS = 2
    DROPOUT = 3
    ROUNDING = 4
    NOISE = 5
    ROTATION = 6


def key_of(key: Key, use: Use, slot: Array | None = None) -> Key:
    """The key of the round for one use, or that of one slot for it."""
    own = keys.fold_in(key, use)
    return own if slot is None else keys.fold_in(own, slot)


def masked_sum(
    protocol: Protocol,
    encode: Callable[[Key, PyTree, Array, PyTree, Array], tuple[PyTree, Info]],
    decode: Callable[[Key, PyTree, PyTree, Array], tuple[PyTree, PyTree, Info]],
    init: Callable[[PyTree], PyTree],
) -> Aggregator:
    """The aggregator that adds up clients' words modulo 2^bits, behind masks.

    Args:
        protocol: how.
        encode: encode(key, state, slot, update, weight) -> (words, shown) of a client that counts:
            leaves of uint32 that add up modulo 2^bits, and what the simulation shows.
        decode: decode(key, state, words, num_arrived) -> (state, aggregate, info), of their sum,
            below 2^bits.
        init: init(update) -> state.

    Returns:
        An Aggregator whose terms are `Sent`.
    """

    def summand(key: Key, state: PyTree, slot: Array, update: PyTree, weight: Array) -> Sent:
        lost = jax.random.bernoulli(
            keys.written_out(key_of(key, Use.DROPOUT, slot)), protocol.dropout_rate
        )
        arrives = (weight > 0) & ~lost
        words, shown = encode(key, state, slot, update, jnp.where(arrives, weight, 0))
        if protocol.masked:
            everybody = jnp.ones(len(protocol.offsets), jnp.uint32)
            mask = _mask(protocol, key, slot, everybody, _size(words))
            words = trees.add(words, shaped(mask, words))
        own = (jnp.arange(protocol.num_slots) == slot).astype(jnp.uint32)
        sent = Sent(protocol.lowest(words), own, shown)
        return jax.tree.map(lambda x: jnp.where(arrives, x, 0), sent)

    def from_sum(key: Key, state: PyTree, total: Sent) -> tuple[PyTree, PyTree, Info]:
        words, arrived = total.words, total.arrived
        if protocol.masked:
            masks = _masks_left(protocol, key, arrived, _size(words))
            words = trees.subtract(words, shaped(masks, words))
        recovered, num_arrived = _recovered(protocol, arrived), arrived.sum().astype(jnp.int32)
        words = jax.tree.map(lambda w: jnp.where(recovered, w, 0), protocol.lowest(words))
        counted = jnp.where(recovered, num_arrived, 0)
        state, aggregate, info = decode(key, state, words, counted)
        share = 1 / jnp.maximum(num_arrived, 1).astype(jnp.float32)
        num_words = (1 + len(protocol.offsets)) * trees.num_parameters(words)
        info |= {name: share * x for name, x in total.shown.items()}
        info |= {"num_arrived": num_arrived, "is_recovered": recovered.astype(jnp.float32)}
        return state, aggregate, info | {"mask_words": jnp.float32(num_words)}

    def check(num_slots: int) -> None:
        if num_slots > protocol.num_slots:
            raise ValueError(
                f"num_slots must be at least the {num_slots} slots of the cohort, got "
                f"{protocol.num_slots}: the range and the masks are made for so many clients."
            )

    def num_bytes(update: PyTree, num_slots: int) -> float:
        check(num_slots)

        def sent(update: PyTree) -> Sent:
            zeros = jax.tree.map(jnp.zeros_like, update)
            return summand(jax.random.key(0), init(zeros), jnp.int32(0), zeros, jnp.float32(1))

        words = jax.eval_shape(sent, update).words
        return protocol.num_bytes(trees.num_parameters(words))

    part = summed(summand, from_sum, init)

    def apply(
        key: Key, state: PyTree, updates: PyTree, weights: Array
    ) -> tuple[PyTree, PyTree, Info]:
        check(weights.shape[0])
        return part.apply(key, state, updates, weights)

    return part._replace(apply=apply, num_bytes=num_bytes)


def centred(words: Array, bits: int) -> Array:
    """The integers in [-2^(bits-1), 2^(bits-1)) that words below 2^bits stand for, as int32."""
    up = jnp.uint32(32 - bits)
    return lax.shift_right_arithmetic((words << up).astype(jnp.int32), up.astype(jnp.int32))


def flat(tree: PyTree) -> Array:
    """All numbers of a tree as one vector [D]."""
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])


def shaped(vector: Array, like: PyTree) -> PyTree:
    """The first D numbers of a vector in the shapes of a tree of D numbers."""
    leaves, form = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = jnp.split(vector, ends)[:-1]
    return jax.tree.unflatten(
        form, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )


def _size(words: PyTree) -> int:
    """How long masks are: XLA computes those of odd lengths ten times as slowly on a CPU."""
    return -(-trees.num_parameters(words) // 16) * 16


def _mask(protocol: Protocol, key: Key, slot: Array, counts: Array, size: int) -> Array:
    """A client's own mask and those that it shares with neighbours, of each `counts` [k] times.

    Of two neighbours, the one of the lower slot adds what the other subtracts.
    """
    others, pairs = protocol.neighbors(slot), key_of(key, Use.PAIR_MASKS)

    def add(m: Array, mask: Array) -> Array:
        low, high = jnp.minimum(slot, others[m]), jnp.maximum(slot, others[m])
        seed = keys.fold_in(keys.fold_in(pairs, low), high)
        times = jnp.where(slot < others[m], counts[m], -counts[m])  # modulo 2^32
        return mask + times * _words(seed, size)

    own = _words(key_of(key, Use.SELF_MASKS, slot), size)
    return lax.fori_loop(0, len(protocol.offsets), add, own)


def _words(seed: Key, size: int) -> Array:
    """The pseudorandom words [size] of a seed."""
    return jax.random.bits(keys.written_out(seed), (size,), jnp.uint32)


def _masks_left(protocol: Protocol, key: Key, arrived: Array, size: int) -> Array:
    """What masks are in the sum of those who arrived, from the seeds that shares give back.

    Their own masks, and the ones that they share with neighbours who did not arrive.
    """

    def add(slot: Array, total: Array) -> Array:
        missing = 1 - arrived[protocol.neighbors(slot)]
        return total + arrived[slot] * _mask(protocol, key, slot, missing, size)

    return lax.fori_loop(0, protocol.num_slots, add, jnp.zeros(size, jnp.uint32))


def _recovered(protocol: Protocol, arrived: Array) -> Array:
    """Whether every seed that is needed has `threshold` shares among those who arrived.

    It is needed of all who arrived, and of all others who share a mask with one of them.
    """
    slots = jnp.arange(protocol.num_slots, dtype=jnp.int32)
    shares = arrived[jax.vmap(protocol.neighbors)(slots)].sum(axis=1)
    needed = (arrived > 0) | (shares > 0)
    return (~needed | (shares >= protocol.threshold)).all()

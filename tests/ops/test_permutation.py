"""The shuffle is a permutation, the one of its twin, and looks uniform."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import reference
from fedjax_sim.ops import permutation

pytestmark = pytest.mark.optimised

LENGTH = 256  # of the position arrays below, so that one compilation serves every size
SIZES = st.integers(1, LENGTH) | st.integers(1, 10**6) | st.integers(1, 2**31 - 1)

permute = jax.jit(functools.partial(permutation.permute, unroll=False))
draw = jax.jit(permutation.draw)
words_of = jax.jit(lambda seed: permutation.words(jax.random.key(seed)))


@settings(max_examples=60)
@given(size=SIZES, seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 10**5), data=st.data())
def test_any_size_equals_the_reference_and_never_collides(size, seed, epoch, data):
    ends = st.integers(0, size - 1) | st.integers(0, min(size, 4) - 1)
    drawn = sorted(data.draw(st.sets(ends | ends.map(lambda i: size - 1 - i), max_size=20)))
    positions = np.resize(drawn or [0], LENGTH)
    words = words_of(seed)
    np.testing.assert_array_equal(words, reference.words(jax.random.key(seed)))
    out = np.asarray(permute(words, size, positions, epoch))
    assert out.dtype == np.int32 and out.min() >= 0 and out.max() < size
    expected = [reference.permute(np.asarray(words), size, i, epoch) for i in drawn]
    assert out[: len(drawn)].tolist() == expected
    assert len(set(expected)) == len(drawn)


@settings(max_examples=60)
@given(size=st.integers(1, LENGTH), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 10**5))
def test_small_sizes_are_permutations_in_full(size, seed, epoch):
    out = permute(words_of(seed), size, np.arange(LENGTH) % size, epoch)
    assert sorted(out[:size].tolist()) == list(range(size))


def test_a_million_is_a_permutation_in_full_that_leaves_nothing_in_place(key):
    size = 10**6
    out = np.asarray(permute(permutation.words(key), size, np.arange(size)))
    np.testing.assert_array_equal(np.sort(out), np.arange(size))
    # Fixed points of a random permutation are Poisson(1); neighbours stay neighbours as rarely.
    assert (out == np.arange(size)).sum() < 10
    assert (np.abs(np.diff(out)) == 1).sum() < 15
    assert abs(np.corrcoef(np.arange(size), out)[0, 1]) < 5 / math.sqrt(size)


def test_unrolled_is_the_same(key):
    words = permutation.words(key)
    unrolled = jax.jit(permutation.permute)(words, 100, jnp.arange(100), 3)
    np.testing.assert_array_equal(unrolled, permute(words, 100, jnp.arange(100), 3))


def p_value(counts: np.ndarray) -> float:
    return stats.chisquare(counts).pvalue


@functools.partial(jax.jit, static_argnames=("num_keys", "size", "num_rounds"))
def permutations(num_keys: int, size: int, num_rounds: int, epochs: jax.Array) -> jax.Array:
    """[num_keys, epochs, size], with only the first `num_rounds` rounds of the shuffle."""
    words = jax.vmap(permutation.words)(jax.random.split(jax.random.key(7), num_keys))
    shuffle = functools.partial(permutation.permute, size=size, positions=jnp.arange(size))
    one = jax.vmap(lambda w, e: shuffle(w, epoch=e, unroll=False), (None, 0))
    return jax.vmap(one, (0, None))(words[:, :num_rounds], epochs)


def ranks(drawn: np.ndarray) -> np.ndarray:
    """[..., n] permutations as numbers in [0, n!)."""
    size = drawn.shape[-1]
    order = {p: i for i, p in enumerate(itertools.permutations(range(size)))}
    flat = [order[tuple(row)] for row in drawn.reshape(-1, size).tolist()]
    return np.array(flat).reshape(drawn.shape[:-1])


def uniformity(size: int, num_rounds: int = permutation.NUM_WORDS, num_keys: int = 24000) -> float:
    """The chi-square p-value of all size! permutations, over many keys."""
    drawn = np.asarray(permutations(num_keys, size, num_rounds, jnp.zeros(1, jnp.int32)))
    return p_value(np.bincount(ranks(drawn[:, 0]), minlength=math.factorial(size)))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_permutation_is_equally_likely(size):
    assert uniformity(size) > 1e-3


@pytest.mark.parametrize("num_rounds", [3, 6])
def test_too_few_rounds_would_be_noticed(num_rounds):
    for size in (4, 5):
        assert uniformity(size, num_rounds) < 1e-6


def test_a_position_lands_anywhere_in_a_large_range():
    size = 1000
    drawn = np.asarray(permutations(3000, size, permutation.NUM_WORDS, jnp.zeros(1, jnp.int32)))[
        :, 0
    ]
    for position in (0, 1, size // 2, size - 1):
        assert p_value(np.bincount(drawn[:, position] * 20 // size, minlength=20)) > 1e-3
    # Pairs too: where 1 lands, seen from where 0 landed.
    distance = (drawn[:, 1] - drawn[:, 0]) % size
    assert p_value(np.bincount((distance - 1) * 9 // (size - 1), minlength=9)) > 1e-3


def test_epochs_are_independent():
    """The pairs of permutations of neighbouring epochs: 36 of them for 3 positions."""
    drawn = ranks(np.asarray(permutations(24000, 3, permutation.NUM_WORDS, jnp.arange(3))))
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert p_value(np.bincount(6 * drawn[:, a] + drawn[:, b], minlength=36)) > 1e-3


def test_words_differ_in_every_bit_between_keys(key):
    keys = jax.random.split(key, 4000)
    words = np.asarray(jax.jit(jax.vmap(permutation.words))(keys))
    assert words.shape == (4000, permutation.NUM_WORDS) and words.dtype == np.uint32
    assert len(np.unique(words)) > words.size - 5  # 2 ** 32 values, 96,000 draws: about 1 collision
    ones = np.unpackbits(words.view(np.uint8).reshape(4000, -1), axis=1).sum(axis=0, dtype=int)
    assert np.abs(ones - 2000).max() < 5 * math.sqrt(1000)


@settings(max_examples=40)
@given(size=st.integers(1, 2**31 - 1), seed=st.integers(0, 2**31 - 1))
def test_draws_are_in_range(size, seed):
    out = np.asarray(draw(words_of(seed), size, np.arange(LENGTH)))
    assert out.dtype == np.int32 and out.min() >= 0 and out.max() < size


def test_draws_are_uniform_and_independent(key):
    out = np.asarray(draw(permutation.words(key), 10, np.arange(40001)))
    assert p_value(np.bincount(out, minlength=10)) > 1e-3
    for lag in (1, 8, 32):
        pairs = 10 * out[lag:] + out[:-lag]
        assert p_value(np.bincount(pairs, minlength=100)) > 1e-3
    other = np.asarray(draw(permutation.words(jax.random.fold_in(key, 1)), 10, np.arange(40001)))
    assert p_value(np.bincount(10 * out + other, minlength=100)) > 1e-3

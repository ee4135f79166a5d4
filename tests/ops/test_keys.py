"""Derived keys: those of jax.random, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.ops import keys


def data_of(key: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("number", [0, 1, 5, 2**31 - 1])
def test_a_number_gives_the_key_that_jax_gives(impl, number) -> None:
    key = jax.random.key(3, impl=impl)
    want = data_of(jax.random.fold_in(key, number))
    for got in (keys.fold_in(key, number), jax.jit(keys.fold_in)(key, number)):
        assert got.dtype == key.dtype
        np.testing.assert_array_equal(data_of(got), want)


def test_many_numbers_give_what_split_gives(key) -> None:
    got = jax.vmap(keys.fold_in, (None, 0))(key, jnp.arange(7))
    np.testing.assert_array_equal(data_of(got), data_of(jax.random.split(key, 7)))
    many = jax.random.split(key, 3)
    got = jax.vmap(keys.fold_in, (0, None))(many, 9)
    want = jax.vmap(jax.random.fold_in, (0, None))(many, 9)
    np.testing.assert_array_equal(data_of(got), data_of(want))


def test_threefry_is_the_published_one() -> None:
    """Known answers of the authors' test vectors (kat_vectors of Random123), 20 rounds."""
    cases = [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]
    for key, counter, want in cases:
        words = [jnp.uint32(word) for word in (*key, *counter)]
        assert tuple(int(x) for x in keys._threefry(*words)) == want


DRAWS = {
    "normal": lambda key: jax.random.normal(key, (3, 5)),
    "truncated": lambda key: jax.random.truncated_normal(key, -2, 2, (7,)),
    "half": lambda key: jax.random.normal(key, (6,), jnp.float16),
    "bytes": lambda key: jax.random.bits(key, (9,), jnp.uint8),
    "scalar": lambda key: jax.random.uniform(key),
    "integers": lambda key: jax.random.randint(key, (4,), 0, 100),
    "permutation": lambda key: jax.random.permutation(key, 10),
    "categorical": lambda key: jax.random.categorical(key, jnp.zeros(5), shape=(8,)),
    "nothing": lambda key: jax.random.normal(key, (0, 2)),
    "split": lambda key: jax.random.key_data(jax.random.split(key, (2, 3))),
    "folded": lambda key: jax.random.normal(jax.random.fold_in(key, 4), (2,)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_all_is_drawn_as_jax_draws_it(key, draw) -> None:
    def written_out(key):
        return draw(keys.written_out(key))

    want = draw(key)
    np.testing.assert_array_equal(written_out(key), want)
    np.testing.assert_array_equal(jax.jit(written_out)(key), want)
    many = jax.random.split(key, 3)
    np.testing.assert_array_equal(jax.vmap(written_out)(many), jax.vmap(draw)(many))


def test_numbers_of_64_bits_are_drawn_as_jax_draws_them(key) -> None:
    with jax.enable_x64(True):
        for draw in (lambda key: jax.random.normal(key, (3,)), lambda key: jax.random.bits(key)):
            np.testing.assert_array_equal(draw(keys.written_out(key)), draw(key))


@pytest.mark.parametrize("num", [1, 3, (2, 2)])
def test_split_gives_the_keys_that_jax_gives(key, num) -> None:
    got = jax.jit(keys.split, static_argnums=1)(key, num)
    assert got.dtype == key.dtype
    np.testing.assert_array_equal(data_of(got), data_of(jax.random.split(key, num)))


def test_keys_that_are_not_drawn_from_so_stay_as_they_are() -> None:
    other = jax.random.key(3, impl="rbg")
    assert keys.written_out(other) is other
    before = jax.config.values["jax_threefry_partitionable"]
    jax.config.update("jax_threefry_partitionable", False)
    try:
        key = jax.random.key(3)
        assert keys.written_out(key) is key
        want = jax.random.normal(jax.random.split(key)[0], (5,))
        np.testing.assert_array_equal(jax.random.normal(keys.split(key)[0], (5,)), want)
    finally:
        jax.config.update("jax_threefry_partitionable", before)


@pytest.mark.optimised
def test_a_program_without_loops(key) -> None:
    def draw(key):
        first, second = keys.split(key)
        return jax.random.normal(keys.written_out(first), (50,)), keys.fold_in(second, 3)

    text = jax.jit(draw).lower(key).compile().as_text()
    assert text.count(" while(") == 0


def test_more_numbers_than_a_word_can_count_are_refused(key) -> None:
    with pytest.raises(ValueError, match=r"2\^32 numbers"):
        jax.jit(lambda k: jax.random.bits(keys.written_out(k), (2**17, 2**16))).lower(key)


def test_quick_numbers_are_uniform_and_apart(key) -> None:
    many = jax.random.split(key, 8)
    found = np.asarray(jax.jit(jax.vmap(lambda k: keys.quick_uniform(k, (50, 400))))(many))
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() < 1
    size = found[0].size
    for each in found:
        counts, _ = np.histogram(each, 64, (0, 1))
        # Chi-squared of 63 degrees of freedom: mean 63, deviation 11.
        assert ((counts - size / 64) ** 2 / (size / 64)).sum() < 63 + 5 * 11.3
        assert len(np.unique(each)) > 0.99 * size
    # Neither neighbours nor keys go together.
    flat = found.reshape(8, -1).astype(np.float64)
    apart = np.corrcoef(flat) - np.eye(8)
    assert np.abs(apart).max() < 5 / np.sqrt(size)
    for step in (1, 2, 400):
        together = np.corrcoef(flat[:, step:].ravel(), flat[:, :-step].ravel())[0, 1]
        assert abs(together) < 5 / np.sqrt(8 * size)


def test_quick_numbers_of_a_key_are_those_of_its_words(key) -> None:
    whole = keys.quick_uniform(key, (3, 5))
    np.testing.assert_array_equal(whole.reshape(-1), keys.quick_uniform(key, (15,)))
    assert (whole != keys.quick_uniform(jax.random.fold_in(key, 1), (3, 5))).all()

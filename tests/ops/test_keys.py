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

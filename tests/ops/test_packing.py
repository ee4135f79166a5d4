"""Packing: a tree comes back bit for bit, through loops, batches and the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.ops import packing

N = 5


def a_tree(rng: np.random.Generator) -> dict:
    """Leaves [N, ...] of all kinds, odd numbers among them."""
    odd = np.array([np.nan, -np.inf, -0.0, 1e-42, 3.5], np.float32)
    return {
        "odd": jnp.asarray(odd),
        "counts": jnp.asarray(rng.integers(-(2**31), 2**31, N), jnp.int32),
        "words": jnp.asarray(rng.integers(0, 2**32, N, np.uint64).astype(np.uint32)),
        "flags": jnp.asarray(rng.random(N) < 0.5),
        "matrix": jnp.asarray(rng.normal(size=(N, 2, 3)), jnp.float32),
        "same shape": jnp.asarray(rng.integers(0, 9, (N, 2, 3)), jnp.int32),
        "half": jnp.asarray(rng.normal(size=N), jnp.bfloat16),
        "bytes": jnp.asarray(rng.integers(0, 256, (N, 2)), jnp.uint8),
        "none": (),
    }


def assert_same(got: dict, want: dict) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)

    def same(a: jax.Array, b: jax.Array) -> None:
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()

    jax.tree.map(same, got, want)


@pytest.mark.parametrize("num_axes", [0, 1])
def test_a_tree_comes_back_bit_for_bit(rng, num_axes) -> None:
    tree = a_tree(rng)
    packed = packing.pack(tree, num_axes)
    assert len(packed.stacks) == 2 and len(packed.others) == 2
    assert_same(packing.unpack(packed), tree)
    on_host = packing.unpack(jax.tree.map(np.asarray, packed))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(on_host))
    assert_same(on_host, tree)


def test_rows_go_through_a_loop_and_a_batch(rng) -> None:
    tree = a_tree(rng)

    def loop(packed: packing.Packed) -> packing.Packed:
        def turn(_: None, row: packing.Packed) -> tuple[None, packing.Packed]:
            return None, packing.pack(packing.unpack(row))

        return jax.lax.scan(turn, None, packed)[1]

    assert_same(packing.unpack(jax.jit(loop)(packing.pack(tree, 1))), tree)
    rows = jax.vmap(packing.pack)(tree)
    assert_same(jax.vmap(packing.unpack)(rows), tree)


def test_nothing_is_packed_into_nothing() -> None:
    packed = packing.pack({"none": ()})
    assert jax.tree.leaves(packed) == []
    assert packing.unpack(packed) == {"none": ()}

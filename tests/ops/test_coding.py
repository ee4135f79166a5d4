"""Codes and vectors of trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.ops import coding, trees
from fedjax_sim.ops.coding import Coded

TREE = {
    "a": jnp.arange(6.0).reshape(2, 3),
    "codes": Coded.of(jnp.arange(5), 3),
    "half": jnp.float16([1.5, 2.5]),
    "n": jnp.int32([4, 5, 6]),
    "z": jnp.float32(7),
}


def test_a_tree_is_its_vector_and_the_rest():
    vector, rest = coding.flattened(TREE)
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 1.5, 2.5, 7] and rest.sizes == [6, 2, 1]
    assert vector.dtype == jnp.float32
    back = coding.restored(2 * vector, rest)
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    for name, leaf in trees.flat_dict(TREE).items():
        found = trees.flat_dict(back)[name]
        assert (found.dtype, found.shape) == (leaf.dtype, leaf.shape)
        factor = 2 if jnp.issubdtype(leaf.dtype, jnp.floating) else 1
        np.testing.assert_array_equal(found, factor * leaf)


def test_what_was_taken_out_of_a_rest_goes_back_where_it_was():
    """As in a chain, where what one uplink sends is taken apart by the next."""
    vector, rest = coding.flattened(TREE)
    inner, outer = coding.flattened(({"kept": vector[:4], "scale": jnp.float32(9)}, rest))
    assert inner.tolist() == [0, 1, 2, 3, 9]
    code, again = coding.restored(inner, outer)
    assert code["scale"] == 9 and code["kept"].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(coding.restored(vector, again)["a"], TREE["a"])


def test_only_floating_point_has_a_vector():
    half = {"x": jnp.ones(3, jnp.bfloat16)}
    assert coding.flattened(half)[0].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="no numbers of floating point left to compress"):
        coding.flattened({"codes": TREE["codes"], "n": TREE["n"]})


@pytest.mark.parametrize(
    ("bits", "dtype"), [(1, "uint8"), (8, "uint8"), (9, "uint16"), (16, "uint16"), (17, "uint32")]
)
def test_codes_are_as_narrow_as_their_bits(bits, dtype):
    largest = 2**bits - 1
    code = Coded.of(jnp.uint32([0, largest, 1]), bits)
    assert code.values.dtype == dtype and code.values.tolist() == [0, largest, 1]
    assert code.num_bytes == trees.num_bytes({"x": code}) == -(-3 * bits // 8)


def test_bytes_of_a_tree():
    # 5 codes of 3 bits in 2 bytes.
    assert trees.num_bytes(TREE) == 24 + 2 + 4 + 12 + 4
    _, rest = coding.flattened(TREE)
    assert trees.num_bytes(rest) == 2 + 12
    shapes = jax.eval_shape(lambda: TREE)
    assert trees.num_bytes(shapes) == trees.num_bytes(TREE)


@pytest.mark.parametrize(("size", "bits"), [(1, 1), (2, 1), (3, 2), (1024, 10), (1025, 11)])
def test_bits_of_an_index(size, bits):
    assert coding.index_bits(size) == bits

"""Every message names the argument, the value and what is allowed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.ops import checks


@pytest.mark.parametrize("value", [1, 10**12, np.int64(3), np.uint8(1)])
def test_counts_that_pass(value):
    checks.positive_int("n", value)
    checks.count("n", value)
    checks.count("n", 0)


@pytest.mark.parametrize("value", [1.0, "3", None, True, np.float32(2), [1]])
def test_what_is_not_an_integer(value):
    with pytest.raises(TypeError, match=r"^n must be an integer >= 1, got .*\. Do so\.$"):
        checks.positive_int("n", value, hint="Do so.")
    with pytest.raises(TypeError, match=r"^n must be an integer >= 0, got "):
        checks.count("n", value)


def test_integers_that_are_too_small():
    with pytest.raises(ValueError, match=r"^n must be >= 1, got 0\.$"):
        checks.positive_int("n", 0)
    with pytest.raises(ValueError, match=r"^n must be >= 0, got -1\.$"):
        checks.count("n", np.int32(-1))


@pytest.mark.parametrize(
    ("value", "low", "high", "open_low", "interval"),
    [
        (-0.1, 0, 1, False, r"\[0, 1\]"),
        (1.5, 0, 1, False, r"\[0, 1\]"),
        (0, 0, 1, True, r"\(0, 1\]"),
        (0.0, 0, math.inf, True, r"\(0, inf\)"),
        (math.inf, 0, math.inf, False, r"\[0, inf\)"),
        (-math.inf, -math.inf, 2, False, r"\(-inf, 2\]"),
        (math.nan, -math.inf, math.inf, False, r"\(-inf, inf\)"),
        (np.float32(7), 0, 2, False, r"\[0, 2\]"),
    ],
)
def test_numbers_outside_their_range(value, low, high, open_low, interval):
    with pytest.raises(ValueError, match=rf"^x must lie in {interval}, got {value}\. Because\.$"):
        checks.in_range("x", value, low, high, open_low=open_low, hint="Because.")


def test_numbers_in_their_range():
    for value in (0, 1, 0.5, np.float32(0.5), jnp.float32(0.5), True):
        checks.in_range("x", value, 0, 1)
    checks.in_range("x", 1e-300, 0, open_low=True)
    checks.in_range("x", -1e300)


@pytest.mark.parametrize("value", ["half", None, [1, 2]])
def test_what_is_not_a_number(value):
    with pytest.raises(TypeError, match=r"^x must be a number, got "):
        checks.in_range("x", value, 0, 1)


def test_traced_values_pass():
    def traced(x: jax.Array) -> jax.Array:
        assert checks.is_traced(x) and not checks.is_traced(1.0)
        checks.in_range("x", x, 0, 1)
        return x

    assert float(jax.jit(traced)(-5.0)) == -5.0


def test_the_nearest_name_is_suggested():
    checks.one_of("shape", "square", ("circle", "square"))
    message = (
        r"^unknown shape 'sqare'\. Did you mean 'square'\? Choose one of: 'circle', 'square'\.$"
    )
    with pytest.raises(ValueError, match=message):
        checks.one_of("shape", "sqare", iter(("circle", "square")))
    with pytest.raises(
        ValueError, match=r"^unknown shape 7\. Choose one of: 'circle'\. See docs\.$"
    ):
        checks.one_of("shape", 7, ["circle"], hint="See docs.")

"""Every message names the argument, the value and what is allowed."""

import functools
import math
from decimal import Decimal
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_sim.ops import checks


@pytest.mark.parametrize("value", [1, 2**31 - 1, np.int64(3), np.uint8(1), np.array(3)])
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
    numbers = (0, 1, 0.5, np.float32(0.5), jnp.float32(0.5), jnp.bfloat16(0.5), np.array(0.5))
    for value in (*numbers, Fraction(1, 2), Decimal("0.5")):
        checks.in_range("x", value, 0, 1)
    checks.in_range("x", 1e-30, 0, open_low=True)
    checks.in_range("x", -1e38)
    checks.in_range("x", 1e-320, 0)  # is 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1e-320, r"^x must lie in \(0, inf\), got 1e-320, which is 0 in float32\.$"),
        (1e308, r"^x must lie in \(0, inf\), got 1e\+308, which is infinite in float32\.$"),
        (10**400, r"^x must lie in \(0, inf\), got 10000.*\.$"),
    ],
)
def test_what_float32_cannot_hold(value, message):
    with pytest.raises(ValueError, match=message):
        checks.in_range("x", value, 0, open_low=True)


def test_an_open_upper_bound():
    checks.in_range("x", 0.999, 0, 1, open_high=True)
    with pytest.raises(ValueError, match=r"^x must lie in \[0, 1\), got 1\.$"):
        checks.in_range("x", 1, 0, 1, open_high=True)


def test_integers_that_are_too_large():
    with pytest.raises(ValueError, match=r"^n must be <= 2147483647, got 4294967296\.$"):
        checks.count("n", 2**32)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\x1b[31mb", r"'a\x1b[31mb'"),
        ("x" * 10**6, None),
        (list(range(10**4)), "[0, 1, 2, 3, 4, 5, ...]"),
        (np.zeros((3, 4)), "an array of shape (3, 4) and type float64"),
        (np.float32(7), "7.0"),
        (np.mean, "the function mean"),
        (int, "the class int"),
        (object(), "an object"),
        (optax.sgd(0.1), "a GradientTransformationExtraArgs"),
        (functools.partial(np.mean), "a partial"),
        ("two\nlines", r"'two\nlines'"),
    ],
)
def test_a_value_is_shown_on_one_line_that_ends(value, text):
    shown = checks.shown(value)
    assert len(shown) <= 200 and shown.isprintable()
    assert text is None or shown == text


@pytest.mark.parametrize(
    "value",
    ["half", "1", b"1", None, [1, 2], True, np.bool_(True), 1j, np.array([0.5]), np.float32([1])],
)
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

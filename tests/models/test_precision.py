"""Half precision against single."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim import models
from fedjax_sim.ops import trees
from reference_models import FLOATS, KEY, LinenNet, drawn, mean_loss, small_models, statistics

pytestmark = pytest.mark.optimised


@pytest.mark.parametrize("name", ["logistic", "mlp", "emnist_cnn", "char_lstm"])
def test_mixed_precision_computes_in_half_and_trains_in_single(name: str) -> None:
    model, inputs = small_models()[name]
    half = models.mixed_precision(model)
    params = drawn(model, inputs)
    value, gradient = jax.jit(jax.value_and_grad(partial(mean_loss, half)))(params, inputs)
    exact, slope = jax.jit(jax.value_and_grad(partial(mean_loss, model)))(params, inputs)
    # bfloat16 keeps 8 bits; a wrong scale or a lost layer would be off by far more.
    np.testing.assert_allclose(value, exact, rtol=0.03)
    assert trees.norm(trees.subtract(gradient, slope)) < 0.1 * trees.norm(slope)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}
    assert half.apply(params, inputs).dtype == jnp.float32
    program = str(jax.make_jaxpr(half.apply)(params, inputs))
    products_in_half = [line for line in program.split("\n") if "dot_general" in line]
    assert products_in_half and all("bf16" in line for line in products_in_half)


def test_mixed_precision_moves_running_statistics_only() -> None:
    model = models.from_linen(LinenNet())
    half = models.mixed_precision(model)
    params = drawn(model, FLOATS)
    _, moved = half.train(params, FLOATS, KEY)
    _, exact = model.train(params, FLOATS, KEY)
    assert jax.tree.leaves(moved["params"]) == []
    for name, value in statistics(model, moved).items():
        np.testing.assert_allclose(value, statistics(model, exact)[name], rtol=0.05, atol=0.05)
        assert not np.array_equal(value, statistics(model, params)[name])
    assert half.apply_train is not None

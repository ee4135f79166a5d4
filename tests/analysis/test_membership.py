"""Membership inference against counting every pair, and models that can and cannot remember."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from fedjax_sim import algorithms, metrics, models, simulate
from fedjax_sim.analysis import membership
from fedjax_sim.data import Batching, federate

KEY = jax.random.key(1)
MODEL = models.mlp(4, hidden=(64,))
LOSS = metrics.cross_entropy
RNG = np.random.default_rng(2)
SIZES = (20, 30, 10)


def population(sizes=SIZES):
    """Labels that nothing but memory tells."""
    x, y = RNG.normal(size=(sum(sizes), 20)), RNG.integers(0, 4, sum(sizes))
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return federate({"x": x.astype(np.float32), "y": y}, parts)


MEMBERS, OTHERS = population(), population((25, 15, 40))
PARAMS = MODEL.init(KEY, MEMBERS.examples["x"][:1])


@pytest.mark.parametrize("num_values", [3, 8, 10_000])
def test_the_area_counts_every_pair(num_values):
    """With many ties, with some, and with none; and is Mann and Whitney's U."""
    members, others = RNG.integers(0, num_values, 40), RNG.integers(0, num_values, 25) - 1
    pairs = members[:, None] - others[None, :]
    expected = (pairs > 0).mean() + 0.5 * (pairs == 0).mean()
    assert membership.area(members, others) == pytest.approx(expected, abs=1e-12)
    u = stats.mannwhitneyu(members, others).statistic
    assert membership.area(members, others) == pytest.approx(u / pairs.size, abs=1e-12)


@pytest.mark.parametrize("max_fpr", [0.0, 0.1, 0.29, 1.0])
def test_the_rate_is_the_best_of_all_thresholds(max_fpr):
    members, others = RNG.integers(0, 30, 50), RNG.integers(0, 20, 100)
    thresholds = [-1, *range(31)]
    allowed = [t for t in thresholds if (others > t).mean() <= max_fpr + 1e-12]
    expected = max((members > t).mean() for t in allowed)
    assert membership.rate(members, others, max_fpr=max_fpr) == expected


def test_nobody_to_compare_with_is_nan():
    assert np.isnan([membership.area([], [1]), membership.rate([1], [], max_fpr=0.1)]).all()


def trained(params, num_rounds):
    if num_rounds == 0:
        return params
    algorithm = algorithms.fedavg(
        MODEL, client_optimizer=optax.adam(0.03), batching=Batching(10, num_epochs=5), width=1
    )
    return simulate.run(algorithm, params, MEMBERS, key=KEY, num_rounds=num_rounds).params


def test_a_model_that_remembers_is_found_out_and_one_that_has_not_trained_is_not():
    before, after = (
        membership.loss_attack(MODEL, trained(PARAMS, r), MEMBERS, OTHERS, loss=LOSS, max_fpr=0.05)
        for r in (0, 15)
    )
    assert abs(before.pooled_auc - 0.5) < 3 / np.sqrt(12 * 60 * 80 / 141)  # three deviations of U
    assert before.pooled_tpr < 0.2
    assert after.pooled_auc > 0.85
    assert (after.auc[:2] > 0.9).all()  # what the smallest client sends counts little
    assert after.pooled_tpr > 0.6


def test_clients_and_the_pool_are_their_own_examples():
    """By losses that are computed here, and with blocks that do not come out even."""
    found = membership.loss_attack(
        MODEL, PARAMS, MEMBERS, OTHERS, loss=LOSS, max_fpr=0.2, block_size=7
    )

    def scores(data, i=None):
        own = data.examples if i is None else data.client(i)
        logits = np.asarray(MODEL.apply(PARAMS, jnp.asarray(own["x"])), np.float64)
        right = logits[np.arange(len(own["y"])), np.asarray(own["y"])]
        return right - np.log(np.exp(logits).sum(axis=1))

    for i in range(len(SIZES)):
        pair = scores(MEMBERS, i), scores(OTHERS, i)
        np.testing.assert_allclose(found.auc[i], membership.area(*pair), atol=1e-9)
        np.testing.assert_allclose(found.tpr[i], membership.rate(*pair, max_fpr=0.2), atol=1e-9)
    np.testing.assert_allclose(
        found.pooled_auc, membership.area(scores(MEMBERS), scores(OTHERS)), atol=1e-9
    )
    fpr, tpr = found.curve.T
    assert found.curve[[0, -1]].tolist() == [[0, 0], [1, 1]]
    assert (np.diff(found.curve, axis=0) >= 0).all()
    np.testing.assert_allclose(np.trapezoid(tpr, fpr), found.pooled_auc, atol=1e-9)
    assert tpr[fpr <= 0.2].max() == pytest.approx(found.pooled_tpr)


def test_one_set_of_others_stands_against_everybody():
    pool = OTHERS.pooled()
    found = membership.loss_attack(MODEL, PARAMS, MEMBERS, pool, loss=LOSS)
    alone = membership.loss_attack(MODEL, PARAMS, MEMBERS.select([1]), pool, loss=LOSS)
    assert found.auc.shape == (3,)
    np.testing.assert_allclose(found.auc[1], alone.auc[0])


def test_examples_that_count_for_nothing_are_left_out():
    """Neither members nor others; a client that has nothing else is NaN."""
    labels = np.where(np.arange(60) < 20, -1, np.asarray(MEMBERS.examples["y"]))
    parts = np.split(np.arange(60), np.cumsum(SIZES)[:-1])
    examples = {"x": np.asarray(MEMBERS.examples["x"]), "y": labels}
    some = federate(examples, parts, ignore_label=-1)
    found = membership.loss_attack(MODEL, PARAMS, some, OTHERS, loss=LOSS)
    assert np.isnan(found.auc).tolist() == [True, False, False]
    rest = membership.loss_attack(MODEL, PARAMS, MEMBERS.select([1, 2]), OTHERS.pooled(), loss=LOSS)
    np.testing.assert_allclose(found.pooled_auc, rest.pooled_auc)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="others must hold the 3 clients of members, or one"):
        membership.loss_attack(MODEL, PARAMS, MEMBERS, OTHERS.select([0, 1]), loss=LOSS)
    with pytest.raises(ValueError, match="60 of 60 examples are not finite"):
        broken = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)
        membership.loss_attack(MODEL, broken, MEMBERS, OTHERS, loss=LOSS)
    with pytest.raises(ValueError, match=r"max_fpr must lie in \[0, 1\]"):
        membership.loss_attack(MODEL, PARAMS, MEMBERS, OTHERS, loss=LOSS, max_fpr=2.0)

"""AFL as fair_flearn runs it."""

import numpy as np
import pytest

import reference
import reference_fairness as twin
from fedjax_sim import algorithms, simulate
from small_task import KEY, MODEL, SIZES, assert_model, params, people, point, population


def test_lambda_ignored_is_told_from_lambda_used():
    """Full batches, uniform weights or lambda, its projection, the mean of the iterates."""
    n = len(SIZES)
    for used in (False, True):
        algorithm = algorithms.fair_flearn_afl(
            MODEL, learning_rate=0.3, mixture_step_size=0.4, use_mixture=used
        )
        result = simulate.run(algorithm, params(), population(), key=KEY, num_rounds=6)
        w, mixture, path = point(), np.full(n, 1 / n), []
        for r in range(6):
            np.testing.assert_allclose(result.info.server["mixture"][r], mixture, atol=1e-5)
            parts = [reference.softmax_gradient(*w, x, y) for x, y in people()]
            weights = mixture / mixture.sum() if used else np.full(n, 1 / n)
            step = twin.combine([list(part[1:]) for part in parts], 0.3 * weights)
            w = twin.minus(w, step)
            mixture = misprojected(mixture + 0.4 * np.array([part[0] for part in parts]))
            path.append(w)
        assert_model(result.params, [np.mean([w[i] for w in path], axis=0) for i in range(2)])
    assert result.info.server["mixture"].sum(axis=1).max() > 1.005  # it leaves the simplex


def misprojected(v: np.ndarray) -> np.ndarray:
    """The off-by-one of fair_flearn's projection, as a loop: [1.6, 0.5] -> [1.05, 0]."""
    descending, kept = sorted(v, reverse=True), 0
    for j in range(len(v)):
        if descending[j] + (1 - sum(descending[:j])) / (j + 1) > 0:
            kept = j + 1
    return np.maximum(v + (1 - sum(descending[:kept])) / kept, 0)


def test_the_twin_of_the_wrong_projection_is_wrong_as_reported():
    np.testing.assert_allclose(misprojected(np.array([1.6, 0.5])), [1.05, 0])


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match=r"mixture_step_size must lie in \[0, inf\), got -0.1"):
        algorithms.fair_flearn_afl(MODEL, learning_rate=0.3, mixture_step_size=-0.1)

"""FedMGDA+ against its float64 twin."""

import numpy as np
import optax

import reference_fairness as twin
from fedjax_sim import algorithms
from small_task import BATCH, MODEL, SIZES, SOME, people, point, trajectory


def fedmgda():
    return algorithms.fedmgda(
        MODEL, client_optimizer=optax.sgd(0.3), server_learning_rate=0.7, **SOME
    )


def test_fedmgda_moves_along_the_common_descent():
    key, info, state = next(trajectory(fedmgda, 1))
    ids = info.cohort.ids.tolist()
    ends = [
        twin.local_steps(key, point(), people(), k, batch_size=BATCH, learning_rate=0.3)[-1]
        for k in ids
    ]
    flat = np.stack([np.concatenate([p.ravel() for p in twin.minus(e, point())]) for e in ends])
    step = twin.common_descent(flat, np.array(SIZES)[ids], 1.0)
    start = np.concatenate([p.ravel() for p in point()])
    found = np.concatenate(
        [np.ravel(state.server.params["kernel"]), np.ravel(state.server.params["bias"])]
    )
    np.testing.assert_allclose(found, start + 0.7 * step, atol=2e-3)

"""Scaffnew against its float64 twin, and what it promises."""

import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference_opt as twin
from fedjax_sim import algorithms
from small_task import BATCH, MODEL, SIZES, assert_model, people, point, trajectory

RATE, MOST = 0.2, 5


def scaffnew(probability=None):
    return algorithms.scaffnew(
        MODEL,
        client_learning_rate=RATE,
        probability=probability,
        batching=fs.Batching(BATCH, num_steps=MOST),
    )


@pytest.mark.parametrize("probability", [None, 0.3])
def test_it_equals_the_float64_twin(probability):
    given = {} if probability is None else {"probability": probability}
    clients, w = people(), point()
    controls = [twin.mix((0.0, w)) for _ in SIZES]
    chance, lengths = probability or 1 / MOST, []
    for key, info, state in trajectory(scaffnew, 5, **given):
        (length,) = set(info.cohort.clients["steps_taken"].tolist())
        ends = [
            twin.descend(
                w,
                twin.batches(key, clients, k, BATCH, length),
                RATE,
                lambda v, b, h=controls[k]: twin.mix((1.0, twin.gradient(v, b)), (-1.0, h)),
            )
            for k in range(len(SIZES))
        ]
        for k, kept in enumerate(controls):  # h_k moves when the mean is told, a round later
            found = {name: np.asarray(leaf)[k] for name, leaf in state.clients.control.items()}
            assert_model(found, kept, atol=1e-4)
        w = twin.mean(ends)
        controls = [
            twin.mix((1.0, h), (chance / RATE, w), (-chance / RATE, end))
            for h, end in zip(controls, ends, strict=True)
        ]
        assert_model(state.server.params, w)
        lengths.append(length)
    assert twin.square(twin.mean(controls)) < 1e-20
    assert set(lengths) == {MOST} if probability is None else len(set(lengths)) > 1


def test_where_all_communicate_after_every_step_it_is_sgd_on_the_mean_loss():
    model, _, loss = twin.quadratics()
    ours, plain = (
        twin.rounds(algorithm, 10)[0]
        for algorithm in (
            algorithms.scaffnew(
                model, client_learning_rate=0.3, batching=fs.Batching(None, num_steps=1), loss=loss
            ),
            algorithms.fedavg(
                model,
                client_optimizer=optax.sgd(0.3),
                batching=fs.Batching(None, num_steps=1),
                loss=loss,
            ),
        )
    )
    np.testing.assert_allclose(ours, plain, atol=1e-6)


@pytest.mark.parametrize(("probability", "most"), [(None, 8), (0.3, 12)])
def test_it_reaches_the_optimum_where_fedavg_stalls(probability, most):
    model, _, loss = twin.quadratics()
    shared = {"batching": fs.Batching(None, num_steps=most), "loss": loss}
    found, info = twin.rounds(
        algorithms.scaffnew(model, client_learning_rate=0.3, probability=probability, **shared), 300
    )
    assert np.linalg.norm(found[-1] - twin.OPTIMUM) < 1e-5
    plain, _ = twin.rounds(algorithms.fedavg(model, client_optimizer=optax.sgd(0.3), **shared), 100)
    np.testing.assert_allclose(plain[-1], twin.drifted(0.3, most), atol=1e-5)
    assert np.linalg.norm(plain[-1] - twin.OPTIMUM) > 0.1
    if probability is not None:  # geometric numbers, cut
        lengths = info.cohort.clients["steps_taken"][:, 0]
        mean = (1 - (1 - probability) ** most) / probability
        assert abs(lengths.mean() - mean) < 4 * lengths.std() / 300**0.5
        assert abs((lengths == 1).mean() - probability) < 0.1
        assert lengths.max() == most


def test_rounds_need_a_length():
    with pytest.raises(ValueError, match="batching must give num_steps for scaffnew"):
        algorithms.scaffnew(MODEL, client_learning_rate=0.1, batching=fs.Batching(4))
    with pytest.raises(ValueError, match=r"probability must lie in \(0, 1\], got 0"):
        scaffnew(0.0)

"""A sweep's plan, and that each of its runs is the run alone."""

import tomllib

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.experiments import options as options_of
from fedjax_sim.experiments import sweeping
from fedjax_sim.parts.text import parse

SMALL = {
    "num_clients": 8,
    "cohort_size": 6,
    "model": "logistic",
    "rounds": 3,
    "eval_every": 3,
    "width": 2,
    "malicious": [0],
}


def plan(axes, **options):
    points = sweeping.points_of([options_of.from_mapping(SMALL | options)], axes)
    return points, sweeping.groups_of(points)


def test_axes_are_read_from_text():
    axes = sweeping.axes_of(
        ["seed=0..2", "--aggregator=mean,krum(num_byzantine=2), nnm(mean, num_byzantine=1)",
         "model='a,b.py:net',mlp(hidden=[3, 4])", "client-optimizer.learning-rate=0.1,1/2"]
    )  # fmt: skip
    assert axes["seed"] == [0, 1, 2]
    assert axes["aggregator"] == [parse(text) for text in (
        "mean", "krum(num_byzantine=2)", "nnm(mean, num_byzantine=1)")]  # fmt: skip
    assert axes["model"] == ["a,b.py:net", parse("mlp(hidden=[3, 4])")]
    assert axes["client_optimizer.learning_rate"] == [0.1, 0.5]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["seed"], "OPTION=VALUE,VALUE"),
        (["seed="], "OPTION=VALUE,VALUE"),
        (["seed=3..1"], "the first number must be the smaller one"),
        (["seed=1", "seed=2"], "--over has seed twice"),
        (["aggregator=krum("], "was never closed"),
    ],
)
def test_wrong_axes_are_told(texts, message):
    with pytest.raises(ValueError, match=message):
        sweeping.axes_of(texts)


@pytest.mark.parametrize(
    ("axes", "programs"),
    [
        ({"seed": [0, 1, 2]}, 1),
        ({"seed": [0, 1], "client_optimizer.learning_rate": [0.1, 0.2, 0.3]}, 1),
        ({"aggregator": ["krum", "trimmed_mean"], "num_byzantine": [1, 2]}, 2),
        ({"aggregator": ["mean", "coordinate_median"], "seed": [0, 1]}, 2),
        ({"cohort_size": [4, 5], "seed": [0, 1]}, 2),
        ({"alpha": [0.1, 1.0], "seed": [0, 1]}, 2),
        ({"partition.seed": [0, 1], "seed": [0, 1]}, 2),
        ({"model": ["logistic", "mlp(hidden=[3])"]}, 2),
        ({"aggregator": ["bucketing(mean, bucket_size=2)"], "bucket_size": [1, 2]}, 2),
        ({"rounds": [2, 3]}, 2),
        ({"algorithm": ["fedprox"], "mu": [0.0, 0.1, 1]}, 1),
    ],
)
def test_what_can_be_traced_is_one_program(axes, programs):
    points, groups = plan(axes, attack="sign_flip")
    assert len(points) == np.prod([len(values) for values in axes.values()])
    assert len(groups) == programs
    assert sorted(p.number for group in groups for p in group.points) == [*range(len(points))]
    assert len({point.name for point in points}) == len(points)


def test_all_seeds_share_the_partition_of_the_file():
    points, _ = plan({"seed": [5, 6]}, seed=3)
    assert {options_of.flat(p.options)["partition.seed"] for p in points} == {3}
    assert [options_of.flat(p.options)["seed"] for p in points] == [5, 6]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"sede": [1]}, "--over: unknown option 'sede'. Did you mean 'seed'"),
        ({"aggregator": ["krumm"]}, "--over: aggregator: there is no aggregator 'krumm'"),
        ({"rounds": [0]}, "--over: rounds must be >= 1, got 0"),
        ({"mu": [0.1]}, "--over: mu belongs to what is not chosen"),
    ],
)
def test_wrong_values_are_told_by_their_axis(axes, message):
    with pytest.raises(ValueError, match=message):
        plan(axes, attack="sign_flip")


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ({"seed": [0, 4], "num_byzantine": [1, 2]},
         {"aggregator": "trimmed_mean", "attack": "gaussian(0.1)"}),
        ({"client_optimizer.learning_rate": [0.05, 0.2], "seed": [1]},
         {"algorithm": "fedadam", "attack": "sign_flip"}),
        ({"pull": [0.1, 1.0]}, {"algorithm": "ditto", "personal_learning_rate": 0.1,
                                "attack": "no_attack"}),
    ],
)  # fmt: skip
def test_every_run_is_the_run_alone(axes, options):
    points, (group,) = plan(axes, **options)
    sweeper = sweeping.Sweeper()
    experiment = sweeper.experiment(points[0].options)
    together = sweeper.run(group, experiment, points)
    for i, point in enumerate(points):
        found = sweeping.of_run(together, i, len(points))
        alone = fs.experiment(tomllib.loads(options_of.to_toml(point.options))).run()
        assert found.client_steps == alone.client_steps
        means = found.evaluations.means()
        assert means.keys() == alone.evaluations.means().keys()
        for name, expected in alone.evaluations.means().items():
            np.testing.assert_allclose(means[name], expected, rtol=2e-4, atol=1e-3, err_msg=name)
        np.testing.assert_array_equal(found.info.cohort.ids, alone.info.cohort.ids)


def test_groups_share_data_models_and_evaluations():
    axes = {"aggregator": ["mean", "coordinate_median"], "alpha": [0.1, 1.0]}
    _, groups = plan(axes, attack="sign_flip")
    sweeper = sweeping.Sweeper()
    made = [sweeper.experiment(group.points[0].options) for group in groups]
    assert made[0].dealt is made[2].dealt and made[0].evaluate is made[2].evaluate
    assert made[0].dealt is not made[1].dealt and made[0].algorithm is not made[2].algorithm
    assert sweeping.runs_at_once(made[0], 10**9) > sweeping.runs_at_once(made[0], 10**6) >= 1
    assert sweeping.runs_at_once(made[0], 1) == 1

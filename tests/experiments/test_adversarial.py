"""The experiments on attacks: their data, their numbers, their files."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from fedjax_sim import engine, metrics, models, simulate
from fedjax_sim.data import datasets, federate
from fedjax_sim.experiments.robust import backdoor_fashion, lens, lens_adult, lens_fashion
from fedjax_sim.experiments.robust import mnist as robust_mnist
from fedjax_sim.ops import trees


def test_the_papers_split_and_target():
    """Sandal 5454 to sneaker, and the classes that the malicious client owns."""
    if not datasets.images.DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip("needs the whole of Fashion-MNIST")
    setting = lens_fashion.load_setting(lens_fashion.Options(full=True))
    labels = np.asarray(setting.train["y"])[setting.partition[-1]]
    counts = [648, 600, 547, 581, 599, 596, 600, 625, 583, 621]
    assert np.bincount(labels).tolist() == counts
    assert np.concatenate(setting.partition)[:5].tolist() == [11130, 2210, 11201, 54859, 36028]
    assert setting.targets["y"].tolist() == [7]
    ten = lens_fashion.load_setting(lens_fashion.Options(num_targets=10))
    assert ten.targets["y"].tolist() == [7, 6, 9, 5, 1, 6, 7, 0, 5, 7]
    assert [len(rows) for rows in ten.partition] == [2400] * 10
    assert tuple(lens.jobs(ten)) == lens.ROWS


def test_lens_fashion_leaves_everything(tmp_path, monkeypatch, capsys):
    """With two epochs of local steps."""
    load = lens_fashion.load_setting

    def shorter(options):
        setting = load(options)
        return setting._replace(batching=dataclasses.replace(setting.batching, num_epochs=2))

    monkeypatch.setattr(lens_fashion, "load_setting", shorter)
    kept = (lens.BENIGN, lens.BOOSTED)
    output = tmp_path / "run"
    lens_fashion.main(lens_fashion.Options(output=output, quick=True, rows=(lens.BOOSTED,)))
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert list(rows) == list(kept)
    assert rows[lens.BOOSTED]["confidence_at_the_end"]["mean"] > 0.8
    assert rows[lens.BENIGN]["confidence_at_the_end"]["mean"] < 0.2
    assert rows[lens.BOOSTED]["rounds_that_pass_the_check"]["mean"] < 1
    assert rows[lens.BENIGN]["rounds_that_pass_the_check"]["mean"] == 1
    files = {path.name for path in output.iterdir()}
    assert {
        "rows.npz",
        "confidence.png",
        "distances.png",
        "updates.png",
        "explanations.png",
    } <= files
    assert "boosting" in capsys.readouterr().out


def test_lens_adult_has_the_papers_features_and_two_networks():
    setting = lens_adult.load_setting(models.mlp(2, hidden=(256,)), lens_adult.Options())
    assert setting.train["x"].shape[1] == 104
    assert [len(rows) for rows in setting.partition] == [3016] * 10
    assert setting.targets["y"].tolist() == [1]
    assert list(lens_adult.NETS.values()) == [(256,), (256, 256)]


def test_agnostic_learning_amplifies_a_backdoor(tmp_path, monkeypatch):
    recipes = backdoor_fashion.recipes()
    kept = {name: recipes[name] for name in ("FedAvg", "agnostic")}
    monkeypatch.setattr(backdoor_fashion, "recipes", lambda: kept)
    output = tmp_path / "run"
    backdoor_fashion.main(backdoor_fashion.Options(output=output, quick=True, num_seeds=2))
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert min(rows["agnostic"]["success"]) > 1.5 * max(rows["FedAvg"]["success"])
    assert min(rows["agnostic"]["weight"]) > 0.15 and rows["FedAvg"]["weight"] == [0.1, 0.1]
    assert min(rows["FedAvg"]["accuracy"]) > 0.7
    assert {"success.png", "results.md"} <= {path.name for path in output.iterdir()}


def a_row(gap, distances, honest):
    ones = np.ones((1, len(gap[0]) + 1))
    return lens.Row(
        ones, ones, ones, np.array(gap), np.array(distances), np.array(honest), *([0] * 2), {}
    )


def test_the_shares_of_rounds_leave_out_those_without_the_attacker():
    row = a_row(
        [[0.05, 0.2, np.nan, 0.1]],
        [[[1, 2], [1, 2], [np.nan] * 2, [0.5, 2]]],
        [[[0.9, 2.1], [0.9, 1.9], [0.9, 2.1], [0.9, 2.1]]],
    )
    np.testing.assert_allclose(row.passes, [2 / 3])
    np.testing.assert_allclose(row.inside, [1 / 3])
    np.testing.assert_allclose(row.outside, [(0 + (2 / 1.9 - 1) + (1 - 0.5 / 0.9)) / 3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lens_fashion.main(lens_fashion.Options(num_targets=11)), "num_targets"),
        (
            lambda: lens_fashion.load_setting(lens_fashion.Options(quick=True, num_clients=7)),
            "num_clients must divide",
        ),
        (lambda: lens_fashion.main(lens_fashion.Options(rows=("boost",))), "unknown row"),
        (lambda: lens_adult.main(lens_adult.Options(num_rounds=2)), "num_rounds"),
        (lambda: lens_adult.main(lens_adult.Options(rows=("boost",))), "unknown row"),
        (lambda: robust_mnist.main(robust_mnist.Options(rules=("krum",))), "Did you mean 'Krum'"),
        (lambda: robust_mnist.main(robust_mnist.Options(num_iterations=50)), "multiple of 30"),
        (lambda: robust_mnist.main(robust_mnist.Options(momenta=(0.5,))), "unknown momenta"),
        (lambda: robust_mnist.main(robust_mnist.Options(attacks=("alie",))), "Did you mean 'ALIE'"),
        (
            lambda: robust_mnist.main(robust_mnist.Options(bucket_sizes=(0,))),
            "bucket_sizes",
        ),
    ],
)
def test_options_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def small_task():
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(500, 6)))
    y = np.int32(x[:, :3].argmax(axis=1))
    parts = np.split(np.arange(500), 25)
    data = federate({"x": x, "y": y}, parts)
    flipped = federate({"x": x, "y": 2 - y}, parts)
    return robust_mnist.Task(
        models.logistic(3),
        {"plain": data, "label flip": flipped},
        federate({"x": x, "y": y}, [np.arange(500)]),
    )


def test_a_column_runs_each_attack_alone():
    """A column, compiled once, against runs of a single attack."""
    task = small_task()
    defence = robust_mnist.Defence("median", 2, 0.9)
    options = robust_mnist.Options(num_iterations=30, num_seeds=1)
    cells = robust_mnist.column(task, defence, options)
    assert cells.shape == (5, 1)

    alone = robust_mnist.algorithm_for(task.model, defence, robust_mnist.ATTACKS.index("IPM"))
    init_key, key = jax.random.split(jax.random.key(0))
    result = simulate.run(
        alone,
        task.model.init(init_key, task.test.examples["x"][:1]),
        task.train["plain"],
        key=key,
        num_rounds=30,
    )
    evaluate = engine.evaluator(task.model, {"accuracy": metrics.accuracy})
    np.testing.assert_allclose(cells[3, 0], evaluate(result.params, task.test)["accuracy"].value[0])
    # Everybody lies about the labels in this data, so that hardly anything is right.
    assert cells[1, 0] < 0.5 < cells[2, 0]

    only = dataclasses.replace(options, attacks=("IPM",))
    np.testing.assert_allclose(robust_mnist.column(task, defence, only), cells[3:4])


def test_a_little_moves_the_parameters_up_as_published():
    """Gradients of a softmax add up to 0 over the classes; Krum takes what the attackers send."""
    task = small_task()
    defence = robust_mnist.Defence("Krum", 1, 0.0)
    alie = robust_mnist.algorithm_for(task.model, defence, robust_mnist.ATTACKS.index("ALIE"))
    params = task.model.init(jax.random.key(0), task.test.examples["x"][:1])
    result = simulate.run(alie, params, task.train["plain"], key=jax.random.key(1), num_rounds=1)
    moved = trees.subtract(result.params, params)
    for leaf in jax.tree.leaves(moved):
        assert float(leaf.sum()) > 1e-4


def test_robust_mnist_leaves_everything(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(robust_mnist, "column", lambda *args: np.full((5, 4), 0.5))
    output = tmp_path / "run"
    robust_mnist.main(robust_mnist.Options(output=output, quick=True))
    results = json.loads((output / "results.json").read_text())
    assert results["complete"] and len(results["cells"]) == 4 * 2 * 5
    assert results["cells"][0]["accuracy"] == {"mean": 0.5, "std": 0.0, "runs": [0.5] * 4}
    assert {path.name for path in output.iterdir()} >= {"accuracy.png", "results.json"}
    assert "160 runs" in capsys.readouterr().out


def test_the_grid_beside_what_is_published():
    krum, clipping = (
        robust_mnist.Defence(*d) for d in (("Krum", 1, 0.0), ("centered clipping", 2, 0.9))
    )
    grid = {
        krum: np.full((5, 3), 0.279),
        krum._replace(bucket_size=2): np.full((5, 3), 0.3),
        clipping: np.full((5, 3), 0.96),
    }
    options = robust_mnist.Options()
    sheet = robust_mnist.sheet(grid, options)
    assert sheet.rows[0][:2] == ("Krum, s=1, m=0", "28±0 [28]")
    said = robust_mnist.findings(grid, options)
    assert "in 5 of 5 cells" in said and "at least 96.0 %" in said
    assert "all: 6 of 15" in said and "above 90 %: 5 of 5" in said
    alone = {krum: np.full((1, 3), 0.79)}
    options = robust_mnist.Options(attacks=("ALIE",), bucket_sizes=(1,))
    assert robust_mnist.sheet(alone, options).rows == [("Krum, s=1, m=0", "79±0 [79]")]
    assert robust_mnist.findings(alone, options).endswith("all: 1 of 1.")


def test_quick_data_has_twenty_five_equal_clients():
    task = robust_mnist.load_task(dataclasses.replace(robust_mnist.Options(), quick=True))
    assert task.train["plain"].sizes.tolist() == [125] * 25
    honest = [task.train["plain"].client(k)["y"] for k in range(20)]
    assert max(len(np.unique(labels)) for labels in honest) <= 2
    plain, flipped = (data.client(24)["y"] for data in task.train.values())
    np.testing.assert_array_equal(flipped, 9 - plain)

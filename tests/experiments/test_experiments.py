"""The experiments: their yardstick, their numbers, their files."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
import pytest

import reference
from fedjax_sim import engine, matching, metrics
from fedjax_sim.cli import main as cli
from fedjax_sim.data import datasets
from fedjax_sim.data.datasets import from_arrays
from fedjax_sim.experiments import tasks
from fedjax_sim.experiments.agnostic import adult as agnostic_adult
from fedjax_sim.experiments.agnostic import fashion as agnostic_fashion
from fedjax_sim.experiments.agnostic import language as agnostic_language
from fedjax_sim.experiments.agnostic import minimax
from fedjax_sim.experiments.fair import adult as fair_adult
from fedjax_sim.experiments.fair import shakespeare as fair_shakespeare
from fedjax_sim.experiments.matching import fedma_fashion, pfnm, pfnm_report
from fedjax_sim.experiments.matching import local_training as apart


def test_exact_minimax_of_two_small_domains_by_brute_force():
    """A grid over the mixture, each point minimised by plain gradient descent in float64."""
    rng = np.random.default_rng(1)
    domains = [(rng.normal(size=(n, 3)), rng.integers(0, 2, n)) for n in (8, 30)]
    ridge = 1e-2
    found = minimax.solve(domains, 2, ridge=ridge)

    w, b = np.zeros((3, 2)), np.zeros(2)

    def dual(first: float) -> float:
        nonlocal w, b  # from the minimum of the mixture before, which is near
        mixture = np.array([first, 1 - first])
        for _ in range(1000):
            parts = [reference.softmax_gradient(w, b, x, y) for x, y in domains]
            gw = sum(m * part[1] for m, part in zip(mixture, parts, strict=True)) + ridge * w
            gb = sum(m * part[2] for m, part in zip(mixture, parts, strict=True)) + ridge * b
            w, b = w - 0.5 * gw, b - 0.5 * gb
        losses = np.array([reference.softmax_gradient(w, b, x, y)[0] for x, y in domains])
        return mixture @ losses + ridge / 2 * ((w**2).sum() + (b**2).sum())

    grid = np.linspace(0, 1, 21)
    values = np.array([dual(first) for first in grid])
    assert abs(grid[values.argmax()] - found.mixture[0]) <= 0.05
    assert values.max() <= found.value + 1e-9
    np.testing.assert_allclose(dual(found.mixture[0]), found.value, atol=1e-6)


def test_exact_minimax_finds_a_corner():
    """The hard domain is the easy one with every fifth label flipped: all the mixture is on it."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(40, 2))
    y = (x[:, 0] > 0).astype(int)
    easy, hard = (x, y), (x, y ^ (np.arange(40) % 5 == 0))
    found = minimax.solve([easy, hard], 2, ridge=0.1)
    np.testing.assert_allclose(found.mixture, [0, 1], atol=1e-6)
    assert found.losses[1] > found.losses[0]


@pytest.fixture(scope="module")
def task():
    return tasks.adult()


@pytest.fixture(scope="module")
def saddle(task):
    """The exact solution for doctorates and others."""
    return minimax.of_clients(task.train, ridge=agnostic_adult.RIDGE)


def test_exact_minimax_serves_domains_without_a_say():
    """Each domain has a feature of its own; nobody may be worse off than those with weight."""
    rng = np.random.default_rng(9)
    truth, domains = rng.normal(size=6), []
    for k in range(8):
        common = np.eye(6)[rng.integers(0, 6, 40)]
        dice = rng.random(40)
        odds = np.exp(common @ truth + 2 * rng.normal())
        labels = (dice < odds / (1 + odds)).astype(int)
        domains.append((np.column_stack([np.tile(np.eye(8)[k], (40, 1)), common]), labels))
    found = minimax.solve(domains, 2, ridge=1e-6)
    assert (found.mixture < 1e-3).any()
    assert found.losses.max() < found.mixture @ found.losses + 1e-4


def test_adult_saddle_point(saddle):
    """Two independent L-BFGS bisections gave lambda 0.9072 and 0.908, both losses 0.43897."""
    assert abs(saddle.mixture[0] - 0.9072) < 1e-3
    np.testing.assert_allclose(saddle.losses, 0.43897, atol=5e-5)


def settled(path: dict[str, np.ndarray], mixture: list[float], worst: float) -> int:
    """The round from which lambda stays within 0.01 and the worst loss within 0.002."""
    off = np.abs(path["mixture"] - mixture).max(axis=1) > 0.01
    off |= np.abs(path["losses"].max(axis=1) - worst) > 0.002
    return int(np.flatnonzero(off).max()) + 1


def test_full_batches_reach_the_saddle_point_and_optimistic_steps_as_soon(task):
    """With the same step sizes."""
    rounds_needed = []
    for variant in ("full batch", "optimistic"):
        row, path = agnostic_adult.converge(task, variant, effort=0.35)
        np.testing.assert_allclose(row.loss, 0.439, atol=0.002)
        rounds_needed.append(settled(path, [0.9072, 0.0928], 0.43897))
    plain, optimistic = rounds_needed
    assert optimistic <= plain < len(path["losses"])


def test_a_saddle_point_on_an_edge_of_the_simplex_is_reached_too():
    """By race; the exact solution, which takes longer, is solve_exactly's."""
    task = tasks.adult(group_by="race")
    assert task.domains[1::3] == ("Asian-Pac-Islander", "White")
    _, path = agnostic_adult.converge(task, "full batch", effort=0.5)
    assert settled(path, [0, 0.6197, 0, 0, 0.3803], 0.38025) < len(path["losses"])


def reproduce(arguments: str, output: Path) -> dict[str, Any]:
    """Run the command; the content of its results.json."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*f"reproduce {arguments} --output".split(), str(output)])
    assert ended.value.code in (0, None)
    results = json.loads((output / "results.json").read_text())
    assert results["complete"]
    table = (output / "results.md").read_text(encoding="utf-8")
    assert table.startswith("# ") and "| --- | ---: |" in table
    return results


def test_reproduce_agnostic_adult_leaves_everything(task, saddle, tmp_path, monkeypatch, capsys):
    """With the exact solution that other tests use, once it is asked for the same data."""

    def solved(data, *, ridge):
        jax.tree.map(np.testing.assert_array_equal, data, task.train)
        assert ridge == agnostic_adult.RIDGE
        return saddle

    monkeypatch.setattr(minimax, "of_clients", solved)
    in_batches = ("mini-batch, converged", 5_000)
    monkeypatch.setitem(agnostic_adult.CONVERGED, "mini-batch", in_batches)
    output = tmp_path / "run"
    results = reproduce("agnostic-adult --quick --num-seeds 2 --methods paper", output)
    printed = capsys.readouterr().out
    assert "exact minimax" in printed and "non-doctorate only" in printed
    rows = results["rows"]
    assert list(rows) == ["doctorate only", "non-doctorate only", "FedAvg", "agnostic"]
    assert rows["agnostic"]["test_accuracy"]["all"]["std"] >= 0
    assert abs(results["exact_minimax"]["lambda"]["doctorate"] - 0.907) < 0.01
    worst = {name: row["worst_train_loss"]["mean"] for name, row in rows.items()}
    assert min(worst, key=worst.get) == "agnostic"
    files = {path.name for path in output.iterdir()}
    assert {"accuracy.png", "loss.png", "minimax.png", "rows.npz", "path.npz"} <= files
    with np.load(output / "rows.npz") as arrays:
        assert arrays["agnostic/accuracy"].shape == (2, 2)


def blobs(num_examples: int, rng: np.random.Generator):
    """Images of four classes, each a bright patch in a place of its own."""
    y = rng.integers(0, 4, num_examples)
    x = rng.integers(0, 60, (num_examples, 6, 6, 1))
    for k in range(4):
        x[y == k, 3 * (k // 2) : 3 * (k // 2) + 3, 3 * (k % 2) : 3 * (k % 2) + 3] += 90
    return x.astype(np.uint8), y


def test_reproduce_pfnm_leaves_everything(tmp_path, capsys, rng):
    """On easy images: matching beats averages and clients, as the report of any run would say."""
    dataset = from_arrays(*blobs(600, rng), *blobs(200, rng), name="blobs")
    output = tmp_path / "run"
    options = pfnm.Options(
        output,
        num_clients=(4,),
        partitions=("homogeneous",),
        hidden=(12,),
        num_rounds=2,
        quick=True,
    )
    recipe = pfnm.Recipe(0.01, 1e-6, {})
    pfnm_report.reproduce(dataset, recipe, options.checked())
    assert "PFNM 1, 1, 1" in capsys.readouterr().out
    assert "| SPAHM |" in (output / "results.md").read_text()
    results = json.loads((output / "results.json").read_text())
    assert results["complete"] and len(results["runs"]) == 1
    (run,) = results["runs"]["homogeneous, 4 clients"]
    found = {name: row["accuracy"] for name, row in run["models"].items()}
    assert found["PFNM 1, 1, 1"] > found["uniform average"]
    assert run["models"]["uniform ensemble"]["neurons"] == [48]
    assert 12 <= run["models"]["PFNM 1, 1, 1"]["neurons"][0] <= 48
    assert run["train_seconds"] > 0 and len(run["local_accuracy"]) == 4
    pictures = {path.name for path in output.glob("*.png")}
    assert pictures == {
        f"{what}_homogeneous.png" for what in ("size", "rounds", "sharing", "filters")
    }
    curves = run["rounds"]
    network = 4 * (36 * 12 + 12 + 12 * 4 + 4)
    assert curves["FedAvg"]["megabytes"] == pytest.approx([8e-6 * network, 16e-6 * network])
    # Nothing is sent to clients in the first round, and class counts are besides networks.
    wanted = [4e-6 * (network + 16), 4e-6 * (3 * network + 32)]
    assert curves["PFNM 1, 1, 1"]["megabytes"] == pytest.approx(wanted)
    assert len(curves["PFNM 1, 1, 1"]["neurons"]) == 2
    assert "PFNM 1, 1, 1, 2 rounds" in found


def test_kmeans_with_a_cluster_for_each_neuron_adds_networks_up(rng):
    """Two hidden layers: nothing is merged, so that outputs before the last bias are sums."""
    sizes = [(4, 3), (3, 5), (5, 2)]
    layers = [(rng.normal(size=(2, i, o)), rng.normal(size=(2, o))) for i, o in sizes]

    def outputs(layers):
        x = np.linspace(-1, 1, 12).reshape(3, 4)
        for kernel, bias in layers[:-1]:
            x = np.maximum(x @ np.asarray(kernel) + np.asarray(bias), 0)
        return x @ np.asarray(layers[-1][0])

    merged = pfnm.kmeans(matching.params_of(layers), (6, 10), seed=0)
    apart = [outputs([(kernel[j], bias[j]) for kernel, bias in layers]) for j in range(2)]
    np.testing.assert_allclose(outputs(merged), sum(apart), rtol=1e-4)
    np.testing.assert_allclose(merged[-1][1], layers[-1][1].mean(axis=0), rtol=1e-5)


def test_tables_of_several_numbers_of_clients(tmp_path):
    """Accuracies side by side, and a star where a budget was reached."""
    runs = [SimpleNamespace(rows={"PFNM": pfnm.Row(a, (7,), a > 0.5)}) for a in (0.25, 0.75)]
    options = pfnm.Options(tmp_path, num_clients=(2, 3))
    outcomes = {"skewed, 2 clients": runs[:1], "skewed, 3 clients": runs}
    sheet = pfnm_report.numbers_table("skewed", outcomes, options)
    assert sheet.columns == ("model", "2", "3")
    assert sheet.rows == [("PFNM", "25.0", "50.0±25.0")]
    assert (
        pfnm_report.size_of("PFNM", runs) == "7*" and pfnm_report.size_of("PFNM", runs[:1]) == "7"
    )


def test_what_the_authors_code_reached_stands_beside_ours():
    """A row holds when accuracy and size do; some are told by accuracy alone."""
    known = {name: (0.9, (400,)) for name in pfnm.REFERENCE_ROWS[3:]} | {
        "PFNM 1, 1, 1": (0.9, (500,))
    }
    run = SimpleNamespace(
        rows={name: pfnm.Row(*each) for name, each in known.items()}
        | {"SPAHM": pfnm.Row(0.8, (9,))},
        local=np.array([0.8, 0.9]),
        train_seconds=1.0,
        match_seconds=1.0,
        matched=SimpleNamespace(assignments=[None]),
    )
    theirs = ((80.0, None), (99.0, None), (90.0, None), *(((90.2, 400),) * 9))
    recipe = pfnm.Recipe(0.01, 0.0, {"homogeneous": theirs}, "at once")
    found = pfnm_report.expected("alike", "homogeneous", [run], recipe)
    sheet = pfnm_report.results_table("alike", [run], found)
    rows = {name: cells for name, *cells in sheet.rows}
    assert rows["client, min"] == ["80.00", "", "80.00", "", "yes"]
    assert rows["client, mean"][-1] == "no"
    assert rows["uniform ensemble"] == ["90.00", "400", "90.20", "400", "yes"]
    assert rows["PFNM 1, 1, 1"][-1] == "no" and rows["SPAHM"] == ["80.00", "9", "", "", ""]


def test_reproduce_fedma_leaves_everything(tmp_path, monkeypatch, rng):
    """On pictures that one filter tells apart, the smallest run that goes all ways."""
    y = rng.integers(0, 2, 60)
    x = rng.integers(0, 256, (60, 16, 16, 1))
    x[y == 1, :, 8:] = 0
    small = from_arrays(x.astype(np.uint8), y, x.astype(np.uint8), y, name="halves")
    monkeypatch.setattr(fedma_fashion.datasets, "fashion_mnist", lambda folder: small)
    output = tmp_path / "run"
    options = fedma_fashion.Options(
        output, partitions=("homogeneous",), num_clients=2, num_epochs=2
    )
    fedma_fashion.main(options)
    results = json.loads((output / "results.json").read_text())
    (run,) = results["runs"]["LeNet, homogeneous"]
    assert results["complete"] and len(run["local_accuracy"]) == 2
    width = {"conv_0": 8, "conv_1": 16, "dense_0": 64}
    for name, row in run["models"].items():
        assert 0 <= row["accuracy"] <= 1
        assert row["num_rounds"] == (4 if "adapt" in name or "rounds" in name else 1)
        if name != "FedMA" and not name.endswith("ensemble"):
            assert row["widths"] == width
    assert {"average", "matched average", "FedAvg, 4 rounds"} < run["models"].keys()
    assert run["models"]["weighted ensemble"]["widths"]["conv_1"] == 32
    assert run["most_frequent_label"] == np.bincount(y).max() / len(y)
    assert "FedMA, a client's width, clients adapt" in (output / "results.md").read_text()
    assert (output / "size_lenet_homogeneous.png").exists()


def test_what_is_frozen_stays_while_clients_adapt(rng):
    x, y = rng.integers(0, 256, (20, 16, 16, 1)).astype(np.uint8), np.arange(20) % 2
    dataset = from_arrays(x, y, x, y, name="noise")
    options = fedma_fashion.Options(num_clients=2, num_epochs=1)
    shop = fedma_fashion.Workshop(fedma_fashion.divided(dataset, "homogeneous", options, 0))
    params = shop.start(jax.random.key(0), common=False)
    frozen = {name: dict.fromkeys(each, name == "conv_0") for name, each in params.items()}
    after = shop.adapt(jax.random.key(1), params, frozen)
    for name in params:
        moved = np.abs(np.asarray(after[name]["kernel"] - params[name]["kernel"])).max()
        assert (moved == 0) == (name == "conv_0")


def test_amsgrad_is_pytorchs(rng):
    """Against its formulas in NumPy; with growing gradients it is plain Adam."""
    # The last is as small as that of weights from pixels that are always black.
    gradients = (rng.normal(size=(6, 3)) * [1, 1, 1e-7]).astype(np.float32)
    optimizer = apart.amsgrad(0.1)
    state = optimizer.init(jax.numpy.zeros(3))
    mean = square = largest = np.zeros(3)
    for t, g in enumerate(gradients, start=1):
        step, state = optimizer.update(g, state)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
        largest = np.maximum(largest, square)
        root = np.sqrt(largest) / np.sqrt(1 - 0.999**t)
        wanted = -0.1 / (1 - 0.9**t) * mean / (root + 1e-8)
        np.testing.assert_allclose(step, wanted, rtol=1e-4)
    adam = optax.adam(0.1)
    ours, theirs = optimizer.init(jax.numpy.zeros(3)), adam.init(jax.numpy.zeros(3))
    for t in range(1, 5):
        step, ours = optimizer.update(gradients[0] * t, ours)
        plain, theirs = adam.update(gradients[0] * t, theirs)
        np.testing.assert_allclose(step, plain, rtol=1e-4)


def test_heterogeneous_partition_holds_sizes_in_check(rng):
    labels = rng.integers(0, 10, 5000)
    parts = apart.heterogeneous(labels, 10, seed=3)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(5000))
    sizes = np.array([len(part) for part in parts])
    assert sizes.min() >= 10 and sizes.max() < 1100
    shares = np.array([np.bincount(labels[part], minlength=10) / len(part) for part in parts])
    assert (shares < 0.01).any() and shares.max() > 0.3
    with pytest.raises(ValueError, match="take fewer clients"):
        apart.heterogeneous(np.zeros(20, int), 10, seed=0)


def test_pfnm_options_are_checked(tmp_path):
    options = pfnm.Options(tmp_path / "run", num_clients=(1,))
    with pytest.raises(ValueError, match="num_clients"):
        options.checked()
    options = pfnm.Options(tmp_path / "run", partitions=("skewed",))
    with pytest.raises(ValueError, match="unknown partitions 'skewed'"):
        options.checked()
    assert not (tmp_path / "run").exists()


def test_every_kind_of_person_counts_as_often_as_there_are_people(task):
    kinds = tasks.kinds(task.train)
    counts = np.asarray(kinds.examples["y"][:, 1])
    assert counts.sum() == task.train.num_examples
    assert kinds.num_examples < 0.4 * task.train.num_examples
    params = task.init_params(jax.random.key(2))
    plain = engine.evaluator(task.model, {"loss": metrics.cross_entropy})(params, task.train)
    counted = engine.evaluator(task.model, {"loss": tasks.counted})(params, kinds)
    np.testing.assert_allclose(counted["loss"].value, plain["loss"].value, rtol=1e-5)


@pytest.mark.parametrize(
    ("column", "message"),
    [("age", "unknown group_by 'age'"), ("native-country", "without test examples: Holand")],
)
def test_a_column_that_cannot_be_grouped_by_is_named(column, message):
    with pytest.raises(ValueError, match=message):
        tasks.adult(group_by=column)


def test_any_column_groups_people():
    task = tasks.adult(group_by="workclass")
    assert "unknown" in task.domains and len(task.domains) == 9
    assert task.train.num_examples == 32_561
    names = agnostic_adult.jobs(task, methods="paper")
    assert list(names) == ["FedAvg", "agnostic"]  # too many to train on each alone


def test_rows_of_one_program_keep_their_numbers_and_seeds(task):
    job = agnostic_adult.jobs(task, methods="all")["TERM"]
    assert job.numbers == {"TERM, t = 1": 1.0, "TERM, t = 10": 10.0}
    job = job._replace(numbers={"a": 1.0, "b": 1.0, "c": 10.0}, num_rounds=2)
    rows = agnostic_adult.train("TERM", job, task, range(2))
    assert [*rows] == ["a", "b", "c"] and rows["a"].loss.shape == (2, 2)
    np.testing.assert_array_equal(rows["a"].loss, rows["b"].loss)
    assert (rows["a"].loss != rows["c"].loss).all()
    assert (rows["a"].loss[0] != rows["a"].loss[1]).all()


def test_reproduce_fair_adult(tmp_path, monkeypatch):
    """Three of its rows: lambda ignored stays near equal weights, lambda used goes on."""
    make = fair_adult.recipes
    kept = ("gradient descent", "AFL, λ ignored", "AFL", "q-FFL, q = 5")
    monkeypatch.setattr(
        fair_adult, "recipes", lambda task: {n: m for n, m in make(task).items() if n in kept}
    )
    results = reproduce("fair-adult --quick --num-seeds 2", tmp_path / "run")
    rows = results["rows"]
    loss = {name: row["worst_train_loss"]["mean"] for name, row in rows.items()}
    assert loss["AFL"] < loss["gradient descent"]
    assert rows["AFL"]["lambda"]["doctorate"]["mean"] > 0.5
    assert {each["what"] for each in results["expected"]} >= {"AFL, λ ignored: all", "AFL: all"}
    assert (tmp_path / "run" / "loss.png").exists()


def test_reproduce_agnostic_fashion(tmp_path, monkeypatch):
    """On images that ship with the package, two of its rows.

    Every third pixel each way is left: the exact solution takes as long as there are pixels.
    """
    small = datasets.fashion_small()

    def thinned(split):
        x = np.zeros_like(split["x"])
        x[:, 1::3, 1::3] = split["x"][:, 1::3, 1::3]
        return {"x": x, "y": split["y"]}

    small = small._replace(train=thinned(small.train), test=thinned(small.test))
    monkeypatch.setattr(datasets, "fashion_mnist", lambda folder: small)
    make = agnostic_fashion.recipes
    kept = ("FedAvg", "agnostic")
    monkeypatch.setattr(
        agnostic_fashion, "recipes", lambda: {n: m for n, m in make().items() if n in kept}
    )
    results = reproduce("agnostic-fashion --quick --num-seeds 2", tmp_path / "run")
    exact = results["exact_minimax"]
    assert sum(exact["lambda"]) == pytest.approx(1)
    assert max(results["rows"]["agnostic"]["loss"][0]) < max(results["rows"]["FedAvg"]["loss"][0])
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"accuracy.png", "minimax.png"}


def test_reproduce_agnostic_language(tmp_path):
    """Two languages of nine words: the model of one does not know the other."""
    rng = np.random.default_rng(0)
    for name, words in (("talk", list("abcd")), ("page", list("vwxyz"))):
        lines = [" ".join(np.roll(words, rng.integers(9))) for _ in range(150)]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    results = reproduce(
        f"agnostic-language --conversation {tmp_path / 'talk'} --document {tmp_path / 'page'} "
        "--vocabulary-size 11 --hidden 8 --num-rounds 60 --learning-rate 0.03",
        tmp_path / "run",
    )
    rows = {name: row["test_perplexity"] for name, row in results["rows"].items()}
    assert rows["conversation only"]["document"] > 2 * rows["agnostic"]["document"]
    assert rows["document only"]["conversation"] > 2 * rows["agnostic"]["conversation"]
    assert rows["agnostic"]["conversation"] < 9
    assert (tmp_path / "run" / "perplexity.png").exists()


def write_plays(folder):
    """Six roles with lines of which the last does not fill a sequence."""
    import h5py

    for split in ("train", "test"):
        with h5py.File(folder / f"shakespeare_{split}.h5", "w") as file:
            for k in range(6):
                lines = [b"To be, or not to be", b"a horse! " * (k + 1)]
                file.create_dataset(f"examples/ROLE_{k}/snippets", data=lines)


def test_the_ends_of_plays_count_for_nothing(tmp_path):
    """Else `run` would refuse the labels, -1, that fill up the last sequence."""
    write_plays(tmp_path)
    task = fedma_fashion.plays(tmp_path, fedma_fashion.Options(num_clients=2))
    for data in (task.train, task.test):
        assert (data.examples["y"] == -1).any()
        ((_, lowest, _),) = data.ranges
        assert lowest >= 0


def test_reproduce_fair_shakespeare(tmp_path):
    write_plays(tmp_path)
    results = reproduce(
        f"fair-shakespeare --folder {tmp_path} --hidden 8 --num-layers 1 --num-clients 5 "
        "--cohort-size 3 --warmup-rounds 2 --num-rounds 2 --num-seeds 2 --q 0 1 --t 1",
        tmp_path / "run",
    )
    assert list(results["rows"]) == [
        "FedAvg",
        "q-FFL, q = 0",
        "q-FFL, q = 1",
        "TERM, t = 1",
        "DRFA",
    ]
    for row in results["rows"].values():
        assert len(row["train_loss"]["variance"]) == 2
        assert all(0 <= mean <= 100 for mean in row["test_accuracy_percent"]["uniform_mean"])
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "distribution.png",
        "tradeoff.png",
        "tradeoff_loss.png",
        "per_client.npz",
    }


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (agnostic_adult, {"num_seeds": 1}, "num_seeds"),
        (fair_adult, {"num_seeds": 1}, "num_seeds"),
        (agnostic_fashion, {"num_seeds": 1}, "num_seeds"),
        (fair_shakespeare, {"folder": Path(), "q": (1.0, 0.0)}, "q must hold two or more powers"),
        (fair_shakespeare, {"folder": Path(), "q": (-1.0, 0.0)}, r"q must lie in \[0, inf\)"),
        (
            agnostic_language,
            {"conversation": (Path(),), "document": (Path(),), "num_rounds": 0},
            "num_rounds must lie in",
        ),
    ],
)
def test_options_are_checked_before_anything_is_made(module, options, message, tmp_path):
    output = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        module.main(module.Options(output=output, **options))
    assert not output.exists()

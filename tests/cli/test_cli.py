import asyncio
import contextlib
import dataclasses
import datetime
import errno
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import compilation
import fedjax_sim as fs
from federated_files import PLAIN, WRITERS
from fedjax_sim import experiments, metrics, models, simulate
from fedjax_sim.analysis import plots
from fedjax_sim.analysis.runfolder import RunFolder, load_params
from fedjax_sim.cli import main as cli
from fedjax_sim.cli import train as train_module
from fedjax_sim.cli.output import default_output
from fedjax_sim.data import datasets, federate
from fedjax_sim.experiments import described, population
from fedjax_sim.experiments import options as options_of
from fedjax_sim.ops import devices

SMALL = ["--num-clients", "8", "--cohort-size", "3", "--model", "logistic"]
PICTURES = {"label_counts.png", "learning_curves.png", "client_accuracy.png"}
FILES = PICTURES | {
    *("config.json", "config.toml", "metrics.jsonl", "results.json"),
    *("params.npz", "per_client.npz", "report.html"),
}


def run(*args: object) -> int:
    """The exit status of a command."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main([str(arg) for arg in args])
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def read(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "per_client.npz", allow_pickle=False) as file:
        return dict(file)


def in_a_new_process(*args: object, **options: Any) -> subprocess.Popen:
    command = [sys.executable, "-c", "from fedjax_sim.cli.main import main; main()"]
    environment = os.environ | compilation.QUICK_ENVIRONMENT
    return subprocess.Popen([*command, *map(str, args)], env=environment, **options)


# train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 7 rounds, evaluated after 0, 3, 6 and 7."""
    output = tmp_path_factory.mktemp("runs") / "first"
    assert run("train", *SMALL, "--rounds", 7, "--eval-every", 3, "--output", output) == 0
    return output


def test_a_run_leaves_everything(trained: Path) -> None:
    assert names(trained) == FILES == set(read(trained / "config.json")["files"])
    for picture in PICTURES:
        assert (trained / picture).read_bytes().startswith(b"\x89PNG")


def test_config_holds_what_was_resolved(trained: Path) -> None:
    options = read(trained / "config.json")["options"]
    assert options["partition"] == "dirichlet" and options["partition.alpha"] == 0.3
    assert options["algorithm.client_optimizer.learning_rate"] == 0.1
    assert options["seed"] == 0 and options["label"] is None


def test_metrics_are_a_line_a_segment(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [3, 6, 7]
    assert all(line["status"] == [] for line in lines)
    final = read(trained / "results.json")["final"]
    assert lines[-1]["test/accuracy"] == pytest.approx(final["test"]["accuracy"]["mean"])
    assert lines[-1]["client_steps"] == read(trained / "results.json")["client_steps"]


def test_results_follow_from_the_per_client_arrays(trained: Path) -> None:
    results, saved = read(trained / "results.json"), arrays(trained)
    assert results["evaluations"]["rounds"] == [0, 3, 6, 7] == saved["evaluations/rounds"].tolist()
    for split in ("train", "test"):
        total = saved[f"evaluations/{split}/accuracy/total"]
        count = saved[f"evaluations/{split}/accuracy/count"]
        assert total.shape == count.shape == (4, 8)
        values = total / count
        summary = results["evaluations"][split]["accuracy"]
        np.testing.assert_allclose(summary["mean"], total.sum(1) / count.sum(1), rtol=1e-5)
        np.testing.assert_allclose(summary["worst"], values.min(1), rtol=1e-5)
        np.testing.assert_allclose(
            summary["percentile_10"], np.percentile(values, 10, axis=1), rtol=1e-4
        )
        np.testing.assert_allclose(summary["variance"], values.var(1), rtol=1e-4, atol=1e-7)
        loss = saved[f"evaluations/{split}/loss/total"] / count
        worst = results["evaluations"][split]["loss"]["worst"]
        np.testing.assert_allclose(worst, loss.max(1), rtol=1e-5)
        last = {name: values[-1] for name, values in summary.items()}
        assert last == results["final"][split]["accuracy"]
    assert saved["evaluations/train/accuracy/count"][0].tolist() == saved["client_sizes"].tolist()
    assert saved["client_sizes"].sum() == 2500
    assert saved["evaluations/test/accuracy/count"][0].sum() == 500
    assert results["final"]["test"]["accuracy"]["mean"] > 0.4  # 0.1 is chance


def test_per_client_arrays_have_a_row_a_round(trained: Path) -> None:
    saved, results = arrays(trained), read(trained / "results.json")
    for name in ("ids", "weights", "loss", "num_steps", "update_norm", "num_bytes"):
        assert saved[f"rounds/cohort/{name}"].shape == (7, 3)
    ids = saved["rounds/cohort/ids"]
    assert all(len(set(row)) == 3 for row in ids.tolist())
    np.testing.assert_array_equal(saved["rounds/cohort/weights"], saved["client_sizes"][ids])
    steps = saved["rounds/cohort/num_steps"]
    np.testing.assert_array_equal(steps, -(-saved["client_sizes"][ids] // 32))
    assert results["client_steps"] == steps.sum()
    num_parameters = 785 * 10
    assert results["num_parameters"] == num_parameters
    assert results["bytes_up"] == results["bytes_down"] == 7 * 3 * 4 * num_parameters
    assert results["rounds"] == 7 and results["interrupted"] is False and results["error"] is None
    assert results["rounds_per_second"] == pytest.approx(7 / results["seconds"])
    assert results["peak_memory_bytes"] > 50e6


def test_saved_parameters_have_the_reported_accuracy(trained: Path) -> None:
    data = datasets.load("fashion_small")
    model = models.logistic(10)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(data.test["x"][:1]))
    params = load_params(trained / "params.npz", like)
    predicted = model.apply(params, jnp.asarray(data.test["x"])).argmax(-1)
    accuracy = read(trained / "results.json")["final"]["test"]["accuracy"]["mean"]
    assert np.mean(predicted == data.test["y"]) == pytest.approx(accuracy)


@pytest.mark.usefixtures("blank_pictures")
def test_config_toml_repeats_a_run_and_the_command_line_overrides_it(
    trained: Path, tmp_path: Path
) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    assert run("train", "--config", trained / "config.toml", "--output", again) == 0
    for name, values in arrays(trained).items():
        np.testing.assert_array_equal(arrays(again)[name], values)
    assert (again / "config.toml").read_text() == (trained / "config.toml").read_text()
    config = f"--config={trained / 'config.toml'}"
    assert run("train", "--seed", 1, config, "--rounds", 2, "--output", other) == 0
    options = read(other / "config.json")["options"]
    assert (options["seed"], options["rounds"], options["eval_every"]) == (1, 2, 3)
    first, second = (arrays(folder)["rounds/cohort/loss"][:2] for folder in (again, other))
    assert (first != second).all()


def test_overwrite_is_needed_to_replace_a_run(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    args = ("train", *SMALL, "--rounds", 1, "--output", trained)
    assert run(*args) == 2
    assert "--overwrite" in capsys.readouterr().err
    # Nothing is lost to a typing error either, not even with --overwrite.
    assert run(*args, "--overwrite", "--batch-size", 0) == 2
    assert before == {path.name: path.read_bytes() for path in trained.iterdir()}


def algorithm_of(model: fs.Model, **values: Any) -> fs.Algorithm:
    options = options_of.resolve(options_of.from_mapping(values))
    return described._algorithm(options, model, metrics.cross_entropy, None)


def test_every_kind_of_algorithm_trains_in_its_own_way() -> None:
    x = np.random.default_rng(0).normal(size=(20, 2))
    examples = {"x": x, "y": (x[:, 0] > 0.2).astype(int)}
    data = federate(examples, np.split(np.arange(20), [2, 8, 16]))
    model = models.logistic(2)
    kernels = []
    for choice in (
        {"algorithm": "fedavg", "sampler": "everyone"},
        {"algorithm": "fedprox", "sampler": "everyone", "mu": 5.0},
        {"algorithm": "scaffold", "sampler": "everyone", "num_steps": 2},
        {"algorithm": "agnostic", "step_size": 0.5},
    ):
        algorithm = algorithm_of(model, batch_size=4, **choice)
        params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
        result = simulate.run(algorithm, params, data, key=jax.random.key(1), num_rounds=40)
        loss = result.info.cohort.loss.mean(axis=1)
        assert loss[-1] < 0.9 * loss[0]
        kernels.append(np.asarray(result.params["kernel"]))
    for i, kernel in enumerate(kernels):
        assert all(np.abs(kernel - other).max() > 1e-3 for other in kernels[:i])


@pytest.mark.usefixtures("blank_pictures")
def test_natural_clients_keep_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["--dataset", "adult", "--partition", "by_group", "--group", "doctorate"]
    assert run("train", *args, "--model", "logistic", "--rounds", 1) == 0
    (output,) = (tmp_path / "runs").iterdir()
    assert output.name.startswith("adult-fedavg-20")
    saved = arrays(output)
    assert saved["client_names"].tolist() == ["doctorate", "non-doctorate"]
    assert saved["client_sizes"].tolist() == [413, 32_148]
    assert saved["evaluations/test/accuracy/count"][0].tolist() == [181, 16_100]
    # Two clients cannot fill the default cohort of ten.
    assert read(output / "config.json")["options"]["algorithm.sampler.cohort_size"] == 2


OWN_ALGORITHM = """
import jax
import fedjax_sim as fs


def descent(model, loss, rate=0.1):
    evaluate = fs.evaluator(model, {"loss": loss})

    def mean(params, data):
        return evaluate(params, data)["loss"].value.mean()

    def step(key, params, data):
        loss, gradient = jax.value_and_grad(mean)(params, data)
        return jax.tree.map(lambda p, g: p - rate * g, params, gradient), {"mean": loss}

    return fs.Algorithm(lambda key, params, data: params, step, lambda params: params)
"""


@pytest.mark.usefixtures("blank_pictures")
def test_an_algorithm_of_ones_own_may_tell_what_it_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN_ALGORITHM)
    words = "--num-clients 8 --model logistic --algorithm mine.py:descent --rate 0.05 --rounds 9"
    assert run("train", *words.split(), "--output", "run") == 0
    losses = arrays(tmp_path / "run")["rounds/mean"]
    assert losses.shape == (9,) and (np.diff(losses) < 0).all()
    assert "report.html" in names(tmp_path / "run")
    assert read(tmp_path / "run" / "results.json")["status"] == []


def deal(**options: Any) -> population.Dealt:
    values = {"num_clients": 5, "seed": 3, **options}
    given = {name: value for name, value in values.items() if value is not None}
    return population.deal(options_of.resolve(options_of.from_mapping(given)))


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards", "quantity_skew"])
def test_the_test_set_has_the_mixtures_of_the_training_set(partition: str) -> None:
    population = deal(partition=partition)
    counts = np.array([np.bincount(population.test.client(i)["y"], minlength=10) for i in range(5)])
    assert population.label_counts is not None and counts.sum() == 500
    expected = population.label_counts / population.label_counts.sum(axis=0) * 50
    # Rounding moves less than one example; topping up a client moves one more.
    assert np.abs(counts - expected).max() < 2


def test_too_few_test_examples_are_pooled() -> None:
    population = deal(num_clients=501)
    assert population.train.num_clients == 501 and population.test.num_clients == 1
    assert population.test.num_examples == 500


def test_sequences_are_dealt_out_with_their_clients(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = {"dataset": "shakespeare", "folder": shared_data}
    population = deal(**folder, partition="by_group", num_clients=None)
    assert population.train.num_clients == population.test.num_clients == 715
    assert len(population.client_names) == 715 and population.label_counts is None
    population = deal(**folder, partition="quantity_skew")
    ratio = np.asarray(population.test.sizes) / np.asarray(population.train.sizes)
    np.testing.assert_allclose(ratio, 4657 / 30_249, rtol=0.01)
    args = ["--dataset", "shakespeare", "--folder", shared_data, "--output", tmp_path / "run"]
    assert run("train", *args) == 2
    assert "dirichlet needs one label per example" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Ends before the end


def interrupting(number: int, at_line: int) -> Callable[..., None]:
    """A `RunFolder.log` that sends the process a signal at one line."""
    log, lines = RunFolder.log, []

    def log_and_interrupt(self: RunFolder, record: Any) -> None:
        log(self, record)
        lines.append(record)
        if len(lines) == at_line:
            signal.raise_signal(number)

    return log_and_interrupt


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(RunFolder, "log", interrupting(number, at_line=2))
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    args = ["train", *SMALL, "--rounds", 100, "--eval-every", 2, "--output", tmp_path / "run"]
    assert run(*args) == 130
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert names(tmp_path / "run") == FILES
    results, saved = read(tmp_path / "run" / "results.json"), arrays(tmp_path / "run")
    done = results["rounds"]
    # The signal came after round 4; one more segment was under way.
    assert results["interrupted"] is True and done == 6
    assert saved["rounds/cohort/ids"].shape == (done, 3)
    assert results["evaluations"]["rounds"] == [0, 2, 4, 6]
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in log] == [2, 4, 6]


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without the time they took."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{n: x for n, x in json.loads(line).items() if n != "seconds"} for line in lines]


def assert_same_run(folder: Path, other: Path) -> None:
    """Parameters, arrays, results and log of two runs are equal, but for times and memory."""
    for name in ("params.npz", "per_client.npz"):
        with np.load(folder / name) as found, np.load(other / name) as expected:
            assert found.keys() == expected.keys()
            for array in expected:
                np.testing.assert_array_equal(found[array], expected[array])
    found, expected = (read(each / "results.json") for each in (folder, other))
    timed = ("seconds", "compile_seconds", "peak_memory_bytes")
    for name in expected.keys() - {*timed, *(n for n in expected if n.endswith("per_second"))}:
        assert found[name] == expected[name], name
    assert log_of(folder) == log_of(other)


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_is_continued_as_if_it_had_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted after round 6, done after 8, and given more rounds then."""
    options = [*SMALL, "--eval-every", 5, "--checkpoint-every", 6]
    assert run("train", *options, "--rounds", 12, "--output", tmp_path / "whole") == 0
    output, log = tmp_path / "stopped", tmp_path / "stopped" / "metrics.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", interrupting(signal.SIGINT, at_line=2))
        assert run("train", *options, "--rounds", 8, "--output", output) == 130
    assert f"fedjax-sim train --resume {output}" in capsys.readouterr().out
    assert read(output / "results.json")["rounds"] == 6
    # As a process leaves it that is killed while it writes, some rounds after a checkpoint.
    log.write_text(log.read_text() + '{"round": 7, "seconds": 1}\n{"round": 8, "sec')
    assert run("train", "--resume", output) == 0
    assert names(output) == FILES | {"checkpoints"}
    assert [line["round"] for line in log_of(output)] == [5, 6, 8]
    assert run("train", "--resume", output, "--rounds", 12) == 0
    assert [line["round"] for line in log_of(output)] == [5, 6, 10, 12]
    assert_same_run(output, tmp_path / "whole")
    # Replacing it leaves nothing of it.
    assert run("train", *SMALL, "--rounds", 1, "--output", output, "--overwrite") == 0
    assert names(output) == FILES and read(output / "results.json")["rounds"] == 1


@pytest.mark.usefixtures("blank_pictures")
def test_a_refused_resume_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    options = [*SMALL, "--eval-every", 2, "--checkpoint-every", 2, "--output", output]
    assert run("train", *options, "--rounds", 2) == 0

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}

    before = contents()
    assert run("train", "--resume", output, "--rounds", 1) == 2
    assert "num_rounds must lie in [2, inf), got 1" in capsys.readouterr().err.replace("\n", " ")
    assert contents() == before
    other = (
        (output / "config.toml").read_text().replace("learning_rate=0.1)", "learning_rate=0.11)")
    )
    (output / "config.toml").write_text(other)
    before = contents()
    assert run("train", "--resume", output, "--rounds", 3) == 2
    assert "is of a run with another algorithm" in capsys.readouterr().err
    assert contents() == before
    shutil.rmtree(output / "checkpoints")
    before = contents()
    assert run("train", "--resume", output, "--rounds", 3) == 2
    assert "there is no checkpoint in it to continue from" in capsys.readouterr().err
    assert contents() == before


@pytest.mark.usefixtures("blank_pictures")
def test_a_full_disk_is_named_and_what_is_done_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*SMALL, "--rounds", 20, "--eval-every", 3, "--checkpoint-every", 7]
    log, lines = RunFolder.log, []

    def full(self: RunFolder, record: Any) -> None:
        lines.append(record)
        if len(lines) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path / "metrics.jsonl"))
        log(self, record)

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", full)
        assert run("train", *options, "--output", output) == 1
    told = capsys.readouterr()
    assert f"No space left on device: '{output}/metrics.jsonl'. The run ended after 7" in told.err
    assert f"continue: fedjax-sim train --resume {output}" in told.out
    results = read(output / "results.json")
    assert results["rounds"] == 7 and "No space left" in results["error"]
    assert [line["round"] for line in log_of(output)] == [3]


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_is_tracked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, elsewhere = tmp_path / "run", tmp_path / "curves.csv"
    options = [*SMALL, "--rounds", 4, "--eval-every", 2, "--output", output]
    assert run("train", *options, "--track", "parquet", "csv", f"csv:{elsewhere}") == 0
    lines = elsewhere.read_text().splitlines()
    assert (output / "metrics.csv").read_text().splitlines()[-1].partition(",")[0] == "4"
    table = pyarrow.parquet.read_table(output / "metrics.parquet")
    assert table["round"].to_pylist() == [0, 2, 4] and len(lines) == 4
    final = read(output / "results.json")["final"]["test"]["accuracy"]["mean"]
    assert table["test/accuracy"].to_pylist()[-1] == pytest.approx(final)
    assert "track" not in (output / "config.toml").read_text()
    # Replacing the run takes what its trackers wrote in its folder, and no more.
    assert run("train", *options, "--overwrite") == 0
    assert names(output) == FILES and elsewhere.exists()
    assert run("train", *SMALL, "--track", "tensorbord", "--output", tmp_path / "other") == 2
    assert "unknown tracker 'tensorbord'. Did you mean 'tensorboard'?" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("blank_pictures")
def test_patience_ends_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    options = [*SMALL, "--rounds", 50, "--client-optimizer", "sgd(100)", "--eval-every", 1]
    assert run("train", *options, "--patience", 3, "--output", output) == 0
    results = read(output / "results.json")
    assert results["rounds"] == 3
    assert results["stopped_early"] == "test/loss has not improved for 3 rounds"
    assert "stopped early: test/loss has not improved" in capsys.readouterr().out
    assert run("train", *options, "--patience", 3, "--patience-metric", "test/los") == 2
    assert "unknown --patience-metric 'test/los'. Did you mean 'test/loss'?" in (
        capsys.readouterr().err.replace("\n", " ")
    )


def test_training_in_threads_of_an_event_loop(tmp_path: Path, trained: Path) -> None:
    """Two at once, and one in the loop itself: each leaves what it leaves alone."""

    def train(name: str) -> int:
        given = {"num_clients": 8, "cohort_size": 3, "model": "logistic", "rounds": 7}
        given |= {"eval_every": 3, "output": tmp_path / name}
        return train_module.main(options_of.resolve(options_of.from_mapping(given)))

    async def main() -> list[int]:
        threads = [asyncio.to_thread(train, name) for name in ("a", "b")]
        return [*await asyncio.gather(*threads), train("c")]

    assert asyncio.run(main()) == [0, 0, 0]
    for name in "abc":
        assert_same_run(tmp_path / name, trained)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--alpha", "1"], "leave out --partition.alpha. For a run of its own: --config"),
        (["--seed", "1", "--output", "elsewhere"], "leave out --seed, --output"),
        (["--config", "some.toml"], "--config or --resume, not both"),
        (["--checkpoint-every", "None"], "a run that is continued keeps its checkpoints"),
        (["--checkpoint-every", "0"], "--checkpoint-every must be >= 1, got 0"),
    ],
)
def test_what_a_run_cannot_be_continued_with(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    # All that is looked at before the run starts: its folder and its options.
    text = "checkpoint_every = 2\n" + (trained / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(text)
    assert run("train", "--resume", tmp_path, *args) == 2
    assert message in capsys.readouterr().err
    assert names(tmp_path) == {"config.toml"}


def test_what_is_no_run_to_continue(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "--resume", trained) == 2
    assert "no --checkpoint-every" in capsys.readouterr().err
    assert run("train", "--resume", tmp_path) == 2
    assert "no run in it" in capsys.readouterr().err


@pytest.mark.usefixtures("blank_pictures")
def test_files_that_have_clients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their clients are the population without a word, and one may have no test examples."""
    train = ["train", "--model", "logistic", "--sampler", "everyone", "--rounds", 2, "--width", 1]
    runs = []
    plain = [{name.replace("雪", "q"): rows for name, rows in split.items()} for split in PLAIN]
    for name in ("leaf", "parquet"):
        kind, write = WRITERS[name]
        (tmp_path / name).mkdir()
        path = write(tmp_path / name, *plain)
        output = tmp_path / f"{name}-run"
        assert run(*train, "--dataset", f"{kind}:{path}", "--output", output) == 0
        assert "5, by group client: 1 to 5 examples" in capsys.readouterr().out
        runs.append(arrays(output))
        with np.load(output / "params.npz") as params:
            runs[-1] |= dict(params)
    assert runs[0]["client_names"].tolist() == sorted(plain[0])
    assert runs[0]["evaluations/test/accuracy/count"][0].tolist() == [2, 4, 0, 1, 3]
    for other in runs[1:]:
        assert other.keys() == runs[0].keys()
        for key, array in runs[0].items():
            np.testing.assert_array_equal(other[key], array)

    path = f"leaf:{tmp_path / 'leaf'}"
    for wrong, message in (
        (["--dataset", path, "--x-shape", 4, 1], r"cannot become x_shape=\(4, 1\)"),
        (["--dataset", path, "--client-column", "a"], "unknown option of leaf:.* 'client_column'"),
        (["--dataset", path, "--decimal", ","], "unknown option of leaf:.* 'decimal'"),
        (["--dataset", "adult", "--x", "a"], r"--x: for files that have clients .* only, but"),
        (["--dataset", "leave:x"], r"unknown data set 'leave:x'.*leaf:PATH"),
        (["--dataset", "leaf:nowhere"], r"nowhere does not exist"),
    ):
        assert run("train", *wrong, "--output", tmp_path / "other") == 2
        assert re.search(message, capsys.readouterr().err.replace("\n", " ")), message
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("blank_pictures")
def test_a_table_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a spreadsheet of a country with decimal commas writes it, and as Parquet: the same run."""
    rng = np.random.default_rng(0)
    table = pyarrow.table(
        {
            "id": range(90),
            "dose": rng.normal(size=90),
            "given": [datetime.date(2024, 5, int(day)) for day in rng.integers(1, 30, 90)],
            "drug": rng.choice(["a", "b"], 90),
            "hospital": [("$x^$", "[/red]", "_\x1b[31mz")[i % 3] for i in range(90)],
            "outcome": rng.choice(["no", "yes"], 90),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "patients.parquet")
    rows = [
        f"{row['id']};{str(row['dose']).replace('.', ',')};{row['given']:%d.%m.%Y};{row['drug']};"
        f"{row['hospital']};{row['outcome']}"
        for row in table.to_pylist()
    ]
    text = "\n".join([";".join(table.column_names), *rows])
    (tmp_path / "[bold]$p.csv").write_bytes(text.encode("utf-16"))

    args = ["train", "--partition", "by_group", "--group", "hospital", "--model", "logistic"]
    args += ["--sampler", "everyone", "--rounds", 2, "--width", 1]
    csv = ["--dataset", tmp_path / "[bold]$p.csv", "--decimal", ",", "--date-format", "%d.%m.%Y"]
    parquet = ["--dataset", tmp_path / "patients.parquet"]
    use = ["--label", "outcome", "--ignore-columns", "id"]
    assert run(*args, *csv, *use, "--output", tmp_path / "csv") == 0
    assert run(*args, *parquet, *use, "--output", tmp_path / "parquet") == 0
    out = capsys.readouterr().out  # of names as they are, and nothing that acts on a terminal
    assert "[bold]$p: 72 training" in out and "\x1b" not in out
    found = arrays(tmp_path / "csv")
    assert found["client_names"].tolist() == ["$x^$", "[/red]", "_\x1b[31mz"]
    assert found["client_sizes"].sum() == 72  # a fifth is for tests
    for file in ("params.npz", "per_client.npz"):
        with np.load(tmp_path / "csv" / file) as a, np.load(tmp_path / "parquet" / file) as b:
            assert a.files == b.files
            for key in a.files:
                np.testing.assert_array_equal(a[key], b[key])
            if file == "params.npz":
                assert a["kernel"].shape == (4, 2)  # dose, given [days], drug=a, drug=b
    config = options_of.from_file(tmp_path / "csv" / "config.toml")
    again = options_of.resolve(config).plain.table
    assert (again.decimal, again.ignore_columns, again.scaling) == (",", ("id",), None)

    other = ["--output", tmp_path / "other"]
    for wrong, message in (
        ([*args, *csv], "--label names the column"),
        ([*args, *csv, "--label", "outcom"], "Did you mean 'outcome'"),
        (
            [*args, *csv, "--label", "outcome"],
            "column 'id' .* List it in --ignore-columns to leave",
        ),
        (
            [*args, *parquet, *use, "--task", "regression"],
            "column 'outcome' must hold quantities, but",
        ),
        (["train", "--label", "outcome"], "belongs to it alone"),
        (["train", "--decimal", ","], "--decimal: for a table of your own only"),
        (
            ["train", "--dataset", "none.csv", "--label", "x"],
            "--dataset: there is no file none.csv",
        ),
    ):
        assert run(*wrong, *other) == 2
        assert re.search(message, capsys.readouterr().err), message
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("adult", "adult"),
        ("tfds:svhn_cropped", "tfds-svhn_cropped"),
        ("C:\\d\\my table.csv", "my-table.csv"),
        ("../other/patients.csv.gz", "patients.csv.gz"),
    ],
)
def test_the_default_folder_is_named_by_the_data_set(dataset: str, name: str) -> None:
    label = {"label": "y"} if options_of.is_table(dataset) else {}
    options = options_of.resolve(options_of.from_mapping({"dataset": dataset, **label}))
    assert re.fullmatch(rf"{re.escape(name)}-fedavg-\d{{8}}-\d{{6}}", default_output(options).name)
    assert default_output(options).parent == Path("runs")


def test_ctrl_c_from_outside(tmp_path: Path) -> None:
    output = tmp_path / "run"
    args = ["train", *SMALL, "--rounds", 10**7, "--eval-every", 10, "--width", 1]
    args += ["--output", output]
    process = in_a_new_process(*args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130, text
    assert "Traceback" not in text and "interrupted after" in text
    results = read(output / "results.json")
    assert results["interrupted"] is True and results["rounds"] >= 10
    assert len(arrays(output)["rounds/status"]) == results["rounds"]


@pytest.mark.usefixtures("blank_pictures")
def test_impatience_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(self: RunFolder, *args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    save_params = RunFolder.save_params

    def save_impatiently(self: RunFolder, *args: Any) -> None:
        impatient(self)
        save_params(self, *args)

    monkeypatch.setattr(RunFolder, "log", impatient)
    monkeypatch.setattr(RunFolder, "save_params", save_impatiently)
    assert run("train", *SMALL, "--rounds", 100, "--output", tmp_path / "run") == 130
    assert names(tmp_path / "run") == FILES - {"metrics.jsonl"}
    assert 10 <= read(tmp_path / "run" / "results.json")["rounds"] <= 20


@pytest.mark.usefixtures("blank_pictures")
def test_an_interrupt_after_the_last_round_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def bar() -> Iterator[Callable]:
        yield lambda now: None
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(simulate, "progress_bar", bar)
    assert run("train", *SMALL, "--rounds", 1, "--output", tmp_path / "run") == 130
    assert names(tmp_path / "run") == FILES


def test_an_interrupt_before_the_first_round_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets, "load", lambda *args: signal.raise_signal(signal.SIGINT))
    # A shell starts what runs in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run("train") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    told = "interrupted at once; only what had been written before is kept."
    assert capsys.readouterr().err == f"error: {told}\n"


@pytest.mark.usefixtures("blank_pictures")
def test_a_diverged_run_keeps_what_is_done_and_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    args = ["train", *SMALL, "--client-optimizer", "sgd(1e38)", "--rounds", 20, "--eval-every", 2]
    assert run(*args, "--output", output) == 1
    error = capsys.readouterr().err
    assert "round 0, clients [" in error and "not finite" in error and "Traceback" not in error
    assert "--on-error continue" in error and str(output) in error
    assert names(output) >= FILES - {"client_accuracy.png"}
    results = read(output / "results.json")
    # The segment after the failed one was under way.
    assert results["error"] is not None and results["rounds"] == 4
    assert results["status"] == ["non_finite_update", "empty_cohort"]
    first = json.loads((output / "metrics.jsonl").read_text().splitlines()[0])
    assert first["status"] == ["non_finite_update", "empty_cohort"]
    continued = [*args, "--on-error", "continue", "--output", output, "--overwrite"]
    assert run(*continued) == 0
    assert read(output / "results.json")["rounds"] == 20


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--dataset", "fashion_smal"], "Did you mean 'fashion_small'"),
        (["--dataset", "mnist", "--folder", "nowhere"], "nowhere does not exist"),
        (["--num-clients", "3000"], "num_examples=2500 are too few for num_clients=3000"),
        (["--num-clients", "0"], "partition: num_clients must be >= 1, got 0"),
        (["--alpha", "-1"], "partition: alpha must lie in (0, "),
        (
            ["--partition", "iid", "--alpha", "1"],
            "--alpha belongs to what is not chosen",
        ),
        (
            ["--partition", "by_group"],
            "--num-clients belongs to what is not chosen",
        ),
        (["--partition", "by_group", "--num-clients", "None"], "fashion_small has no groups"),
        (["--model", "char_lstm"], "inputs must be tokens"),
        (["--batch-size", "0"], "algorithm.batching: batch_size must be >= 1, got 0"),
        (
            ["--server.learning-rate", "nan"],
            "must be a number or a schedule, got 'nan'",
        ),
        (
            ["--server.learning-rate", "1e400"],
            "--server.learning-rate must lie in (-inf, inf), got inf",
        ),
        (
            ["--algorithm", "fedavgm", "--server-momentum", "1"],
            "algorithm: server_momentum must lie in [0, 1), got 1",
        ),
        (["--aggregator", "krum(num_byzantine=1)"], "num_byzantine must be <= 0 for krum in a coh"),
        (["--cohort-size", "9"], "cohort_size must be <= 8, the number of clients, got 9"),
        (["--cohort-size", "0"], "algorithm.sampler: cohort_size must be >= 1, got 0"),
        (["--width", "0"], "algorithm: width must be >= 1, got 0"),
        (["--rounds", "0"], "--rounds must be >= 1, got 0"),
        (["--eval-every", "0"], "--eval-every must be >= 1, got 0"),
        (["--seed", "-1"], "--seed must be >= 0, got -1"),
        (["--num-epochs", "0"], "num_epochs must lie in (0, inf), got 0"),
        (["--num-epochs", "1", "--num-steps", "1"], "not both"),
        (["--config", "nowhere.toml"], "no configuration file nowhere.toml"),
        (["--num-steps", "4294967296"], "--num-steps must be <= 4294967295, got 4294967296"),
        (["--rounds", "4294967296"], "--rounds must be <= 2147483647, got 4294967296"),
        (["--num-epochs", "1e308"], "got 1e+308, which is infinite in float32"),
        (["--num-epochs", "1e-320"], "got 1e-320, which is 0 in float32"),
        (
            ["--model", "mlp", "--hidden", "3", "9" * 23],
            "must be <= 4294967295, got 9999999",
        ),
        (["--algorithm", "fedprox", "--mu", "-1"], "algorithm: mu must lie in [0, "),
    ],
)
def test_wrong_input_is_one_line_and_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert run("train", *SMALL, "--output", tmp_path / "run", *args) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err
    assert "Traceback" not in captured.err and "JAX_TRACEBACK" not in captured.err
    assert not (tmp_path / "run").exists()


def test_debug_goes_to_the_engine_and_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: Any, debug: bool, **options: Any) -> None:
        raise RuntimeError(f"debug is {debug}")

    monkeypatch.setattr(simulate, "run", stop)
    assert run("train", *SMALL, "--output", tmp_path / "a") == 1
    assert capsys.readouterr().err == "error: debug is False\n"
    with pytest.raises(RuntimeError, match="debug is True"):
        cli.main(["train", *SMALL, "--debug", "--output", str(tmp_path / "b")])
    with pytest.raises(ValueError, match="batch_size must be >= 1"):
        cli.main(["train", "--batch-size", "0", "--debug", "--output", str(tmp_path / "c")])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--alhpa", "0.3"], "unknown option '--alhpa'. Did you mean '--alpha'?"),
        (["--num_clients", "x"], "--num-clients must be an integer, got 'x'."),
        (
            ["--partition", "dirichlett"],
            "no partition 'dirichlett'. Did you mean 'dirichlet'?",
        ),
        (["--algorithm", "fedporx"], "there is no algorithm 'fedporx'. Did you mean 'fedprox'?"),
        (["--model=mpl"], "there is no model 'mpl'. Did you mean 'mlp'?"),
        (["--rounds", "ten"], "--rounds must be an integer, got 'ten'."),
        (["--rounds", "1.5"], "--rounds must be an integer, got '1.5'."),
        (["--alpha", "abc"], "--alpha must be a number, got 'abc'."),
        (["--alpha"], "--alpha needs a value after it."),
        (["--alpha", "--rounds", "3"], "--alpha needs a value after it."),
        (["--width", "wide"], """--width must be an integer or "auto", got 'wide'."""),
        (["--hidden", "3", "x"], "--hidden must be an integer, got 'x'."),
        (["--overwrite", "yes"], "--overwrite takes no value, got 'yes'."),
        (["runs/first"], "unexpected argument 'runs/first': options begin with --"),
        (["--dataset", "nowhere.csv", "--label", "y"], "--dataset"),
        (["--dataset", "\x1b[31mred"], r"unknown data set '\x1b[31mred'"),
        (["--group", "[/red]", "--partition", "iid"], "--group belongs to --partition by_group"),
    ],
)
def test_wrong_options_are_explained_in_one_line(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert run("train", *args) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ")
    assert error.count("\n") == 1 and error.strip().isprintable()


def test_a_picture_that_fails_costs_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise ValueError("there is no ink")

    monkeypatch.setattr(plots, "label_counts", broken)
    assert run("train", *SMALL, "--rounds", "1", "--output", tmp_path / "run") == 2
    assert "there is no ink" in capsys.readouterr().err
    assert names(tmp_path / "run") >= FILES - PICTURES - {"report.html"}  # which has the pictures


@pytest.mark.parametrize("command", [("train",), ("reproduce", "agnostic-adult")], ids=" ".join)
def test_compiled_programs_are_kept_unless_told_otherwise(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    adult = importlib.import_module(experiments.EXPERIMENTS["agnostic-adult"])
    monkeypatch.setattr(train_module, "main", lambda options: 0)
    monkeypatch.setattr(adult, "main", lambda options: None)
    monkeypatch.setattr(devices, "use_compilation_cache", lambda: calls.append("kept"))
    assert run(*command, "--no-cache") == 0 and calls == []
    assert run(*command) == 0 and calls == ["kept"]

    def unwritable() -> None:
        raise PermissionError("the home is read-only")

    monkeypatch.setattr(devices, "use_compilation_cache", unwritable)
    assert run(*command) == 0


def test_options_of_an_experiment_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("reproduce", "agnostic-adult", "--num-seed", 3) == 2
    assert "Did you mean '--num-seeds'? `fedjax-sim reproduce agn" in capsys.readouterr().err
    assert run("reproduce", "agnostic-adult", "--num-seeds", "few") == 2
    assert "--num-seeds must be an integer, got 'few'." in capsys.readouterr().err


# Commands


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        ([], 0, ["train", "reproduce", "datasets", "examples", "Ctrl-C"]),
        (["--help"], 0, ["usage: fedjax-sim COMMAND"]),
        (["--version"], 0, ["fedjax-sim 0."]),
        (["train", "--help"], 0, ["--alpha", "concentration", "Exit status", "scaffold"]),
        (["train", "--help", "--algorithm", "feddyn"], 0, ["--algorithm.alpha", "in the paper"]),
        (["train", "--help", "--algorithm", "feddin"], 2, ["Did you mean 'feddyn'?"]),
        (["train", "--alhpa", "1"], 2, ["--alpha"]),
        (["trian"], 2, ["Did you mean 'train'? Choose one of: train, sweep, report,"]),
        (["reproduce", "agnostic-adlt"], 2, ["Did you mean 'agnostic-adult'?"]),
        (["compare", "--help"], 0, ["usage: fedjax-sim compare RUN..."]),
        (["datasets", "--help"], 0, ["usage: fedjax-sim datasets"]),
    ],
)
def test_help_and_typing_errors_do_not_wait_for_jax(
    args: list[str], status: int, words: list[str]
) -> None:
    program = (
        "import sys\nfrom fedjax_sim.cli.main import main\n"
        "try:\n    main()\nfinally:\n    print('slow:', sorted({'jax', 'numpy'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    text = done.stdout + done.stderr
    assert "slow: []" in text and all(word in text for word in words), text


def test_a_closed_pipe_is_no_error() -> None:
    process = in_a_new_process(*("train", "--help"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_datasets_lists_every_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("datasets") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in datasets.DATASETS)
    assert all(word in text for word in ("CC BY 4.0", "MIT", "comes with", "tfds:NAME"))


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "an_experiment.py").write_text(
        '"""Shows something.\n\nMore about it.\n"""\n'
        "import dataclasses\n"
        "from pathlib import Path\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Options:\n"
        '    """Options.\n\n    Attributes:\n        quick: Fewer rounds.\n    """\n'
        "    output: Path = Path('runs/it')\n"
        "    overwrite: bool = False\n"
        "    quick: bool = False\n"
        "def main(options):\n"
        "    if options.quick:\n"
        "        raise ValueError('quick is [not] possible')\n"
        "    print('ran', options)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"something": "an_experiment"})
    return "something"


def test_reproduce_runs_an_experiment(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("reproduce", "--help") == 0
    assert "something\n      Shows something.\n" in capsys.readouterr().out
    assert run("reproduce") == 2
    assert run("reproduce", experiment, "--help") == 0
    text = capsys.readouterr().out
    assert "More about it." in text and "Fewer rounds." in text
    assert run("reproduce", experiment, "--output", "there") == 0
    assert "ran Options(output=PosixPath('there'), overwrite=False" in capsys.readouterr().out
    assert run("reproduce", experiment, "--quick") == 2
    assert capsys.readouterr().err == "error: quick is [not] possible\n"
    with pytest.raises(ValueError, match="possible"):
        cli.main(["reproduce", experiment, "--quick", "--debug"])


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_every_experiment_keeps_the_contract(name: str) -> None:
    module = importlib.import_module(experiments.EXPERIMENTS[name])
    assert {"output", "overwrite"} <= {f.name for f in dataclasses.fields(module.Options)}
    assert callable(module.main) and module.__doc__
    assert run("reproduce", name, "--help") == 0


def houses(path: Path, *, regions: int = 4) -> None:
    """Prices that are linear in two features, in a table of 400 rows; the last region is small."""
    rng = np.random.default_rng(0)
    area, age = rng.uniform(40, 200, 400), rng.uniform(0, 100, 400)
    price = 50_000.5 + 2_500 * area - 700 * age + rng.normal(0, 5_000, 400)
    region = np.where(np.arange(400) == 0, regions - 1, rng.integers(0, regions - 1, 400))
    rows = zip(area.round(2), age.round(2), price.round(2), region, strict=True)
    lines = ["area,age,price,region", *(f"{a},{b},{p},r{r}" for a, b, p, r in rows)]
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.usefixtures("blank_pictures")
def test_a_regression_from_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    houses(tmp_path / "price.csv")
    args = [
        *("train", "--dataset", tmp_path / "price.csv", "--label", "price"),
        *("--partition", "dirichlet", "--num-clients", 5, "--rounds", 30, "--model", "logistic"),
        *("--client-optimizer", "sgd(0.3)", "--eval-every", 30, "--output", tmp_path / "run"),
    ]
    assert run(*args) == 0
    shown = capsys.readouterr().out
    assert "1 target from" in shown and "mean_absolute_error" in shown
    final = read(tmp_path / "run" / "results.json")["final"]["test"]
    # The noise has a deviation of 5,000: its mean size is 5,000 sqrt(2 / pi) = 3,989.
    assert 3_000 < final["mean_absolute_error"]["mean"] < 6_000
    assert 9e6 < final["mean_squared_error"]["mean"] < 60e6
    assert final["r2"]["mean"] > 0.95
    results = read(tmp_path / "run" / "results.json")
    with np.load(tmp_path / "run" / "params.npz") as file:
        params = dict(file)
    (mean,), (std,) = results["target_mean"], results["target_std"]
    houses_of = datasets.from_table(tmp_path / "price.csv", label_column="price", seed=0)
    outputs = houses_of.test["x"] @ params["kernel"] + params["bias"]
    errors = np.abs(mean + std * outputs[:, 0] - houses_of.test["y"])
    np.testing.assert_allclose(errors.mean(), final["mean_absolute_error"]["mean"], rtol=1e-4)
    assert "client_mean_absolute_error.png" in names(tmp_path / "run")
    assert "label_counts.png" not in names(tmp_path / "run")
    population = deal(dataset=str(tmp_path / "price.csv"), label="price", partition="shards")
    means = [population.train.client(i)["y"].mean() for i in range(5)]
    assert np.std(means) > 20_000  # clients differ in their targets


@pytest.mark.usefixtures("blank_pictures")
def test_a_client_without_test_rows_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    houses(tmp_path / "price.csv")
    args = [
        *("train", "--dataset", tmp_path / "price.csv", "--label", "price", "--group", "region"),
        *("--partition", "by_group", "--rounds", 1, "--model", "logistic", "--seed", 1),
        *("--output", tmp_path / "run"),
    ]
    assert run(*args) == 0
    saved = arrays(tmp_path / "run")
    assert saved["client_names"].tolist() == ["r0", "r1", "r2", "r3"]
    count = saved["evaluations/test/mean_absolute_error/count"][-1]
    assert count[3] == 0 and (count[:3] > 0).all() and saved["client_sizes"][3] == 1
    assert "pooled" not in capsys.readouterr().out

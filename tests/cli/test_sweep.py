"""`fedjax-sim sweep`: what it leaves, how it goes on, and what it refuses."""

import csv
import json
import shutil
import signal

import numpy as np
import pytest

from fedjax_sim.cli import main as cli
from fedjax_sim.cli import sweep
from pages import Page

SMALL = ["--num-clients", "8", "--cohort-size", "5", "--model", "logistic", "--rounds", "2"]
FILES = {"config.json", "config.toml", "per_client.npz", "report.html", "results.json"}
OVER = ["--over", "seed=0..1", "--over", "aggregator=mean,coordinate_median"]


def run(*args):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["sweep", *map(str, args)])
    return stopped.value.code


def files(folder):
    return {path.relative_to(folder): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    output = tmp_path_factory.mktemp("sweeps") / "first"
    assert run(*SMALL, *OVER, "--output", output) == 0
    return output


def test_a_sweep_leaves_a_folder_a_run_and_a_page(swept):
    runs = sorted(path.name for path in (swept / "runs").iterdir())
    assert runs == [
        "0000-seed=0-aggregator=mean",
        "0001-seed=0-aggregator=coordinate_median",
        "0002-seed=1-aggregator=mean",
        "0003-seed=1-aggregator=coordinate_median",
    ]
    for name in runs:
        found = {path.name for path in (swept / "runs" / name).iterdir()}
        assert found == FILES
        Page((swept / "runs" / name / "report.html").read_text(encoding="utf-8"))
        assert {*json.loads((swept / "runs" / name / "config.json").read_text())["files"]} == FILES
    page = (swept / "report.html").read_text(encoding="utf-8")
    Page(page)
    assert "4 runs in 2 programs of rounds." in page and "coordinate_median" in page
    rows = [*csv.DictReader((swept / "results.csv").read_text().splitlines())]
    means = {row["algorithm.aggregator"]: float(row["mean"]) for row in rows
             if (row["metric"], row["statistic"]) == ("test/accuracy", "mean")}  # fmt: skip
    for i, rule in enumerate(("mean", "coordinate_median")):
        each = [
            json.loads((swept / "runs" / runs[i + k] / "results.json").read_text())["final"]
            for k in (0, 2)
        ]
        mean = np.mean([final["test"]["accuracy"]["mean"] for final in each])
        assert means[rule] == pytest.approx(mean, rel=1e-6)
    assert "toprule" in (swept / "results.tex").read_text()
    assert "| aggregator | runs |" in (swept / "results.md").read_text()


def same_page(first, second):
    for name in ("report.html", "results.csv", "results.md", "results.tex"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_killed_sweep_goes_on_and_the_page_is_the_same(swept, tmp_path, capsys):
    output = tmp_path / "killed"
    shutil.copytree(swept, output)
    # As a process leaves it that is killed while a program's second run is written.
    for name in ("report.html", "results.csv", "results.md", "results.tex"):
        (output / name).unlink()
    (output / "runs" / "0002-seed=1-aggregator=mean" / "results.json").unlink()
    shutil.rmtree(output / "runs" / "0001-seed=0-aggregator=coordinate_median")
    untouched = tmp_path / "whole"
    shutil.copytree(swept, untouched)
    assert run("--resume", output) == 0
    same_page(output, swept)
    before = files(untouched / "runs")
    assert run("--resume", untouched) == 0  # nothing is done again
    assert files(untouched / "runs") == before
    same_page(untouched, swept)


def test_ctrl_c_leaves_what_is_done(tmp_path, monkeypatch, capsys, swept):
    output = tmp_path / "stopped"
    write = sweep._write

    def interrupting(path, experiment, point, result):
        write(path, experiment, point, result)
        if point.number == 0:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sweep, "WORKERS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "_write", interrupting)
        assert run(*SMALL, *OVER, "--output", output) == 130
    assert f"continue: fedjax-sim sweep --resume {output}" in capsys.readouterr().out
    assert not (output / "report.html").exists()
    assert run("--resume", output) == 0
    same_page(output, swept)


@pytest.mark.usefixtures("blank_pictures")
def test_a_failed_program_costs_no_other(tmp_path, capsys):
    output = tmp_path / "sweep"
    over = ["--over", "aggregator=krum(num_byzantine=9),mean"]
    assert run(*SMALL, *over, "--output", output) == 1
    told = capsys.readouterr().out
    assert "failed: aggregator krum(num_byzantine=9): num_byzantine must be <= 1 for krum" in told
    assert "1 runs, 1 ways" in (output / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("blank_pictures")
def test_runs_that_do_not_fit_are_dealt_out(tmp_path, swept):
    output = tmp_path / "sweep"
    assert run(*SMALL, *OVER, "--runs-at-once", 1, "--output", output) == 0
    for name in (path.name for path in (swept / "runs").iterdir()):
        one, other = (
            json.loads((folder / "runs" / name / "results.json").read_text())["final"]
            for folder in (output, swept)
        )
        assert one["test"]["loss"]["mean"] == pytest.approx(other["test"]["loss"]["mean"], rel=1e-4)


@pytest.mark.usefixtures("blank_pictures")
def test_a_file_gives_options_too(tmp_path):
    file = tmp_path / "base.toml"
    file.write_text(
        'num_clients = 8\nmodel = "logistic"\nrounds = 1\nsampler = "everyone"\n'
        '[algorithm.client_optimizer]\npart = "sgd"\nlearning_rate = 0.2\n'
    )
    output = tmp_path / "sweep"
    over = ["--over", "client_optimizer.momentum=0.5,0.9"]
    assert run(file, *over, "--output", output, "--rounds", 2) == 0
    options = json.loads(next((output / "runs").glob("0001*/config.json")).read_text())["options"]
    assert options["algorithm.client_optimizer.momentum"] == 0.9
    assert options["algorithm.client_optimizer.learning_rate"] == 0.2 and options["rounds"] == 2
    assert run(file, *over, "--output", output) == 2  # nothing is overwritten unasked
    assert run(file, *over, "--output", output, "--overwrite") == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rounds", "3"], "a sweep needs --over"),
        (["--over", "seed=0", "--patience", "3"], "--patience is not an option of a sweep"),
        (["--over", "seed=0", "--track", "csv"], "--track is not an option of a sweep"),
        (["--over", "seed=0", "--on-error", "raise"], "--on-error is not an option of a sweep"),
        (["--over", "sede=0"], "--over: unknown option 'sede'. Did you mean 'seed'?"),
        (["--over", "seed=0", "--alhpa", "1"], "Did you mean '--alpha'?"),
        (["--over", "seed=0", "--runs-at-once", "0"], "--runs-at-once must be >= 1, got 0"),
        (["--over", "batch_size=0"], "batch_size must be >= 1, got 0"),
        (["nowhere.toml", "--over", "seed=0"], "no configuration file nowhere.toml"),
        (["--resume", "nowhere"], "there is no sweep in it"),
        (["--resume", "nowhere", "--over", "seed=0"], "give the folder alone"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*args) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert [*tmp_path.iterdir()] == []


def test_a_run_of_a_sweep_gets_its_page_when_asked_for(swept, tmp_path, capsys):
    run_folder = tmp_path / "run"
    shutil.copytree(swept / "runs" / "0000-seed=0-aggregator=mean", run_folder)
    for args, status in (([run_folder], 0), ([tmp_path], 2), (["--all"], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["report", *map(str, args)])
        assert stopped.value.code == status
    Page((run_folder / "report.html").read_text(encoding="utf-8"))


def test_help(capsys):
    assert run("--help") == 0
    assert "--over OPTION=VALUE,VALUE" in capsys.readouterr().out

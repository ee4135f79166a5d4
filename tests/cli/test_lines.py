"""The experiments that the page on the command line shows in one line each, all of them run."""

import json
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest

from documentation import ROOT, commands, section, write_files
from fedjax_sim.cli import main as cli

PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
LINES = [*commands(section(PAGE, "In one line each"))]
SPEECHES = (b"To be, or not to be", b"Words, words, words.", b"O!")


class Run(NamedTuple):
    """What a line left: its options, results, arrays per client and parameters."""

    options: dict[str, Any]
    results: dict[str, Any]
    arrays: dict[str, np.ndarray]
    params: dict[str, np.ndarray]


def krum_under_alie(run: Run) -> None:
    clients, malicious = 20, 4
    assert run.options["algorithm.aggregator.num_byzantine"] == malicious
    shares = run.arrays["rounds/aggregator/shares"]
    np.testing.assert_array_equal(np.sort(shares)[:, -2:], [[0, 1]] * 2)  # one was chosen
    # The paper's z: so many honest clients as make a majority are beyond it.
    honest, needed = clients - malicious, clients // 2 + 1 - malicious
    z = statistics.NormalDist().inv_cdf((honest - needed) / honest)
    np.testing.assert_allclose(run.arrays["rounds/attack/strength"], [z] * 2, rtol=1e-5)


def momentum_in_buckets(run: Run) -> None:
    assert run.options["algorithm.rule"] == "worker_momentum"
    assert run.options["algorithm.rule.rule"] == "local_sgd"
    assert run.arrays["rounds/cohort/ids"].shape == (2, 10)
    shares = run.arrays["rounds/aggregator/shares"]
    assert shares.shape == (2, 5) and (shares > 0).all()  # two clients a bucket
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)


def nobody_weighs_more_than_a_quarter(run: Run) -> None:
    mixture = run.arrays["rounds/server/mixture"]
    assert run.options["algorithm.ascent.projection.high"] == mixture.max() == 0.25
    np.testing.assert_allclose(mixture.sum(axis=1), 1, rtol=1e-6)
    assert np.ptp(mixture[-1]) > 0.05


def roles_of_plays(run: Run) -> None:
    assert run.arrays["client_names"].tolist() == ["GHOST", "HAMLET", "OPHELIA"]
    assert run.options["algorithm.sampler.cohort_size"] == run.results["num_clients"] == 3
    characters = [sum(len(line) + 2 for line in role(i)) - 1 for i in range(3)]
    assert run.arrays["evaluations/test/loss/count"][-1].tolist() == characters


def a_network_that_grows(run: Run) -> None:
    assert run.params["dense_0/kernel"].shape == (784, 60)
    neurons = run.arrays["rounds/server/num_neurons"]
    assert ((neurons >= 20) & (neurons <= 60)).all()


def models_of_ones_own(run: Run) -> None:
    for split in ("train", "test"):
        shared, own = (run.results["final"][split][name] for name in ("loss", "personal loss"))
        assert own["mean"] != shared["mean"] and 0 < own["worst"] < np.inf


def the_network_of_the_file(run: Run) -> None:
    assert run.options["model"] == "mine.py:Net"
    shapes = {name: values.shape for name, values in run.params.items()}
    assert shapes["params/Dense_0/kernel"] == (784, 32)
    assert shapes["params/Dense_1/bias"] == (10,)


def steps_of_adam(run: Run) -> None:
    assert run.options["algorithm.client_optimizer"] == "over_rounds"
    assert (
        run.options["algorithm.client_optimizer.learning_rate"]
        == "cosine_decay_schedule(0.01, 100)"
    )
    # No coordinate moves farther in a step than by the rate and what Adam's two means differ by.
    most = 0.01 * 3.2 * np.sqrt(run.results["num_parameters"])
    norms, steps = (run.arrays[f"rounds/cohort/{name}"] for name in ("update_norm", "num_steps"))
    assert ((norms > 0) & (norms < most * steps)).all()


# By what a line has and no other has.
TRUE: dict[str, Callable[[Run], None]] = {
    "little_is_enough": krum_under_alie,
    "worker_momentum": momentum_in_buckets,
    "agnostic": nobody_weighs_more_than_a_quarter,
    "shakespeare": roles_of_plays,
    "pfnm": a_network_that_grows,
    "ditto": models_of_ones_own,
    "mine.py:Net": the_network_of_the_file,
    "over_rounds": steps_of_adam,
}


def role(number: int) -> list[bytes]:
    return [*SPEECHES[:1], *SPEECHES[number:]]


def write_plays(folder: Path) -> None:
    folder.mkdir()
    for split in ("train", "test"):
        with h5py.File(folder / f"shakespeare_{split}.h5", "w") as file:
            for i, name in enumerate(("GHOST", "HAMLET", "OPHELIA")):
                file[f"examples/{name}/snippets"] = role(i)


def test_every_line_is_looked_at() -> None:
    looked_at = [[word for word in TRUE if word in line] for line in LINES]
    assert sorted(looked_at) == sorted([word] for word in TRUE)


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("line", LINES)
def test_a_line_does_what_it_says(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(PAGE, tmp_path)
    write_plays(tmp_path / "tff")
    with pytest.raises(SystemExit) as end:
        cli.main([*shlex.split(line)[1:], "--rounds", "2", "--output", "run"])
    assert end.value.code == 0
    options, results = (
        json.loads((tmp_path / "run" / name).read_text(encoding="utf-8"))
        for name in ("config.json", "results.json")
    )
    assert results["rounds"] == 2 and results["error"] is None and results["status"] == []
    arrays, params = (
        dict(np.load(tmp_path / "run" / name)) for name in ("per_client.npz", "params.npz")
    )
    assert np.isfinite(arrays["rounds/cohort/loss"]).all()
    assert all(np.isfinite(values).all() for values in params.values())
    (look,) = [look for word, look in TRUE.items() if word in line]
    look(Run(options["options"], results, arrays, params))


def refusals() -> list[tuple[str, str]]:
    """(command, message) for every mistake that the page shows."""
    found: list[tuple[str, str]] = []
    for line in section(PAGE, "What is refused").splitlines():
        if line.startswith("$ fedjax-sim"):
            found.append((line.removeprefix("$ "), ""))
        elif found and not line.startswith("```"):
            found[-1] = (found[-1][0], " ".join(f"{found[-1][1]} {line}".split()))
    return found


@pytest.mark.parametrize(("command", "message"), refusals())
def test_a_mistake_is_told_as_the_page_says(
    command: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(PAGE, tmp_path)
    before = [*tmp_path.iterdir()]
    with pytest.raises(SystemExit) as end:
        cli.main(shlex.split(command)[1:])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"{message}\n"
    assert [*tmp_path.iterdir()] == before

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedjax_sim import metrics
from fedjax_sim.analysis import recorded, report
from fedjax_sim.analysis.recorded import Recorded
from fedjax_sim.analysis.runfolder import RunFolder
from fedjax_sim.base import Mean, Status
from pages import Page

HOSTILE = "<script>alert('x')</script> $x^$ & \"q\" 日本 \x1b[31m"


def run_folder(
    path: Path, *, num_clients: int = 12, names: list[str] | None = None, **changes: Any
) -> Path:
    """A run with values of its own for every client; the first has few rows, the last none."""
    rng = np.random.default_rng(3)
    counts = rng.integers(20, 90, num_clients).astype(float)
    counts[0], counts[-1] = 4, 0
    right = np.floor(counts * rng.uniform(0.5, 0.9, (2, num_clients)))
    right[-1, 0] = 0
    count = np.broadcast_to(counts, right.shape)
    values = {
        "test": {"accuracy": Mean(right, count), "loss": Mean(3 * count - right, count)},
        "train": {"accuracy": Mean(right / 2, count)},
    }
    summaries = {
        split: {
            name: metrics.summarize(mean, higher_is_better=name == "accuracy")
            for name, mean in by_name.items()
        }
        for split, by_name in values.items()
    }
    options = {"dataset": "folder/patients.csv", "algorithm": "fedavg", "seed": 4, "rounds": 8}
    folder = RunFolder(path, options | changes.pop("options", {}))
    cohort = {"ids": np.array([[0, 1], [1, 2]]), "weights": np.array([[1.0, 1.0], [1.0, 0.0]])}
    folder.save_arrays(
        "per_client.npz",
        {
            "client_names": None if names is None else np.array(names),
            "client_sizes": np.arange(num_clients) + 30,
            "class_names": np.array(["no", HOSTILE]),
            "label_counts": rng.integers(0, 9, (num_clients, 2)),
            "rounds": {"status": changes.pop("status", np.zeros(8, np.int32)), "cohort": cohort},
            "evaluations": {"rounds": np.array([0, 8]), **values},
        },
    )
    results = {
        "rounds": 8,
        "final": {
            split: {name: {k: v[-1] for k, v in each.items()} for name, each in by_name.items()}
            for split, by_name in summaries.items()
        },
        "evaluations": {"rounds": [0, 8], **summaries},
        "num_clients": num_clients,
        "num_test_clients": num_clients,
        "num_parameters": 7850,
        "bytes_down": 31_400_000.0,
        "bytes_up": 1024.0,
        "seconds": 2.5,
    }
    folder.save_json("results.json", results | changes)
    return folder.path


def test_a_page_says_what_results_and_arrays_say(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run")
    text = report.of_run(path)
    page = Page(text)
    assert len(text) < 300_000
    final = json.loads((path / "results.json").read_text())["final"]
    table = {row[0]: row[1:] for row in page.rows if row[0].startswith(("test/", "train/"))}
    assert table.keys() == {"test/accuracy", "test/loss", "train/accuracy"}
    for name, cells in table.items():
        split, metric = name.split("/")
        summary = final[split][metric]
        assert cells[0] == f"{summary['mean']:.3f}"
        assert cells[1].rstrip("*") == f"{summary['worst']:.3f}"
        assert cells[6] == f"{summary['variance']:.3f}"
    assert "fedavg on patients.csv" in page.words
    assert "sent to clients31.4 MB" in "".join(page.text)
    assert "12: 30 to 41 training examples, median 36" in page.words


def test_clients_stand_in_their_order_the_worst_first(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run", names=[f"site {i}" for i in range(12)])
    run = Recorded(path)
    clients = run.clients("test/accuracy")
    assert clients is not None
    order = [i for i in np.argsort(clients.values[:-1], kind="stable")]
    page = Page(report.of_run(path))
    heads = [i for i, row in enumerate(page.rows) if row[0] == "client"]
    worst = page.rows[heads[0] + 1 : heads[0] + 11]
    everyone = page.rows[heads[1] + 1 : heads[1] + 12]
    assert page.rows[heads[0]][:5] == [
        *("client", "training examples", "test rows", "took part", "test/accuracy"),
    ]
    assert [row[0] for row in worst] == [f"site {i}" for i in order[:10]]
    assert [row[0] for row in everyone] == [f"site {i}" for i in order]  # the last has no rows
    assert worst[0][:5] == ["site 0", "30", "4*", "1", "0.000"]
    numbers = {row[0]: row for row in everyone}
    assert [numbers[f"site {i}"][3] for i in range(4)] == ["1", "2", "0", "0"]
    second = order[1]
    assert (
        "Fewer than 10 rows there: 1 of 11 clients, so that the worst may be worst by accident. "
        f"The worst with 10 or more is client site {second}: {clients.values[second]:.3f} on "
        f"{clients.rows[second]:.0f} rows. No rows there, and not listed: 1 clients."
    ) in page.words


def test_of_a_loss_the_highest_is_the_worst(tmp_path: Path) -> None:
    run = Recorded(run_folder(tmp_path / "run"))
    assert run.higher_is_better("test/accuracy") and not run.higher_is_better("test/loss")
    assert run.worst_has_few_rows("test/accuracy") and run.worst_has_few_rows("test/loss")


def test_what_went_wrong_is_said_in_words(tmp_path: Path) -> None:
    status = np.array([0, 1, 1, 1, 0, 3, 0, 0], np.int32)
    path = run_folder(tmp_path / "run", status=status, error="it diverged", interrupted=True)
    page = Page(report.of_run(path))
    assert "The run failed: it diverged" in page.words
    assert "interrupted after 8 rounds" in page.words
    assert (
        "Non finite update in 4 rounds: 2-4, 6. Some client sent a NaN or an infinity; its update "
        "was dropped (weight 0)."
    ) in page.words
    assert "Empty cohort in 1 round: 6." in page.words
    assert str(Status.BAD_WEIGHT.name).capitalize() not in page.words
    assert "warnings" not in "".join(Page(report.of_run(run_folder(tmp_path / "fine"))).text)


def test_names_are_text_whatever_they_hold(tmp_path: Path) -> None:
    path = run_folder(
        tmp_path / "a <b>", names=[HOSTILE + str(i) for i in range(12)], error=HOSTILE,
        options={"algorithm": HOSTILE, "columns": [HOSTILE], HOSTILE: HOSTILE}, data=HOSTILE,
    )  # fmt: skip
    page = Page(report.of_run(path))
    assert page.words.count("<script>alert('x')</script> $x^$ & \"q\" 日本") > 12
    assert "\x1b" not in page.words


@pytest.mark.parametrize("num_clients", [2, 3])
def test_few_clients_are_drawn_one_by_one(tmp_path: Path, num_clients: int) -> None:
    figures = report.figures_of_run(run_folder(tmp_path / "run", num_clients=num_clients))
    assert [*figures] == ["learning_curves.png", "client_accuracy.png"]
    curves, clients = figures.values()
    assert not curves.axes[0].collections
    assert clients.axes[0].get_ylabel() == "client"
    assert curves.get_suptitle() == "fedavg on patients.csv"


def test_a_run_that_has_left_nothing_yet_has_a_page(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", {"rounds": 2, "seed": 0})
    assert Page(report.of_run(folder.path)).tags.count("svg") == 0
    for at, loss in ((0, 2.0), (2, 1.5)):
        folder.log({"round": at, "seconds": 1.0, "test/loss": loss})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "test/lo')  # killed while it wrote
    page = Page(report.of_run(folder.path))
    assert "has not finished" in page.words and "All options rounds2" in page.words
    run = Recorded(folder.path)
    assert run.rounds.tolist() == [0, 2]
    assert run.evaluations["test/loss"]["mean"].tolist() == [2.0, 1.5]
    assert page.tags.count("svg") == 1
    with pytest.raises(FileNotFoundError, match="no run in"):
        report.of_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        report.of_run(tmp_path / "nowhere")
    (folder.path / "per_client.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"per_client.npz is damaged"):
        report.of_run(folder.path)


def test_values_that_are_not_finite_come_first(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run")
    with np.load(path / "per_client.npz") as archive:
        arrays = dict(archive)
    arrays["evaluations/test/accuracy/total"][-1, 5] = np.nan
    np.savez(path / "per_client.npz", **arrays)
    rows = Page(report.of_run(path)).rows
    first = next(i for i, row in enumerate(rows) if row[0] == "client") + 1
    assert rows[first][0] == "5" and "not finite" in rows[first]


def test_pages_of_many_clients_stay_small(tmp_path: Path) -> None:
    text = report.of_run(run_folder(tmp_path / "run", num_clients=20_000))
    assert len(text) < 3_000_000
    page = Page(text)
    assert "The worst 500 of 19,999 clients" in page.words


def test_what_parts_report_is_shown_without_being_named(tmp_path: Path) -> None:
    """A mean over the clients that counted, and the numbers of a round as they are."""
    weights = np.array([[1.0, 2.0], [1.0, 0.0]], np.float32)
    info = {
        "cohort/weights": weights,
        "cohort/clients/is_clipped": np.array([[1.0, 0.0], [1.0, np.nan]], np.float32),
        "cohort/clients/of each layer": np.zeros((2, 2, 3)),
        "cohort/num_bytes": weights,
        "server/epsilon": np.array([0.25, 0.75]),
        "server/mixture": np.zeros((2, 4)),
        "status": np.zeros(2, np.int32),
    }
    found = recorded.reported(info)
    assert found.keys() == {"client.is_clipped", "server.epsilon"}
    np.testing.assert_array_equal(found["client.is_clipped"], [0.5, 1.0])
    folder = RunFolder(tmp_path / "run", {"algorithm": "fedavg"})
    nested = {"cohort": {"weights": weights}, "server": {"epsilon": info["server/epsilon"]}}
    folder.save_arrays("per_client.npz", {"rounds": nested})
    folder.save_json("results.json", {"rounds": 2})
    page = Page(report.of_run(folder.path))
    assert ["server.epsilon", "0.250", "0.750", "0.500", "0.750"] in [[*row] for row in page.rows]

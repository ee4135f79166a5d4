"""Compression, privacy and robustness together, on little data."""

import json
from typing import Any

import pytest

from fedjax_sim import privacy
from fedjax_sim.experiments.compressed import fashion as compressed
from fedjax_sim.experiments.private import fashion as private
from fedjax_sim.experiments.private import robust


def results(module: Any, tmp_path: Any) -> dict[str, Any]:
    """What an experiment writes, of one seed."""
    output = tmp_path / "run"
    module.main(module.Options(output=output, quick=True, num_seeds=1))
    assert {"report.html", "results.md"} <= {path.name for path in output.iterdir()}
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (compressed, private, robust):
        quick = dict(module.Options.QUICK)
        monkeypatch.setattr(module.Options, "QUICK", quick | {"rounds": 8})


@pytest.mark.usefixtures("few_rounds", "blank_pictures")
def test_compressed_fashion_counts_bytes_and_learns(tmp_path, monkeypatch):
    """Bytes by hand, of 79,510 numbers."""
    all_of_them = compressed.compressions()
    kept = {name: all_of_them[name] for name in ("none", "signs", "top 1%, error feedback")}
    monkeypatch.setattr(compressed, "compressions", lambda: kept)
    rows = results(compressed, tmp_path)["rows"]
    sent = {name: row["bytes_a_round"] for name, row in rows.items()}
    leaves = (784 * 100, 100, 100 * 10, 10)
    size = sum(leaves)
    one_per_cent = round(size / 100)
    assert sent["none"] == 4 * size
    assert sent["signs"] == sum(-(-n // 8) + 4 for n in leaves)  # and a factor for each
    assert sent["top 1%, error feedback"] == 4 * one_per_cent + -(-one_per_cent * 17 // 8)
    assert all(row["accuracy"]["mean"] > 0.5 for row in rows.values())


@pytest.mark.usefixtures("few_rounds", "blank_pictures")
def test_private_fashion_pays_for_noise(tmp_path, monkeypatch):
    given = private.methods
    monkeypatch.setattr(
        private, "methods", lambda options: {"DP-FedAvg": given(options)["DP-FedAvg"]}
    )
    found = results(private, tmp_path)
    row = found["rows"]["DP-FedAvg"]
    expected = [
        privacy.epsilon(
            z, delta=250**-1.1, num_rounds=8, cohort_size=25, num_clients=250, accountant="rdp"
        )
        for z in (0.6, 1.5)
    ]
    assert row["epsilon"] == pytest.approx(expected, rel=1e-3)
    assert row["accuracy"][0] > row["accuracy"][1]
    assert found["without_privacy"]["mean"] > row["accuracy"][1]
    populations = found["populations"]
    assert populations["250"]["mean"] > populations["25"]["mean"]


@pytest.mark.usefixtures("few_rounds", "blank_pictures")
def test_private_robust_holds_attacks_off(tmp_path, monkeypatch):
    kept = {name: robust.defences()[name] for name in ("mean", "trimmed mean")}
    monkeypatch.setattr(robust, "defences", lambda: kept)
    two = {name: robust.known_attacks()[name] for name in ("none", "sign flip")}
    monkeypatch.setattr(robust, "known_attacks", lambda: two)
    accuracy = results(robust, tmp_path)["accuracy"]
    mean, trimmed = (accuracy[name][0][1] for name in kept)  # without noise
    assert min(trimmed) > max(mean) + 0.2
    honest = [sum(of_noise[0]) for of_noise in accuracy["mean"]]
    assert honest[0] > honest[2]  # noise costs accuracy

"""The experiment on attacks on privacy: defences hide what is plain without them."""

import json

from fedjax_sim.experiments.private import leakage


def test_noise_hides_what_is_plain_without_it(tmp_path, monkeypatch):
    every = leakage.defences()
    kept = {name: every[name] for name in ("none", "DP-SGD, noise 1")}
    monkeypatch.setattr(leakage, "defences", lambda: kept)
    output = tmp_path / "run"
    leakage.main(
        leakage.Options(output=output, num_seeds=1, num_images=1, num_members=40, num_rounds=6)
    )
    rows = json.loads((output / "results.json").read_text())["rows"]
    plain, private = rows.values()
    assert min(plain["psnr"]) > 40 and max(private["psnr"]) < 10
    assert min(plain["auc"]) > max(private["auc"]) + 0.03
    assert min(plain["accuracy"]) > 0.4
    names = {path.name for path in output.iterdir()}
    assert {"reconstructions.png", "membership.png", "results.md", "report.html"} <= names

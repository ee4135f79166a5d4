"""The leaderboard: equal terms for all, on little data."""

import json

import numpy as np
import pytest

from fedjax_sim.base import Algorithm
from fedjax_sim.data import Batching
from fedjax_sim.experiments.baselines import baselines
from fedjax_sim.experiments.baselines.methods import methods
from fedjax_sim.servers import sampling


@pytest.fixture(scope="module")
def all_of_them():
    return methods(baselines.MLP, sampling.uniform(10), Batching(20, num_steps=2))


@pytest.mark.parametrize("trials", [2, 5, 6])
def test_every_method_is_tried_at_equally_many_points(all_of_them, trials):
    for name, method in all_of_them.items():
        axes = method.axes(trials)
        assert np.prod([len(values) for values in axes.values()]) == trials, name
        assert all(len(set(values)) == len(values) for values in axes.values())


def test_every_method_can_be_made(all_of_them):
    for name, method in all_of_them.items():
        point = {axis: values[0] for axis, values in method.axes(2).items()}
        assert isinstance(method.make(**point), Algorithm), name


def test_examples_are_dealt_out_once():
    """To training, tuning and test, and to clients as the partition says."""
    rng = np.random.default_rng(0)
    examples = {"x": np.arange(100.0)[:, None], "y": rng.integers(0, 10, 100)}
    owned = [np.arange(0, 60), np.arange(60, 63), np.arange(63, 100)]
    parts = baselines._divided(examples, owned, seed=1)
    assert [part.sizes.tolist() for part in parts.values()] == [[48, 2, 30], [6, 1, 3], [6, 0, 4]]
    for k, rows in enumerate(owned):
        seen = np.concatenate([part.client(k)["x"][:, 0] for part in parts.values()])
        assert sorted(seen) == rows.tolist()


@pytest.mark.usefixtures("blank_pictures")
def test_a_leaderboard(tmp_path, monkeypatch):
    quick = dict(baselines.Options.QUICK) | {"rounds": 10, "splits": ("shards",)}
    monkeypatch.setattr(baselines.Options, "QUICK", quick)
    output, only = tmp_path / "run", ("FedAvg", "FedRep")
    baselines.main(baselines.Options(output=output, quick=True, only=only))
    rows = json.loads((output / "results.json").read_text(encoding="utf-8"))["rows"]["shards"]
    assert rows["FedRep"]["personal"] and not rows["FedAvg"]["personal"]
    # A client of two shards knows two or three classes; own heads need not tell the others apart.
    accuracy = {name: np.mean(row["accuracy"][-1]) for name, row in rows.items()}
    assert accuracy["FedRep"] > accuracy["FedAvg"] + 0.1
    assert np.mean(rows["FedRep"]["worst"]) <= accuracy["FedRep"]
    whole, body = 784 * 100 + 100 + 100 * 10 + 10, 784 * 100 + 100
    sent = {name: row["megabytes"] for name, row in rows.items()}
    assert sent["FedAvg"] == pytest.approx(2 * 10 * 4 * whole / 1e6, rel=1e-5)
    assert sent["FedRep"] == pytest.approx(2 * 10 * 4 * body / 1e6, rel=1e-5)
    text = (output / "results.md").read_text(encoding="utf-8")
    assert text.index("| FedRep ") < text.index("| FedAvg ")  # the best first
    assert "2 programs" in text


def test_a_name_that_is_no_method_is_refused(tmp_path):
    options = baselines.Options(output=tmp_path / "run", quick=True, only=("FedAgv",))
    with pytest.raises(ValueError, match=r"FedAgv\. There are FedAvg, FedAvgM, "):
        baselines.main(options)


@pytest.mark.usefixtures("blank_pictures")
def test_rows_of_earlier_runs_count(tmp_path, monkeypatch):
    """Two runs of a method each make the leaderboard of both, and nothing is run again."""
    monkeypatch.setattr(baselines.Options, "QUICK", {"num_clients": 10, "rounds": 5, "trials": 2})
    tiny = {"quick": True, "splits": ("rotated",), "num_seeds": 1}
    folders = []
    for name in ("FedAvg", "FedPer"):
        folders.append(tmp_path / name)
        baselines.main(baselines.Options(output=folders[-1], only=(name,), **tiny))

    def rows(folder):
        return json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]["rotated"]

    given = {"only": ("FedAvg", "FedPer"), "earlier": tuple(folders)}
    with monkeypatch.context() as patch:
        patch.setattr(baselines, "_measured", None)
        baselines.main(baselines.Options(output=tmp_path / "both", **tiny, **given))
    assert rows(tmp_path / "both") == rows(folders[0]) | rows(folders[1])
    with pytest.raises(ValueError, match=r"FedAvg was run with seed=0, not 1\."):
        baselines.main(baselines.Options(output=tmp_path / "other", seed=1, **tiny, **given))
    with pytest.raises(FileNotFoundError, match=r"nowhere has no config\.json"):
        given["earlier"] = (tmp_path / "nowhere",)
        baselines.main(baselines.Options(output=tmp_path / "other", **tiny, **given))


def test_the_images_of_a_rotated_client_are_turned_alike():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 4, 4, 1)).astype(np.float32)
    examples = {"x": x, "y": rng.integers(0, 10, 100)}
    parts = baselines._parts("rotated", examples, baselines.Options(num_clients=10))
    for k in range(10):
        for image in parts["train"].client(k)["x"]:
            back = np.rot90(image, -(k % 4))
            assert (back == x).all(axis=(1, 2, 3)).any()

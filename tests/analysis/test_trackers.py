"""What a run gives its trackers, read back from where they put it by the readers of each."""

import csv
import importlib
import json
import math
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest

import walks
from fedjax_sim import simulate
from fedjax_sim.analysis import trackers
from fedjax_sim.base import Status
from fedjax_sim.simulate import Progress

OPTIONS = {"lr": 0.1, "rounds": 7, "model": "mlp", "widths": [8, 4], "prox": None, "fast": True}
Curves = dict[str, dict[int, float]]
"""name -> round -> value"""


def run(**options: Any) -> simulate.Result:
    """Seven rounds in segments that end at 2, 3, 4, 6, 7, evaluated after 0, 3, 6, 7."""
    planned: dict[str, Any] = {
        "num_rounds": 7,
        "segment_rounds": 2,
        "eval_every": 3,
        "evaluate": walks.distance,
        "eval_data": {"all": walks.population()},
    }
    return walks.run(**planned | options)


SEGMENTS, EVALUATIONS = (2, 3, 4, 6, 7), (0, 3, 6, 7)


def assert_whole(curves: Curves, segments: Any = SEGMENTS, evaluations: Any = EVALUATIONS) -> None:
    """The curves are those of the walk: every value at its round, and none at another."""
    assert set(curves) == {"seconds", "client_steps", "status", "all/distance"}
    for name in ("seconds", "client_steps", "status"):
        assert sorted(curves[name]) == [*segments]
    assert list(curves["status"].values()) == [0] * len(segments)
    assert curves["client_steps"] == {at: 7 * at for at in segments}
    assert all(value > 0 for value in curves["seconds"].values())
    expected = {at: np.abs(walks.path(20)[at]).sum() for at in evaluations}
    assert curves["all/distance"] == pytest.approx(expected, rel=1e-6)


def told(**options: Any) -> list[Progress]:
    """What a run tells."""
    seen: list[Progress] = []
    run(progress=seen.append, **options)
    return seen


# Tables


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def curves_of_rows(rows: list[dict[str, Any]]) -> Curves:
    rounds = [int(row["round"]) for row in rows]
    assert rounds == sorted(set(rounds))  # a row a round, in order
    curves: Curves = {}
    for row in rows:
        row = dict(row)
        if row["status"] == "" and row["seconds"]:
            row["status"] = 0
        for name, cell in row.items():
            if name != "round" and cell not in (None, ""):
                curves.setdefault(name, {})[int(row["round"])] = float(cell)
    return curves


TABLES = {"csv": trackers.csv, "parquet": trackers.parquet}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_has_a_row_a_round(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"curves.{kind}"
    with TABLES[kind](path) as track:
        run(progress=track)
    assert_whole(curves_of_rows(rows_of(path)))
    assert list(rows_of(path)[0]) == [
        *("round", "seconds", "client_steps", "status", "all/distance")
    ]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_csv_is_there_while_the_run_goes_on(tmp_path: Path) -> None:
    path, seen = tmp_path / "curves.csv", []

    def look(now: Progress) -> None:
        seen.append([int(row["round"]) for row in rows_of(path)])

    with trackers.csv(path) as track:
        assert rows_of(path) == []
        run(progress=trackers.together(track, look))
    assert seen == [[0, 2], [0, 2, 3], [0, 2, 3, 4], [0, 2, 3, 4, 6], [0, 2, 3, 4, 6, 7]]


def test_parquet_is_whole_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen, clock = tmp_path / "curves.parquet", [], iter(range(0, 1000, 6))

    def look(now: Progress) -> None:
        seen.append([row["round"] for row in rows_of(path)])

    news = told()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with trackers.parquet(path, options=OPTIONS) as track:
        assert rows_of(path) == []
        for now in news:
            track(now)
            look(now)
    # Every second look at the clock is ten seconds after the file was written.
    assert seen == [[], [0, 2, 3], [0, 2, 3], [0, 2, 3, 4, 6], [0, 2, 3, 4, 6]]
    assert [row["round"] for row in rows_of(path)] == [0, 2, 3, 4, 6, 7]
    schema = pyarrow.parquet.read_schema(path)
    assert [str(kind) for kind in schema.types] == [
        *("int64", "double", "int64", "string", "double")
    ]
    assert json.loads(schema.metadata[b"options"]) == OPTIONS


@pytest.mark.parametrize("kind", TABLES)
def test_a_killed_run_that_goes_on_replaces_what_it_does_again(kind: str, tmp_path: Path) -> None:
    """Killed after round 6, its newest checkpoint of round 3: 4 and 6 are told twice."""
    path, news = tmp_path / f"curves.{kind}", told()
    with TABLES[kind](path) as track:
        for now in news[:4]:
            track(now._replace(seconds=99.0))
    checkpoint = tmp_path / "checkpoints"
    run(num_rounds=3, checkpoint=checkpoint)
    if kind == "csv":
        with path.open("a", encoding="utf-8") as file:
            file.write("7,1.5,")  # a line that it did not finish
    with TABLES[kind](path) as track:
        run(progress=track, checkpoint=checkpoint, segment_rounds=4)
    curves = curves_of_rows(rows_of(path))
    assert list(curves["seconds"]) == [2, 3, 6, 7]
    assert [at for at, seconds in curves["seconds"].items() if seconds == 99] == [2, 3]
    assert_whole(curves, (2, 3, 6, 7))
    with TABLES[kind](path) as track:  # another run, of other rounds
        run(progress=track, segment_rounds=1, num_rounds=4)
    assert_whole(curves_of_rows(rows_of(path)), (1, 2, 3, 4), (0, 3, 4))


@pytest.mark.parametrize("kind", TABLES)
def test_a_metric_that_comes_late_gets_a_column(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"curves.{kind}"
    with TABLES[kind](path) as track:
        for at, latest in [(1, {"a/x": 0.5}), (2, {}), (3, {"a/y, in %": math.nan, "a/x": 1.0})]:
            track(Progress(0, at, 4, 1.0, 5, Status.OK, latest, {at: latest} if latest else {}))
        both = Status.NON_FINITE_UPDATE | Status.EMPTY_COHORT
        track(Progress(0, 4, 4, 1.0, 5, both, {"a/x": 1.0}))
    rows = rows_of(path)
    cells = [[row[name] for name in ("a/x", "a/y, in %")] for row in rows]
    nothing = "" if kind == "csv" else None
    assert cells[:2] == [[str(0.5) if kind == "csv" else 0.5, nothing], [nothing, nothing]]
    assert [float(cell) for cell in cells[2]] == pytest.approx([1.0, math.nan], nan_ok=True)
    assert cells[3] == [nothing, nothing]  # that evaluation was told before
    assert [row["status"] for row in rows] == ["", "", "", "non_finite_update empty_cohort"]


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("content", [b"name,age\nx,3\n", b"nothing", b"\xff\x00\n", b"round\nx\n"])
def test_a_file_that_is_no_such_table_is_left_alone(
    kind: str, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a table of rounds"), TABLES[kind](path):
        pass
    assert path.read_bytes() == content


# What all do


def test_of_a_sweep_the_mean_over_its_runs_is_tracked(tmp_path: Path) -> None:
    starts = jnp.stack([walks.START, walks.START + 1])
    keys = jax.random.split(walks.KEY, 2)
    path = tmp_path / "curves.csv"
    with trackers.csv(path) as track:
        result = simulate.run(
            simulate.vmapped(walks.walk, {"bad_round": np.array([-1, -1])}),
            starts,
            walks.population(),
            key=keys,
            num_rounds=2,
            evaluate=jax.vmap(walks.distance, (0, None)),
            eval_data={"all": walks.population()},
            progress=track,
        )
    runs = result.evaluations.means()["all/distance"]
    assert runs.shape == (2, 2)
    found = [float(row["all/distance"]) for row in rows_of(path)]
    assert found == pytest.approx(runs.mean(axis=1), rel=1e-6)


def test_a_tracker_that_fails_loses_neither_the_run_nor_its_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, seen = tmp_path / "curves", []

    def unplug(now: Progress) -> None:
        seen.append(now.num_rounds)
        if now.num_rounds == 3:
            folder.rename(tmp_path / "away")

    with trackers.csv(folder / "curves.csv") as track:
        result = run(progress=trackers.together(unplug, track))
        assert (result.num_rounds, seen) == (7, [*SEGMENTS])
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "the CSV tracker failed and is tried once more" in caplog.text
        (tmp_path / "away").rename(folder)
    assert_whole(curves_of_rows(rows_of(folder / "curves.csv")))
    assert len(caplog.records) == 1


def test_what_could_not_be_written_in_the_end_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "curves"
    with trackers.parquet(folder / "curves.parquet") as track:
        run(progress=track)
        folder.rename(tmp_path / "away")
    assert "the Parquet tracker could not write everything: FileNotFoundError" in caplog.text


def test_what_cannot_be_opened_is_raised_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), trackers.csv(tmp_path / "file" / "curves.csv"):
        pass


def test_without_with_it_opens_itself(tmp_path: Path) -> None:
    track = trackers.csv(tmp_path / "new" / "curves.csv")
    assert not (tmp_path / "new").exists()
    run(progress=track)
    track.close()
    track.close()
    assert_whole(curves_of_rows(rows_of(tmp_path / "new" / "curves.csv")))


def test_a_second_run_is_refused_unless_it_goes_on_with_the_first(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    with trackers.csv(path) as track:
        run(progress=track, num_rounds=3, checkpoint=tmp_path / "checkpoints")
        run(progress=track, checkpoint=tmp_path / "checkpoints")
        with pytest.raises(ValueError, match="7 rounds of one run, got round 2 of another"):
            run(progress=track)
        with pytest.raises(ValueError, match="Make a tracker for every run"):
            run(progress=track, num_rounds=9, segment_rounds=9, eval_every=9)
    assert_whole(curves_of_rows(rows_of(path)))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.import_module

    def import_module(module: str, package: str | None = None) -> Any:
        if module.partition(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {module!r}")
        return found(module, package)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ImportError, match=rf'pip install "fedjax-sim\[{name}\]"'):
        trackers.from_text(name, folder=tmp_path)


# By name


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("csv", "first/metrics.csv"),
        ("csv:", "first/metrics.csv"),
        ("csv:other/curves.csv", "other/curves.csv"),
        ("parquet", "first/metrics.parquet"),
        ("parquet:curves.parquet", "curves.parquet"),
    ],
)
def test_a_table_by_name(
    text: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with trackers.from_text(text, folder=tmp_path / "first", options=OPTIONS) as track:
        assert [*tmp_path.rglob("*.*")] == [tmp_path / place]
        run(progress=track)
    assert_whole(curves_of_rows(rows_of(tmp_path / place)))


@pytest.mark.parametrize("text", ["tensorbord", "", "CSV:x", "wand"])
def test_an_unknown_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"unknown tracker .* Choose one of: 'tensorboard'"):
        trackers.from_text(text, folder="runs/first")


@pytest.mark.parametrize(
    "make", [trackers.tensorboard, trackers.wandb, trackers.mlflow, trackers.parquet]
)
def test_options_that_cannot_be_written_are_refused_at_once(make: Callable) -> None:
    with pytest.raises(TypeError, match="no form in JSON"):
        make("somewhere", options={"optimizer": object()})


# TensorBoard


def curves_of_events(folder: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    curves: Curves = {}
    for name in events.Tags()["scalars"]:
        scalars = events.Scalars(name)
        curves[name] = {each.step: each.value for each in scalars}
        assert len(curves[name]) == len(scalars)
    return curves


def test_tensorboard_reads_the_scalars_and_hyperparameters(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.plugins.hparams import metadata

    with trackers.from_text("tensorboard", folder=tmp_path, options=OPTIONS) as track:
        run(progress=track)
    assert_whole(curves_of_events(tmp_path / "tensorboard"))
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    found = metadata.parse_session_start_info_plugin_data(content).hparams
    assert (found["lr"].number_value, found["model"].string_value) == (0.1, "mlp")
    assert (found["widths"].string_value, found["prox"].string_value) == ("[8, 4]", "null")
    assert found["fast"].bool_value is True


def test_tensorboard_drops_what_a_killed_run_does_again(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints"
    run(num_rounds=3, checkpoint=checkpoint)
    track = trackers.tensorboard(tmp_path / "first", options=OPTIONS)
    for now in told()[:4]:
        track(now)  # flushed, and not closed
    with trackers.tensorboard(tmp_path / "first", options=OPTIONS) as second:
        run(progress=second, checkpoint=checkpoint, segment_rounds=4)
    assert_whole(curves_of_events(tmp_path / "first"), (2, 3, 6, 7))
    track.close()


def test_a_run_that_begins_anew_replaces_what_tensorboard_shows(tmp_path: Path) -> None:
    for segment_rounds in (1, 2):
        with trackers.tensorboard(tmp_path) as track:
            run(progress=track, segment_rounds=segment_rounds)
    assert_whole(curves_of_events(tmp_path))


# Weights & Biases


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """wandb without network, accounts, output and, afterwards, processes."""
    for name, value in {"MODE": "offline", "SILENT": "true", "ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb"))
    (tmp_path / "wandb").mkdir()
    import wandb

    yield wandb
    wandb.teardown()


def records_of(folder: Path) -> list[Any]:
    """The records of an offline run: in blocks of 32 KiB, each with a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.rglob("*.wandb")
    data, at, records, part = file.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768  # no header fits in the rest of a block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(part))
            part = b""
    return records


def test_wandb_has_the_history_and_the_config(offline: Any, tmp_path: Path) -> None:
    theirs = offline.init(dir=str(tmp_path / "wandb"))
    folder = tmp_path / "first"
    with trackers.from_text("wandb:studies", folder=folder, options=OPTIONS) as track:
        run(progress=track)
    assert offline.run is theirs  # theirs, and still open
    theirs.finish()
    records = records_of(folder)
    (begun,) = [each.run for each in records if each.WhichOneof("record_type") == "run"]
    assert (begun.project, begun.display_name) == ("studies", "first")
    config = {each.key: json.loads(each.value_json) for each in begun.config.update}
    assert {name: config[name] for name in OPTIONS} == OPTIONS
    (end,) = [each.exit for each in records if each.WhichOneof("record_type") == "exit"]
    assert end.exit_code == 0
    axes = [each.metric for each in records if each.WhichOneof("record_type") == "metric"]
    assert ("*", "round") in [(each.glob_name, each.step_metric) for each in axes]
    curves: Curves = {}
    for record in records:
        row = {
            each.key or each.nested_key[0]: json.loads(each.value_json)
            for each in record.history.item
        }
        for name in row.keys() - {"round"}:
            if not name.startswith("_"):
                curves.setdefault(name, {})[row["round"]] = row[name]
    assert_whole(curves)


def test_wandb_notes_that_a_run_failed(offline: Any, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), trackers.wandb("studies", dir=str(tmp_path)):
        raise ZeroDivisionError
    (end,) = [
        each.exit for each in records_of(tmp_path) if each.WhichOneof("record_type") == "exit"
    ]
    assert end.exit_code == 1


# MLflow


@pytest.fixture(params=["file", "sqlite"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The address of a local store."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    if request.param == "file":
        yield (tmp_path / "runs").as_uri()
        return
    pytest.importorskip("sqlalchemy")
    yield f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}"


# What MLflow does by newer versions of SQLAlchemy.
of_mlflow = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def curves_of_mlflow(client: Any, run_id: str) -> Curves:
    return {
        name: {each.step: each.value for each in client.get_metric_history(run_id, name)}
        for name in client.get_run(run_id).data.metrics
    }


@of_mlflow
def test_mlflow_has_the_metrics_and_the_parameters(store: str, tmp_path: Path) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    with trackers.from_text(f"mlflow:{store}", folder=tmp_path / "first", options=OPTIONS) as track:
        run(progress=track)
    assert mlflow.get_tracking_uri() == before
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("fedjax-sim")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("first", "FINISHED")
    assert found.data.params == {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in (OPTIONS | {"fast": "True"}).items()
    }
    assert_whole(curves_of_mlflow(client, found.info.run_id))


@of_mlflow
def test_mlflow_goes_on_with_a_run(store: str, tmp_path: Path) -> None:
    import mlflow

    many = {f"option {i}": i for i in range(150)}  # more than MLflow takes at once
    client = mlflow.MlflowClient(store)
    with (
        pytest.raises(ZeroDivisionError),
        trackers.mlflow("studies", tracking_uri=store, options=many) as track,
    ):
        run(progress=track, num_rounds=3, checkpoint=tmp_path / "checkpoints")
        raise ZeroDivisionError
    experiment = client.get_experiment_by_name("studies")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FAILED"
    more = many | {"option 0": 9, "more (%)": 1}
    again = {"tracking_uri": store, "run_id": found.info.run_id, "options": more}
    with trackers.mlflow("studies", **again) as track:
        run(progress=track, checkpoint=tmp_path / "checkpoints")
    assert_whole(curves_of_mlflow(client, found.info.run_id))
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    expected = many | {"more ___": 1}  # a parameter stays what it was
    assert found.data.params == {name: str(value) for name, value in expected.items()}

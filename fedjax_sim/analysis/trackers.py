"""Where a run's numbers go while it goes on: TensorBoard, Weights & Biases, MLflow, CSV, Parquet.

    with trackers.tensorboard("runs/first") as track:
        run(..., progress=track)

All take the same: of every segment the round, the seconds, the client steps and the status; of
every evaluation its metrics, once, at the round at which it was made. Of a sweep the metrics are
means over its runs, as in `Progress.latest`. TensorBoard, Weights & Biases and MLflow, which plot
numbers, get the bits of the status.

A run that goes on (from a checkpoint, or with `first_round`) goes on in the same place. In
TensorBoard and in tables the rounds that it does once more take the place of those tracked before;
Weights & Biases and MLflow keep both, at the same round. A run that begins anew begins its table
anew.

What is wrong beforehand, such as a package that is missing or a folder that cannot be made, is
raised at the latest where the `with` begins. Afterwards a tracker never ends the run: when it fails
(no network, a full disk) it says so once in the log of "fedjax_sim", keeps what follows in memory,
and tries once more when it is closed.
"""

import csv as csv_files
import importlib
import io
import itertools
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from fedjax_sim.analysis.runfolder import plain, replacing
from fedjax_sim.base import Status
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked
from fedjax_sim.simulate import Progress

LOG = logging.getLogger("fedjax_sim")
Row = dict[str, Any]
"""What is known of a round, by name: "round", the facts of a segment, the metrics."""
_FACTS = ("round", "seconds", "client_steps", "status")


class Place(NamedTuple):
    """Where a tracker writes.

    begin(first_round): before the first row; what is there of later rounds is to be replaced.
    write(rows): puts them where a killed process would leave them.
    close(failed): after the last row; whether the run ended by an error.
    """

    begin: Callable[[int], None]
    write: Callable[[list[Row]], None]
    close: Callable[[bool], None]


class Tracker:
    """A callback for `run(progress=...)` that writes one run down; `with` closes it.

    Args:
        name: what it is called when it fails.
        opened: opens the place; called where the `with` begins, or else with the first segment.
    """

    def __init__(self, name: str, opened: Callable[[], Place]) -> None:
        self._name, self._opened = name, opened
        self._place: Place | None = None
        self._failed = False
        self._waiting: list[Row] = []
        self._begins_at: int | None = None
        self._call = (0, 0)
        self._done = 0

    def __enter__(self) -> Self:
        self._place = self._opened()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(failed=kind is not None)

    def __call__(self, now: Progress) -> None:
        """Take what is new.

        Raises:
            ValueError: it is of a second run, which would be mixed with the first.
        """
        call = (now.first_round, now.total_rounds)
        if now.first_round < self._done and (call != self._call or now.num_rounds <= self._done):
            raise ValueError(
                f"this {self._name} tracker has {self._done} rounds of one run, got round "
                f"{now.num_rounds} of another. Make a tracker for every run."
            )
        if not self._done:
            self._begins_at = now.first_round
        self._call, self._done = call, now.num_rounds
        self._waiting += _news(now)
        if not self._failed:
            self._attempt(self._write, "failed and is tried once more when it is closed")

    def close(self, failed: bool = False) -> None:
        """Write what is left, and close the place; nothing happens the second time.

        Args:
            failed: whether the run ended by an error, for those that note it.
        """
        lost = "could not write everything"
        if self._waiting:
            self._attempt(self._write, lost)
        place, self._place = self._place, None
        if place is not None:
            self._attempt(lambda: place.close(failed), lost)

    def _write(self) -> None:
        if self._place is None:
            self._place = self._opened()
        if self._begins_at is not None:
            self._place.begin(self._begins_at)
            self._begins_at = None
        self._place.write(self._waiting)
        self._waiting.clear()

    def _attempt(self, write: Callable[[], None], otherwise: str) -> None:
        """Do it, or say what happened otherwise: a run of hours must not be lost for its log."""
        try:
            write()
        except Exception as error:
            self._failed = True
            why = checks.printable(f"{type(error).__name__}: {error}")
            LOG.warning("the %s tracker %s: %s", self._name, otherwise, why)


def _news(now: Progress) -> list[Row]:
    """What a tracker is told, a row a round."""
    facts: Row = {
        "seconds": now.seconds,
        "client_steps": now.client_steps,
        "status": now.status,
    }
    rows = {**now.evaluated, now.num_rounds: facts | now.evaluated.get(now.num_rounds, {})}
    return [{"round": at} | row for at, row in rows.items()]


def together(*callbacks: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """One callback that calls several, one after the other.

    Example:
        >>> with progress_bar() as show, csv("first.csv") as track:  # doctest: +SKIP
        ...     run(..., progress=together(show, track))
    """

    def tell(now: Progress) -> None:
        for callback in callbacks:
            callback(now)

    return tell


@checked
def tensorboard(
    folder: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None
) -> Tracker:
    """Write scalars that `tensorboard --logdir` shows.

    Args:
        folder: of this run alone, made if missing; runs beside each other are compared.
        options: hyperparameters, for the HPARAMS page.

    Raises:
        ImportError: the package is missing.
        OSError: where the `with` begins, if the folder cannot be made.
    """
    writers = _imported("tensorboard.summary.writer.event_file_writer", "tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    hyperparameters = _scalars(options)

    def opened() -> Place:
        writer = writers.EventFileWriter(os.fspath(folder))

        def begin(first_round: int) -> None:
            # The sign at which TensorBoard drops what a killed run had written of later rounds.
            step = first_round + 1 if first_round else 0
            started = SessionLog(status=SessionLog.START)
            writer.add_event(Event(wall_time=time.time(), step=step, session_log=started))
            if hyperparameters:
                summary = hparams_pb(hyperparameters)
                writer.add_event(Event(wall_time=time.time(), summary=summary))

        def write(rows: list[Row]) -> None:
            for row in rows:
                values = [
                    Summary.Value(tag=name, simple_value=value) for name, value in _numbers(row)
                ]
                summary = Summary(value=values)
                writer.add_event(Event(wall_time=time.time(), step=row["round"], summary=summary))
            writer.flush()

        return Place(begin, write, lambda failed: writer.close())

    return Tracker("TensorBoard", opened)


@checked
def wandb(
    project: str | None = None, *, options: Mapping[str, Any] | None = None, **init: Any
) -> Tracker:
    """Log to a run of Weights & Biases, whose x axis is the round.

    Args:
        project: the project's name; None takes what the environment says.
        options: hyperparameters, the config of the run.
        init: what `wandb.init` takes besides, such as mode="offline", name, group, dir; id and
            resume="allow" to go on with an earlier one.

    Raises:
        ImportError: the package is missing.
        Exception: where the `with` begins, whatever `wandb.init` raises.
    """
    library = _imported("wandb", "wandb")
    config = plain(options or {})

    def opened() -> Place:
        if init.get("dir") is not None:
            os.makedirs(init["dir"], exist_ok=True)  # else wandb writes elsewhere
        # A run of its own: one that the user has open stays theirs.
        settings = {"reinit": "create_new", "config": config, **init}
        run = library.init(project=project, **settings)
        run.define_metric("round")
        run.define_metric("*", step_metric="round")

        def write(rows: list[Row]) -> None:
            for row in rows:
                run.log({"round": row["round"], **dict(_numbers(row))})

        return Place(
            lambda first_round: None, write, lambda failed: run.finish(exit_code=int(failed))
        )

    return Tracker("Weights & Biases", opened)


@checked
def mlflow(
    experiment: str = "fedjax-sim",
    *,
    tracking_uri: str | None = None,
    run_name: str | None = None,
    run_id: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Tracker:
    """Log to a run of MLflow, whose steps are rounds.

    Characters that MLflow takes in no name become "_".

    Args:
        experiment: the experiment's name; it is made if there is none.
        tracking_uri: a server, or a local "sqlite:///mlflow.db"; None takes what the environment
            says, else that file. Nothing is changed for other users of MLflow in the process.
        run_name: what the run is called; None lets MLflow choose.
        run_id: an earlier run to go on with; its parameters stay as they are.
        options: hyperparameters, the parameters of the run.

    Raises:
        ImportError: the package is missing.
        Exception: where the `with` begins, whatever MLflow raises.
    """
    library = _imported("mlflow", "mlflow")
    from mlflow.entities import Metric, Param

    hyperparameters = {_mlflow_name(name): str(x) for name, x in _scalars(options).items()}

    def opened() -> Place:
        client = library.MlflowClient(tracking_uri=tracking_uri)
        if run_id is None:
            found = client.get_experiment_by_name(experiment)
            at = client.create_experiment(experiment) if found is None else found.experiment_id
            run = client.create_run(at, run_name=run_name)
        else:
            client.update_run(run_id, status="RUNNING", name=run_name)
            run = client.get_run(run_id)
        given = run.data.params  # each can be given once
        params = [Param(*each) for each in hyperparameters.items() if each[0] not in given]
        for i in range(0, len(params), 100):  # as many as MLflow takes at once
            client.log_batch(run.info.run_id, params=params[i : i + 100])

        def write(rows: list[Row]) -> None:
            for row in rows:
                now = int(1000 * time.time())
                metrics = [
                    Metric(_mlflow_name(name), value, now, row["round"])
                    for name, value in _numbers(row)
                ]
                client.log_batch(run.info.run_id, metrics=metrics)

        def close(failed: bool) -> None:
            client.set_terminated(run.info.run_id, "FAILED" if failed else "FINISHED")

        return Place(lambda first_round: None, write, close)

    return Tracker("MLflow", opened)


@checked
def csv(path: str | os.PathLike[str]) -> Tracker:
    """Write a table, a line a round, as soon as the round is told.

    A metric that comes up later gets a column, for which the file is written once more.

    Args:
        path: of the file; folders above it are made.

    Raises:
        ValueError, OSError: where the `with` begins, if there is a file that is no such table, or
            none can be written.
    """
    file = Path(path).expanduser()

    def opened() -> Place:
        rows = _Rows(file, _read_csv)
        columns: list[str] = []

        def write_lines(to: Path, mode: str, lines: list[Row]) -> None:
            with to.open(mode, encoding="utf-8", newline="") as stream:
                writer = csv_files.DictWriter(stream, columns, lineterminator="\n")
                if mode == "w":
                    writer.writeheader()
                writer.writerows(lines)

        def write_whole() -> None:
            columns[:] = rows.columns()
            with replacing(file) as partial:
                write_lines(partial, "w", rows.sorted())

        def write(news: list[Row]) -> None:
            news = [_with_text(row) for row in news]
            if rows.add(news) and set().union(*news) <= {*columns}:
                write_lines(file, "a", news)
            else:
                write_whole()

        def begin(first_round: int) -> None:
            rows.begin(first_round)
            write_whole()

        write_whole()
        return Place(begin, write, lambda failed: None)

    return Tracker("CSV", opened)


@checked
def parquet(path: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None) -> Tracker:
    """Write a table, a row a round; the file is always whole.

    It is written where the `with` begins, about every ten seconds, and in the end. What a row
    lacks is null.

    Args:
        path: of the file; folders above it are made.
        options: hyperparameters, kept as JSON in the metadata of the schema, as "options".

    Raises:
        ValueError, OSError: as for `csv`.
    """
    file = Path(path).expanduser()
    metadata = {"options": json.dumps(plain(options or {}))}

    def opened() -> Place:
        rows = _Rows(file, _read_parquet)
        written = 0.0

        def save() -> None:
            nonlocal written
            with replacing(file) as partial:
                _write_parquet(partial, rows, metadata)
            written = time.monotonic()

        def write(news: list[Row]) -> None:
            rows.add([_with_text(row) for row in news])
            if time.monotonic() - written >= _SECONDS_BETWEEN:
                save()

        save()
        return Place(rows.begin, write, lambda failed: save())

    return Tracker("Parquet", opened)


@checked
def from_text(
    text: str, *, folder: str | os.PathLike[str], options: Mapping[str, Any] | None = None
) -> Tracker:
    """Make the tracker that a command line names: NAME or NAME:WHERE.

    Args:
        text: "tensorboard", "csv" or "parquet", with another folder or file than that in `folder`
            after a colon; "wandb" with a project; "mlflow" with a tracking URI.
        folder: of the run, by which the runs of wandb and MLflow are called.
        options: the run's hyperparameters.

    Raises:
        ValueError: there is no tracker of this name.
        ImportError: its package is missing.

    Example:
        >>> from_text("tensorbord", folder="runs/first")
        Traceback (most recent call last):
        ValueError: unknown tracker 'tensorbord'. Did you mean 'tensorboard'? Choose one of: ...
    """
    folder = Path(folder)
    name, _, where = text.partition(":")
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: tensorboard(where or folder / "tensorboard", options=options),
        "wandb": lambda: wandb(where or None, options=options, name=folder.name, dir=str(folder)),
        "mlflow": lambda: mlflow(tracking_uri=where or None, run_name=folder.name, options=options),
        "csv": lambda: csv(where or folder / "metrics.csv"),
        "parquet": lambda: parquet(where or folder / "metrics.parquet", options=options),
    }
    checks.one_of("tracker", name, makers, hint="Its place may follow: csv:curves.csv.")
    return makers[name]()


def own_place(text: str) -> str:
    """The file or folder that the tracker of `from_text` makes in the run's folder, or nothing.

    >>> own_place("csv"), own_place("csv:curves.csv")
    ('metrics.csv', '')
    """
    name, colon, _ = text.partition(":")
    if name == "wandb":  # whatever the project
        return name
    places = {"tensorboard": name, "csv": "metrics.csv", "parquet": "metrics.parquet"}
    return "" if colon else places.get(name, "")


_SECONDS_BETWEEN = 10.0
"""Between two writes of a file that is always written whole."""


class _Rows:
    """The rows of a table by round, those of an earlier process included."""

    def __init__(self, file: Path, read: Callable[[Path], list[Row]]) -> None:
        """Read the file, if there is one."""
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            found = read(file) if file.exists() else []
            self._rows = {int(row["round"]): row for row in found}
        except Exception as error:  # readers raise all kinds on a damaged file
            if isinstance(error, OSError) and error.filename is not None:
                raise
            raise ValueError(
                f"{file} is not a table of rounds that a tracker wrote. Choose another path."
            ) from error

    def begin(self, first_round: int) -> None:
        """Forget what is not of the run that goes on."""
        kept = {at: row for at, row in self._rows.items() if at <= first_round}
        self._rows = kept if first_round else {}

    def add(self, rows: list[Row]) -> bool:
        """Add to the rounds' rows; whether all are new and come after the others."""
        last = max(self._rows, default=-1)
        for row in rows:
            self._rows[row["round"]] = self._rows.get(row["round"], {}) | row
        rounds = [last, *(row["round"] for row in rows)]
        return all(a < b for a, b in itertools.pairwise(rounds))

    def sorted(self) -> list[Row]:
        return [self._rows[at] for at in sorted(self._rows)]

    def columns(self) -> list[str]:
        return list(dict.fromkeys([*_FACTS, *(name for row in self.sorted() for name in row)]))


def _read_csv(file: Path) -> list[Row]:
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a killed process may leave part of a line
    lines = csv_files.DictReader(io.StringIO(whole, newline=""))
    if "round" not in (lines.fieldnames or ()):
        raise ValueError("no column for rounds")
    return [{name: cell for name, cell in line.items() if name and cell} for line in lines]


def _read_parquet(file: Path) -> list[Row]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    rows = table.cast(_schema(table.column_names)).to_pylist()
    return [{name: cell for name, cell in row.items() if cell is not None} for row in rows]


def _write_parquet(file: Path, rows: _Rows, metadata: Mapping[str, str]) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = _schema(rows.columns()).with_metadata(metadata)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows.sorted(), schema), file)


def _schema(columns: list[str]) -> Any:
    import pyarrow

    kinds = {"round": pyarrow.int64(), "client_steps": pyarrow.int64(), "status": pyarrow.string()}
    return pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in columns])


def _numbers(row: Row) -> list[tuple[str, float]]:
    return [(name, float(value)) for name, value in row.items() if name != "round"]


def _with_text(row: Row) -> Row:
    """The row with the names of the status' bits, as in metrics.jsonl; none for a good one."""
    if "status" not in row:
        return row
    status: Status = row["status"]
    return row | {"status": " ".join(str(flag.name).lower() for flag in status)}


def _scalars(options: Mapping[str, Any] | None) -> dict[str, bool | int | float | str]:
    """Options as numbers and text, what is neither as JSON."""
    return {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in plain(options or {}).items()
    }


def _mlflow_name(name: str) -> str:
    return re.sub(r"[^\w./ -]", "_", name)


def _imported(module: str, extra: str) -> Any:
    """A module of a package that is not installed with this one."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"trackers.{extra} needs a package that is missing ({error}). Install it: "
            f'pip install "fedjax-sim[{extra}]"'
        ) from error

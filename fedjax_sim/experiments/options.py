"""The options of an experiment, in a file, a dictionary or on the command line.

Beside what stands here, every option of the chosen parts is an option of the experiment; see
`parts.spec`. Nothing here imports jax, so that `--help` is quick.
"""

import dataclasses
import datetime
import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from fedjax_sim.experiments.arguments import Range, converted, flag, kinds_of, said_of
from fedjax_sim.ops import checks
from fedjax_sim.parts import spec
from fedjax_sim.parts.spec import Parts, Setting
from fedjax_sim.parts.text import Call, Value, show

Layer = Mapping[str, Setting]
"""Options by name, such as those of one file."""


class Shown(NamedTuple):
    """How help shows an option: what its values are called, and what is taken without it."""

    metavar: str
    default: str = ""


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """The examples.

    Attributes:
        dataset: Data set by name (`fedjax-sim datasets` lists them), tfds:NAME for any of
            tensorflow-datasets, or a table of your own: a file that ends in .csv, .tsv or .txt,
            whose first line names the columns, or in .parquet. Numbers are scaled, text is one-hot,
            and a fifth of the rows is for tests. Files that have clients are KIND:PATH, such as
            leaf:FOLDER, hdf5:FILE, sqlite:FILE, arrow:FOLDER or clients:FOLDER (a folder or a file
            each). "mine.py:function" is a function of your own that returns a Dataset.
        label: The column of the table with the classes, or with the quantity to be learned.
        folder: Folder with the data set's own files.
        group: The column whose values are the clients, of which by_group is the partition: "client"
            for natural clients (shakespeare, federated_emnist); adult has education, race,
            doctorate ...; of a table any column, which is then not an input.
    """

    dataset: str = "fashion_small"
    label: Annotated[str | None, Shown("NAME")] = None
    folder: Annotated[Path | None, Shown("PATH", "where it is found")] = None
    group: Annotated[str | None, Shown("NAME")] = None


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """How a table of your own is read, also one of each client; arguments of `datasets.from_table`.

    Attributes:
        task: What the labels are: classes, or the targets of a regression. By default text and few
            different integers are classes, decimals are targets.
        feature_columns: The inputs. By default all columns but --label and --group.
        categorical_columns: Columns to one-hot even if they hold numbers.
        numeric_columns: Columns that must hold quantities: numbers with zeros in front too; yes is
            1, no is 0.
        ignore_columns: Columns to leave out.
        missing: How a missing value is written. By default nothing, or ?.
        fill: Rows where a quantity is missing: refuse (by default) or drop them, or put the mean or
            median of the training rows there, marked by a further input.
        scaling: Of quantities: minmax (by default) to [0, 1], standard to mean 0 and standard
            deviation 1.
        decimal: What divides decimals: . by default.
        thousands: What divides thousands: nothing by default.
        date_format: How dates are written unless as 2024-05-31, such as %d.%m.%Y.
        delimiter: What divides columns. By default what divides the first line: , ; | or tab.
        encoding: Of the text, such as latin-1. By default UTF-8, or what the file itself says.
        test_fraction: Share of the rows that are for tests, in (0, 1). By default 0.2.
    """

    task: Annotated[
        Literal["classification", "regression"] | None, Shown("classification|regression")
    ] = None
    feature_columns: Annotated[tuple[str, ...] | None, Shown("NAME [NAME ...]")] = None
    categorical_columns: Annotated[tuple[str, ...] | None, Shown("NAME [NAME ...]")] = None
    numeric_columns: Annotated[tuple[str, ...] | None, Shown("NAME [NAME ...]")] = None
    ignore_columns: Annotated[tuple[str, ...] | None, Shown("NAME [NAME ...]")] = None
    missing: Annotated[tuple[str, ...] | None, Shown("TEXT [TEXT ...]")] = None
    fill: Annotated[
        Literal["refuse", "drop", "mean", "median"] | None, Shown("refuse|drop|mean|median")
    ] = None
    scaling: Annotated[
        Literal["minmax", "standard", "none"] | None, Shown("minmax|standard|none")
    ] = None
    decimal: Annotated[Literal[".", ","] | None, Shown(".|,")] = None
    thousands: Annotated[str | None, Shown("MARK")] = None
    date_format: Annotated[str | None, Shown("FORMAT")] = None
    delimiter: Annotated[str | None, Shown("MARK")] = None
    encoding: Annotated[str | None, Shown("NAME")] = None
    test_fraction: Annotated[
        float | None, Range(0, 1, open_low=True, open_high=True), Shown("FLOAT")
    ] = None


@dataclasses.dataclass(frozen=True)
class ClientFileOptions:
    """How files that have clients, KIND:PATH, are read; arguments of their readers.

    Attributes:
        x: The field or column with the inputs. By default x, or what there is beside the labels.
        y: The field or column with the labels. By default y, label, labels or target.
        client_column: Of arrow and parquet files, the column that names the client. By default
            client or client_id.
        x_shape: Shape of an input, such as 28 28 1, where files hold rows of numbers.
        x_dtype: What inputs are that are integers: float32 for quantities, uint8 for pixels.
        num_classes: Number of classes, where not all of them occur.
    """

    x: Annotated[str | None, Shown("NAME")] = None
    y: Annotated[str | None, Shown("NAME")] = None
    client_column: Annotated[str | None, Shown("NAME")] = None
    x_shape: Annotated[tuple[int, ...] | None, Shown("INT [INT ...]")] = None
    x_dtype: Annotated[Literal["float32", "uint8"] | None, Shown("float32|uint8")] = None
    num_classes: Annotated[int | None, Shown("INT")] = None


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """What is minimised and measured, and for how long.

    Attributes:
        loss: What clients minimise, a loss by name or of your own, file.py:function. By default
            that of the data set's task.
        metrics: What is measured beside the metrics of the task, such as "f1(micro)" or
            calibration_error.
        global_model: The server's model where it is another than the clients', such as the wider
            network that PFNM grows into: "mlp(hidden=[700])".
        rounds: Rounds of communication, at least 1.
        eval_every: Rounds between evaluations on all training and test examples, at least 1.
        patience: Stop when --patience-metric has not improved for so many rounds, at least 1. By
            default the run goes on.
        patience_metric: Split and metric that --patience looks at, such as train/accuracy.
        on_error: When a client's update is not finite: raise stops the run and keeps what is done,
            continue drops such updates.
        seed: Of the partition, the initial model and the training; in [0, 2^32). With
            --partition.seed the partition has its own.
    """

    loss: Annotated[str | None, Shown("NAME", "of the task")] = None
    metrics: Annotated[tuple[str, ...] | None, Shown("NAME [NAME ...]")] = None
    global_model: Annotated[str | None, Shown("MODEL", "as the clients'")] = None
    rounds: Annotated[int, Range(1)] = 100
    eval_every: Annotated[int, Range(1)] = 10
    patience: Annotated[int | None, Range(1), Shown("INT")] = None
    patience_metric: Annotated[str | None, Shown("SPLIT/METRIC", "the test's loss")] = None
    on_error: Literal["raise", "continue"] = "raise"
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where results go.

    Attributes:
        output: Folder for the results.
        overwrite: Replace an earlier run in --output.
        track: Write the run down for other tools too: tensorboard, wandb, mlflow, csv or parquet; a
            folder, file, project or address may follow, such as wandb:my-project.
        checkpoint_every: Rounds between checkpoints, at least 1, of which the newest is kept; one
            is written at the end as well, be the run done or interrupted. By default none are.
        resume: Continue the run in this folder from its newest checkpoint, with its options. On the
            command line go only --rounds and what changes no results.
        config: Read options from a TOML file; the command line goes over it. Every run writes such
            a file, config.toml, to repeat it.
        no_cache: Compile anew. By default compiled programs are kept in the user's cache folder, at
            most 1 GB, and the next run of the kind finds them.
        debug: Run without compilation, slowly, and show where an error comes from.
    """

    output: Annotated[Path | None, Shown("PATH", "runs/DATASET-ALGORITHM-DATE")] = None
    overwrite: bool = False
    track: Annotated[tuple[str, ...] | None, Shown("NAME[:WHERE] [...]")] = None
    checkpoint_every: Annotated[int | None, Range(1), Shown("INT")] = None
    resume: Annotated[Path | None, Shown("PATH")] = None
    config: Annotated[Path | None, Shown("FILE.toml")] = None
    no_cache: bool = False
    debug: bool = False


@dataclasses.dataclass(frozen=True)
class PlainOptions:
    """The options that belong to no part."""

    data: DataOptions = DataOptions()
    table: TableOptions = TableOptions()
    files: ClientFileOptions = ClientFileOptions()
    training: TrainingOptions = TrainingOptions()
    run: RunOptions = RunOptions()


class Options(NamedTuple):
    """Everything that an experiment is made by.

    plain: the options that belong to no part. parts: the parts with theirs. layers: what both were
    resolved from.
    """

    plain: PlainOptions
    parts: Parts
    layers: tuple[Layer, ...] = ()


KINDS = kinds_of(PlainOptions)
"""Option that belongs to no part -> its type."""
RANGES = said_of(PlainOptions, Range)
SHOWN = said_of(PlainOptions, Shown)
_NOT_IN_FILES = ("config", "debug", "no_cache", "resume")
_NOT_REPEATED = ("output", "overwrite", "track", *_NOT_IN_FILES)


def resolve(*layers: Layer, num_clients: int | None = None, complete: bool = True) -> Options:
    """The options that some layers of them say, later ones over earlier ones.

    Args:
        *layers: such as those of a file, and those of the command line.
        num_clients: of the population, once it is known: a cohort is no larger, unless it was asked
            for.
        complete: whether parts must have all that they need; for help they need not.

    Raises:
        ValueError: an option that there is not or that does not fit, in the name it was given by.
    """
    given = [
        {name: converted(label, value, KINDS[name], RANGES.get(name)) for name, (value, label)
         in layer.items() if name in KINDS}
        for layer in layers
    ]  # fmt: skip
    plain = PlainOptions()
    for values in given:
        plain = replaced(plain, values)
    _check_data(plain)
    natural = has_clients(plain.data.dataset) or plain.data.group is not None
    parts = spec.resolve(
        *({name: each for name, each in layer.items() if name not in KINDS} for layer in layers),
        defaults={"partition": "by_group"} if natural else {},
        required={} if num_clients is None else {"cohort_size": min(num_clients, 10)},
        also=KINDS,
        complete=complete,
    )
    chosen = parts["partition"].name if isinstance(parts["partition"], Call) else ""
    if chosen == "by_group":
        plain = replaced(plain, {"group": plain.data.group or "client"})
    elif plain.data.group is not None:
        raise ValueError(f"--group belongs to --partition by_group, but partition is {chosen!r}.")
    return Options(plain, parts, layers)


def for_clients(options: Options, num_clients: int) -> Options:
    """The same options for a population of so many clients: see `resolve`.

    The partition stays as it is, for it is made.
    """
    parts = resolve(*options.layers, num_clients=num_clients).parts
    return options._replace(parts=parts | {"partition": options.parts["partition"]})


def _check_data(plain: PlainOptions) -> None:
    """Raise for options of one kind of data with another."""
    dataset, label = plain.data.dataset, plain.data.label
    is_own, by_client = is_table(dataset), has_clients(dataset)
    if is_own != (label is not None):
        raise ValueError(
            "--label names the column with the labels in a table of your own (FILE.csv, .tsv, .txt "
            f"or .parquet), and belongs to it alone: got --dataset {dataset} and --label "
            f"{checks.shown(label)}."
        )
    for group, takes_it, what in (
        (plain.table, is_own or by_client, "a table of your own"),
        (plain.files, by_client, "files that have clients (KIND:PATH)"),
    ):
        useless = [flag(name) for name, value in vars(group).items() if value is not None]
        if useless and not takes_it:
            raise ValueError(f"{', '.join(useless)}: for {what} only, but --dataset is {dataset}.")


def replaced(options: PlainOptions, values: Mapping[str, Any]) -> PlainOptions:
    """The same options with these values, by name."""
    groups = {}
    for each in dataclasses.fields(options):
        group = getattr(options, each.name)
        names = {field.name for field in dataclasses.fields(group)}
        own = {name: value for name, value in values.items() if name in names}
        groups[each.name] = dataclasses.replace(group, **own)
    return PlainOptions(**groups)


def flat(options: Options) -> dict[str, Any]:
    """All options by name; those of parts have their place in front.

    >>> found = flat(resolve())
    >>> found["rounds"], found["algorithm"], found["algorithm.sampler.cohort_size"]
    (100, 'fedavg', 10)
    """
    plain = {
        field.name: getattr(group, field.name)
        for group in vars(options.plain).values()
        for field in dataclasses.fields(group)
    }
    return plain | spec.flat(options.parts)


def has_clients(dataset: str) -> bool:
    """Whether --dataset is KIND:PATH, files of the user's own that have clients.

    >>> has_clients("leaf:data/femnist"), has_clients("tfds:mnist"), has_clients("C:/mine.csv")
    (True, False, False)
    """
    kind, colon, _ = dataset.partition(":")
    if kind == "tfds" or kind.endswith(".py"):  # a function of the user's own
        return False
    return bool(colon) and len(kind) > 1  # one letter is a drive's


def is_table(dataset: str) -> bool:
    """Whether --dataset is a table of the user's own.

    >>> is_table("data/Patients.CSV.gz"), is_table("adult")
    (True, False)
    """
    return not has_clients(dataset) and (
        re.search(r"\.(csv|tsv|txt|parquet|pq)(\.(gz|bz2|xz|zst))?$", dataset.lower()) is not None
    )


def from_mapping(values: Mapping[str, Any], place: str = "") -> dict[str, Setting]:
    """Options as a layer; `place` is what messages put in front of their names."""
    return {name: Setting(value, f"{place}{name}") for name, value in values.items()}


def from_file(path: str | os.PathLike[str]) -> dict[str, Setting]:
    """Read options from a TOML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML, or an option that belongs to the command line alone.
    """
    path = Path(path).expanduser()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no configuration file {path}.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}.") from error
    for name, value in values.items():
        if name in _NOT_IN_FILES:
            raise ValueError(f"{path}: {name} is an option of the command line alone.")
        _check_no_date(f"{path}: {name}", value)
    return from_mapping(values, f"{path}: ")


def _check_no_date(label: str, value: Any) -> None:
    """Raise for what TOML knows and no option is."""
    if isinstance(value, datetime.date | datetime.time):
        raise ValueError(f"{label} must not be a date or a time, got {value}. Put text in quotes.")
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_no_date(label, each)


def from_run(path: str | os.PathLike[str]) -> dict[str, Setting]:
    """The options of the run in a folder, to continue it.

    Raises:
        FileNotFoundError: there is no run in it.
        ValueError: it was told to make no checkpoints.
    """
    path = Path(path).expanduser()
    if not (path / "config.toml").is_file():
        raise FileNotFoundError(f"--resume {path}: there is no run in it, for lack of config.toml.")
    layer = from_file(path / "config.toml")
    if "checkpoint_every" not in layer:
        raise ValueError(
            f"--resume {path}: that run had no --checkpoint-every, so it left no checkpoint to "
            f"continue from. Repeat it from the start: --config {path / 'config.toml'}."
        )
    return layer | {"output": Setting(path, "--output"), "resume": Setting(path, "--resume")}


_NEW_AT_RESUME = (
    *("rounds", "algorithm.width", "on_error", "eval_every", "checkpoint_every"),
    *("patience", "patience_metric"),
    *("track", "resume", "debug", "no_cache"),
)


def check_resumed(options: Options) -> None:
    """Raise if a run that is continued was given options that are not those it began with."""
    run = options.plain.run
    if run.resume is None:
        return
    began, now = flat(resolve(from_run(run.resume))), flat(options)
    names = [name for name in now if name not in _NEW_AT_RESUME]
    changed = [flag(name) for name in names if now[name] != began.get(name)]
    if changed:
        raise ValueError(
            f"--resume continues a run as it began: leave out {', '.join(changed)}. For a run of "
            f"its own: --config {run.resume / 'config.toml'}."
        )
    if run.checkpoint_every is None:
        raise ValueError("--checkpoint-every None: a run that is continued keeps its checkpoints.")


def to_toml(options: Options) -> str:
    """Write options as TOML that `from_file` reads, without those of one particular run.

    Left out are the output folder and what does not change the results.

    >>> print(to_toml(resolve()).splitlines()[0])
    dataset = "fashion_small"
    """
    values = flat(options)
    lines = [
        f"{name} = {_toml(values[name])}"
        for name in KINDS
        if name not in _NOT_REPEATED and values[name] is not None
    ]
    for slot, part in options.parts.items():
        if not isinstance(part, Call):
            raise ValueError(f"{slot} is a {type(part).__name__}, which has no text.")
        lines += ["", f"[{slot}]", f"part = {_toml(part.name)}"]
        lines += [f"{name} = {_toml(value)}" for name, value in part.options.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value) if isinstance(value, str | Path) else show(value)
    # TOML's strings are JSON's, but for one control character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

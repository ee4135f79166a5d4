"""The options of `fedjax-sim train`: what they mean, their defaults, and their form in TOML.

Nothing here imports jax, so that `--help` is quick.
"""

import dataclasses
import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fedjax_sim.cli.arguments import Range, converted, flag, kinds_of
from fedjax_sim.ops import checks

_COHORTS = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox", "scaffold")
_SYNTHETIC = ("iid", "dirichlet", "shards", "quantity_skew")

DEFAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "num_clients": ("partition", dict.fromkeys(_SYNTHETIC, 100)),
    "alpha": ("partition", {"dirichlet": 0.3}),
    "shards_per_client": ("partition", {"shards": 2}),
    "sigma": ("partition", {"quantity_skew": 1.0}),
    "min_size": ("partition", {"dirichlet": 1, "quantity_skew": 1}),
    "group": ("partition", {"by_group": "client"}),
    "hidden": ("model", {"mlp": (200, 200)}),
    "client_learning_rate": ("algorithm", {**dict.fromkeys(_COHORTS, 0.1), "agnostic": 0.1}),
    "server_learning_rate": (
        "algorithm",
        {
            **dict.fromkeys(("fedavg", "fedavgm", "fedprox", "scaffold"), 1.0),
            **{"fedadam": 0.01, "fedyogi": 0.01, "fedadagrad": 0.1},
        },
    ),
    "server_momentum": ("algorithm", dict.fromkeys(("fedavgm", "fedadam", "fedyogi"), 0.9)),
    "server_epsilon": ("algorithm", dict.fromkeys(("fedadam", "fedyogi", "fedadagrad"), 1e-3)),
    "prox_mu": ("algorithm", {"fedprox": 0.01}),
    "mixture_learning_rate": ("algorithm", {"agnostic": 0.01}),
    "cohort_size": ("algorithm", dict.fromkeys(_COHORTS, 10)),
    "epochs": ("algorithm", dict.fromkeys(_COHORTS, 1.0)),
    "local_steps": ("algorithm", dict.fromkeys(_COHORTS)),
    "width": ("algorithm", dict.fromkeys(_COHORTS, "auto")),
}
"""option -> (the choice it belongs to, {value of that choice: default}).

An option is None until `resolve` gives it the default of what was chosen; given for anything else
it would silently do nothing, so `resolve` refuses it.
"""

_RATE = Range(1e-37, 1e38)  # what float32 holds, with some room
RANGES = {
    **dict.fromkeys(("num_clients", "shards_per_client", "min_size", "cohort_size"), Range(1)),
    **dict.fromkeys(("batch_size", "rounds", "local_steps", "width", "eval_every"), Range(1)),
    **dict.fromkeys(("checkpoint_every", "patience"), Range(1)),
    "alpha": Range(0, 1e9, open_low=True),
    "sigma": Range(0, 100),
    "hidden": Range(1, 1_000_000),
    "epochs": Range(0, 1e6, open_low=True),
    "client_learning_rate": _RATE,
    "server_learning_rate": _RATE,
    "server_momentum": Range(0, 1, open_high=True),
    "server_epsilon": Range(1e-18, 1e18),  # it is squared
    "prox_mu": Range(0, 1e38),
    "mixture_learning_rate": Range(0, 1e38),
    "test_fraction": Range(0, 1, open_low=True, open_high=True),
    "seed": Range(0, 2**32 - 1),
}
"""option -> what its number may be; by default what 32 bits hold."""


def _part(name: str, metavar: str) -> Any:
    """Help for an option in DEFAULTS: its defaults instead of "(default: None)"."""
    _, defaults = DEFAULTS[name]
    by_value: dict[Any, list[str]] = {}
    for choice, default in defaults.items():
        by_value.setdefault(default, []).append(choice)
    if tuple(defaults) == (*_COHORTS, "agnostic"):
        hint = str(*by_value)
    elif tuple(defaults) == _COHORTS:
        hint = "" if None in by_value else f"{', '.join(map(str, by_value))}; not for agnostic"
    else:
        hint = "; ".join(
            f"{', '.join(choices)}: {' '.join(map(str, v)) if isinstance(v, tuple) else v}"
            for v, choices in by_value.items()
        )
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {hint})" if hint else "")


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """The examples and how they are dealt out to clients.

    Attributes:
        dataset: Data set by name (`fedjax-sim datasets` lists them), tfds:NAME for any of
            tensorflow-datasets, or a table of your own: a file that ends in .csv, .tsv or .txt,
            whose first line names the columns, or in .parquet. Numbers are scaled, text is one-hot,
            and a fifth of the rows is for tests. Files that have clients are KIND:PATH, such as
            leaf:FOLDER, hdf5:FILE, sqlite:FILE, arrow:FOLDER or clients:FOLDER (a folder or a file
            each).
        label: The column of the table with the classes, or with the quantity to be learned.
        folder: Folder with the data set's own files.
        partition: Who owns what. iid: equal mixtures and sizes. dirichlet: label skew of strength
            --alpha. shards: a few classes a client. quantity_skew: equal mixtures, unequal sizes.
            by_group: natural clients, the default for files that have them. The test examples are
            dealt out in the same proportions if there are enough.
        num_clients: Clients in the population, at least 1.
        alpha: Dirichlet concentration, > 0: 0.1 is strong label skew, 100 almost none.
        shards_per_client: Shards of the sorted examples that a client gets: about its number of
            classes.
        sigma: Standard deviation of the logarithm of client sizes, >= 0.
        min_size: The fewest training examples of a client, at least 1.
        group: The column whose values are the clients: "client" for natural clients (shakespeare,
            federated_emnist); adult has education, race, doctorate ...; of a table any column,
            which is then not an input.
    """

    dataset: str = "fashion_small"
    label: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    folder: Annotated[
        Path | None,
        tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: where it is found)"),
    ] = None
    partition: Annotated[
        Literal["iid", "dirichlet", "shards", "quantity_skew", "by_group"] | None,
        tyro.conf.arg(
            metavar="iid|dirichlet|shards|quantity_skew|by_group",
            help_behavior_hint="(default: dirichlet; by_group for KIND:PATH)",
        ),
    ] = None
    num_clients: Annotated[int | None, _part("num_clients", "INT")] = None
    alpha: Annotated[float | None, _part("alpha", "FLOAT")] = None
    shards_per_client: Annotated[int | None, _part("shards_per_client", "INT")] = None
    sigma: Annotated[float | None, _part("sigma", "FLOAT")] = None
    min_size: Annotated[int | None, _part("min_size", "INT")] = None
    group: Annotated[str | None, _part("group", "NAME")] = None


def _reader(metavar: str) -> Any:
    """Help for an option whose default is the reader's."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


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
        Literal["classification", "regression"] | None, _reader("classification|regression")
    ] = None
    feature_columns: Annotated[tuple[str, ...] | None, _reader("NAME [NAME ...]")] = None
    categorical_columns: Annotated[tuple[str, ...] | None, _reader("NAME [NAME ...]")] = None
    numeric_columns: Annotated[tuple[str, ...] | None, _reader("NAME [NAME ...]")] = None
    ignore_columns: Annotated[tuple[str, ...] | None, _reader("NAME [NAME ...]")] = None
    missing: Annotated[tuple[str, ...] | None, _reader("TEXT [TEXT ...]")] = None
    fill: Annotated[
        Literal["refuse", "drop", "mean", "median"] | None, _reader("refuse|drop|mean|median")
    ] = None
    scaling: Annotated[
        Literal["minmax", "standard", "none"] | None, _reader("minmax|standard|none")
    ] = None
    decimal: Annotated[Literal[".", ","] | None, _reader(".|,")] = None
    thousands: Annotated[str | None, _reader("MARK")] = None
    date_format: Annotated[str | None, _reader("FORMAT")] = None
    delimiter: Annotated[str | None, _reader("MARK")] = None
    encoding: Annotated[str | None, _reader("NAME")] = None
    test_fraction: Annotated[float | None, _reader("FLOAT")] = None


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

    x: Annotated[str | None, _reader("NAME")] = None
    y: Annotated[str | None, _reader("NAME")] = None
    client_column: Annotated[str | None, _reader("NAME")] = None
    x_shape: Annotated[tuple[int, ...] | None, _reader("INT [INT ...]")] = None
    x_dtype: Annotated[Literal["float32", "uint8"] | None, _reader("float32|uint8")] = None
    num_classes: Annotated[int | None, _reader("INT")] = None


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """What is trained.

    Attributes:
        model: logistic and mlp take any features, the cnn models images, char_lstm text.
        hidden: Widths of the hidden layers.
        precision: What the model computes in; parameters and aggregation are float32 anyway.
    """

    model: Literal[
        "logistic", "mlp", "emnist_cnn", "simple_cnn", "lens_cnn", "mnist_cnn", "lenet", "char_lstm"
    ] = "mlp"
    precision: Literal["float32", "bfloat16"] = "float32"
    hidden: Annotated[tuple[int, ...] | None, _part("hidden", "INT [INT ...]")] = None


@dataclasses.dataclass(frozen=True)
class AlgorithmOptions:
    """How it is trained.

    Attributes:
        algorithm: fedavg with a server optimizer (fedavgm, fedadam, fedyogi, fedadagrad), with a
            proximal term (fedprox) or with control variates (scaffold); agnostic trains for the
            worst client, with all clients in every round.
        rounds: Rounds of communication, at least 1.
        cohort_size: Clients that take part in a round, sampled uniformly; all for everyone.
        batch_size: Examples in a local step; all takes all examples of the client.
        epochs: Passes of a client over its examples in a round, > 0; 0.5 is half a pass.
        local_steps: Local steps of every client in a round, instead of --epochs.
        client_learning_rate: Step size of the clients' SGD (for agnostic: of the model), > 0.
        server_learning_rate: Step size of the server optimizer on the mean update, > 0.
        server_momentum: Momentum of the server optimizer, in [0, 1).
        server_epsilon: Adaptivity of the server optimizer, > 0: larger is closer to plain SGD.
        prox_mu: Strength of FedProx's pull to the server's model, >= 0.
        mixture_learning_rate: Step size of the clients' weights in the agnostic mixture, >= 0.
        width: Clients trained at once. Changes speed and memory, not results.
        on_error: When a client's update is not finite: raise stops the run and keeps what is done,
            continue drops such updates.
    """

    algorithm: Literal[
        "fedavg",
        "fedavgm",
        "fedadam",
        "fedyogi",
        "fedadagrad",
        "fedprox",
        "scaffold",
        "agnostic",
    ] = "fedavg"
    rounds: int = 100
    cohort_size: Annotated[int | Literal["all"] | None, _part("cohort_size", "INT|all")] = None
    batch_size: Annotated[int | Literal["all"], tyro.conf.arg(metavar="INT|all")] = 32
    epochs: Annotated[float | None, _part("epochs", "FLOAT")] = None
    local_steps: Annotated[int | None, _part("local_steps", "INT")] = None
    client_learning_rate: Annotated[float | None, _part("client_learning_rate", "FLOAT")] = None
    server_learning_rate: Annotated[float | None, _part("server_learning_rate", "FLOAT")] = None
    server_momentum: Annotated[float | None, _part("server_momentum", "FLOAT")] = None
    server_epsilon: Annotated[float | None, _part("server_epsilon", "FLOAT")] = None
    prox_mu: Annotated[float | None, _part("prox_mu", "FLOAT")] = None
    mixture_learning_rate: Annotated[float | None, _part("mixture_learning_rate", "FLOAT")] = None
    width: Annotated[int | Literal["auto"] | None, _part("width", "INT|auto")] = None
    on_error: Literal["raise", "continue"] = "raise"


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where results go, and how often the model is evaluated.

    Attributes:
        eval_every: Rounds between evaluations on all training and test examples, at least 1.
        patience: Stop when --patience-metric has not improved for so many rounds, at least 1. By
            default the run goes on.
        patience_metric: Split and metric that --patience looks at, such as train/accuracy.
        seed: Of the partition, the initial model and the training; in [0, 2^32).
        output: Folder for the results.
        overwrite: Replace an earlier run in --output.
        checkpoint_every: Rounds between checkpoints, at least 1, of which the newest is kept; one
            is written at the end as well, be the run done or interrupted. By default none are.
        resume: Continue the run in this folder from its newest checkpoint, with its options. On the
            command line go only --rounds and what changes no results.
        config: Read options from a TOML file, one `option = value` a line with _ for -. The command
            line overrides it. Every run writes such a file, config.toml, to repeat it.
        no_cache: Compile anew. By default compiled programs are kept in the user's cache folder, at
            most 1 GB, and the next run of the kind finds them.
        debug: Run without compilation, slowly, and show where an error comes from.
    """

    eval_every: int = 10
    patience: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    patience_metric: Annotated[
        str | None,
        tyro.conf.arg(metavar="SPLIT/METRIC", help_behavior_hint="(default: the test's loss)"),
    ] = None
    seed: int = 0
    output: Annotated[
        Path | None,
        tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: runs/DATASET-ALGORITHM-DATE)"),
    ] = None
    overwrite: bool = False
    checkpoint_every: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = (
        None
    )
    resume: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE.toml", help_behavior_hint="")] = None
    no_cache: bool = False
    debug: bool = False


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """All options of a training run."""

    data: DataOptions = DataOptions()
    table: TableOptions = TableOptions()
    files: ClientFileOptions = ClientFileOptions()
    model: ModelOptions = ModelOptions()
    training: AlgorithmOptions = AlgorithmOptions()
    run: RunOptions = RunOptions()


_NOT_IN_TOML = ("config", "debug", "no_cache", "resume")
_NOT_REPEATED = ("output", "overwrite", *_NOT_IN_TOML)


def flat(options: TrainOptions) -> dict[str, Any]:
    """Options by name; the names of the groups differ, so they need no prefix.

    >>> flat(TrainOptions())["rounds"]
    100
    """
    return {
        field.name: getattr(group, field.name)
        for group in (getattr(options, each.name) for each in dataclasses.fields(options))
        for field in dataclasses.fields(group)
    }


def replaced(options: TrainOptions, values: Mapping[str, Any]) -> TrainOptions:
    """The same options with these values, by name."""
    groups = {}
    for each in dataclasses.fields(options):
        group = getattr(options, each.name)
        names = {field.name for field in dataclasses.fields(group)}
        own = {name: value for name, value in values.items() if name in names}
        groups[each.name] = dataclasses.replace(group, **own)
    return TrainOptions(**groups)


def resolve(options: TrainOptions) -> TrainOptions:
    """Fill in the defaults of what was chosen.

    Raises:
        ValueError: an option that does not belong to what was chosen.

    >>> resolve(TrainOptions()).data.alpha
    0.3
    """
    values = flat(options)
    by_client = has_clients(options.data.dataset)
    values["partition"] = values["partition"] or ("by_group" if by_client else "dirichlet")
    chosen = dict(values)
    for name, (choice, defaults) in DEFAULTS.items():
        if values[name] is None:
            values[name] = defaults.get(values[choice])
        elif values[choice] not in defaults:
            raise ValueError(
                f"{flag(name)} belongs to {flag(choice)} {' or '.join(defaults)}, but {choice} is "
                f"{values[choice]!r}: leave {name} out (on the command line, {flag(name)} None)."
            )
    if chosen["local_steps"] is not None:
        if chosen["epochs"] is not None:
            raise ValueError(
                f"give --epochs or --local-steps, not both: {chosen['epochs']:g} and "
                f"{chosen['local_steps']}. To undo one of a file, write --epochs None."
            )
        values["epochs"] = None
    is_own = is_table(options.data.dataset)
    if is_own != (options.data.label is not None):
        raise ValueError(
            "--label names the column with the labels in a table of your own (FILE.csv, .tsv, .txt "
            f"or .parquet), and belongs to it alone: got --dataset {options.data.dataset} and "
            f"--label {checks.shown(options.data.label)}."
        )
    for group, takes_it, what in (
        (options.table, is_own or by_client, "a table of your own"),
        (options.files, by_client, "files that have clients (KIND:PATH)"),
    ):
        useless = [flag(name) for name, value in vars(group).items() if value is not None]
        if useless and not takes_it:
            raise ValueError(
                f"{', '.join(useless)}: for {what} only, but --dataset is {options.data.dataset}."
            )
    return replaced(options, values)


def has_clients(dataset: str) -> bool:
    """Whether --dataset is KIND:PATH, files of the user's own that have clients.

    >>> has_clients("leaf:data/femnist"), has_clients("tfds:mnist"), has_clients("C:/mine.csv")
    (True, False, False)
    """
    kind, colon, _ = dataset.partition(":")
    return bool(colon) and len(kind) > 1 and kind != "tfds"  # one letter is a drive's


def is_table(dataset: str) -> bool:
    """Whether --dataset is a table of the user's own.

    >>> is_table("data/Patients.CSV.gz"), is_table("adult")
    (True, False)
    """
    return not has_clients(dataset) and (
        re.search(r"\.(csv|tsv|txt|parquet|pq)(\.(gz|bz2|xz|zst))?$", dataset.lower()) is not None
    )


def resumed(path: str | os.PathLike[str]) -> TrainOptions:
    """The options of the run in a folder, to continue it.

    Raises:
        FileNotFoundError: there is no run in it.
        ValueError: it was told to make no checkpoints.
    """
    path = Path(path).expanduser()
    if not (path / "config.toml").is_file():
        raise FileNotFoundError(f"--resume {path}: there is no run in it, for lack of config.toml.")
    options = load_toml(path / "config.toml")
    if options.run.checkpoint_every is None:
        raise ValueError(
            f"--resume {path}: that run had no --checkpoint-every, so it left no checkpoint to "
            f"continue from. Repeat it from the start: --config {path / 'config.toml'}."
        )
    return replaced(options, {"resume": path, "output": path})


_NEW_AT_RESUME = (
    *("rounds", "width", "on_error", "eval_every", "checkpoint_every"),
    *("patience", "patience_metric"),
    *("resume", "debug", "no_cache"),
)


def check_resumed(options: TrainOptions) -> None:
    """Raise if a run that is continued was given options that are not those it began with."""
    if options.run.resume is None:
        return
    began, now = flat(resumed(options.run.resume)), flat(options)
    changed = [flag(n) for n in now if now[n] != began[n] and n not in _NEW_AT_RESUME]
    if changed:
        raise ValueError(
            f"--resume continues a run as it began: leave out {', '.join(changed)}. For a run of "
            f"its own: --config {options.run.resume / 'config.toml'}."
        )
    if options.run.checkpoint_every is None:
        raise ValueError("--checkpoint-every None: a run that is continued keeps its checkpoints.")


def load_toml(path: str | os.PathLike[str]) -> TrainOptions:
    """Read options from a TOML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML, an unknown option, or a value of the wrong type; each names the file.
    """
    path = Path(path).expanduser()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no configuration file {path}.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}.") from error
    kinds = {n: kind for n, kind in kinds_of(TrainOptions).items() if n not in _NOT_IN_TOML}
    for name, value in values.items():
        if isinstance(value, dict):
            table = checks.printable(name)
            raise ValueError(
                f"{path} has a table [{table}]: write all options at the top, without tables."
            )
        if name not in kinds:
            near = checks.nearest(name, kinds)
            raise ValueError(f"{path} has an unknown option {checks.shown(name)}.{near}")
        values[name] = converted(f"{path}: {name}", value, kinds[name], RANGES.get(name))
    return replaced(TrainOptions(), values)


def dump_toml(options: TrainOptions) -> str:
    """Write options as TOML that `load_toml` reads, without those of one particular run.

    Left out are the output folder and what does not change the results.

    >>> print(dump_toml(TrainOptions()).splitlines()[:2])
    ['dataset = "fashion_small"', 'model = "mlp"']
    """
    values = {name: value for name, value in flat(options).items() if name not in _NOT_REPEATED}
    lines = [f"{name} = {_toml(value)}\n" for name, value in values.items() if value is not None]
    return "".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, int | float):
        return repr(value)
    # TOML's strings are JSON's, but for one control character.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")

"""Tables of anybody's: CSV, Parquet and data frames, as inputs, labels and groups."""

import datetime
import re
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjax_sim.data._files import StrPath
from fedjax_sim.data.datasets import _table_columns, _table_files
from fedjax_sim.data.datasets._table_columns import Column, Quantity, Written
from fedjax_sim.data.datasets._table_files import Table, listed
from fedjax_sim.data.datasets.dataset import Dataset, from_arrays
from fedjax_sim.ops import checks

LabelTask = Literal["auto", "classification", "regression"]
Scaling = Literal["minmax", "standard", "none"]
Fill = Literal["refuse", "drop", "mean", "median"]

_FEW = 20  # so many integers may be classes, so many texts may all be different
_MANY_CATEGORIES = 1_000
_LONG_TEXT = 200  # characters; longer is no category and no name


def from_table(
    train: Any,
    test: Any = None,
    *,
    label_column: str,
    feature_columns: Sequence[str] | None = None,
    categorical_columns: Sequence[str] = (),
    numeric_columns: Sequence[str] = (),
    group_columns: Sequence[str] = (),
    ignore_columns: Sequence[str] = (),
    task: LabelTask = "auto",
    scaling: Scaling = "minmax",
    missing: Sequence[str] = ("", "?"),
    fill: Fill = "refuse",
    decimal: Literal[".", ","] = ".",
    thousands: str | None = None,
    date_format: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    name: str | None = None,
) -> Dataset:
    """Make a data set of a table: a CSV or Parquet file, a data frame, or a pyarrow table.

    What a column is follows from its training values, in text as in typed columns:

    - Numbers are scaled. "5%" is 0.05. Numbers with zeros in front ("01234") are refused: they are
      codes or quantities, which `categorical_columns` or `numeric_columns` says.
    - Dates and times such as 2024-05-31 or 2024-05-31T12:00+02:00 become days since 1970 (UTC), and
      the feature is named "column [days]"; times of a day and durations such as 7:30 or 7:30:15
      become hours, "column [hours]". Dates of another form need `date_format`.
    - Other text, and booleans, are one-hot with the categories of the training rows; a category of
      the test rows only, or a missing one, is a block of zeros. Numbers listed in
      `categorical_columns` are compared by value: 1 and 1.0 are one category.
    - A mixture of numbers and text, numbers with units, identifiers (a column named "id", "x_id" or
      nothing), free text, and columns of lists are refused: the message names the column, the row,
      the value, and the options. The index of a pandas frame is no feature.

    The labels are classes if they are text, booleans or few different integers (at most 10, or at
    most 20 with two rows each on average), in order; they are the targets of a regression if they
    have decimals. More integers may be either: say by `task`.

    Args:
        train: the training rows, or all rows: a path, a pandas or polars data frame, a
            pyarrow.Table, a dict of columns. Files that begin as Parquet does are read as such, all
            others as text whose first line names the columns, .gz, .bz2, .xz and .zst decompressed.
        test: the test rows. By default a random `test_fraction` of the rows of `train`.
        label_column: the column with the labels.
        feature_columns: the inputs; by default all but the label, the groups and what is ignored.
        categorical_columns: columns to one-hot even if they hold numbers (a postcode); if the label
            is listed, its values are classes.
        numeric_columns: columns that must hold quantities; true and yes are 1, false and no are 0.
            If the label is listed, it is the target of a regression.
        group_columns: columns to keep as groups, e.g. the client. They are inputs only if listed
            in `feature_columns` as well. A missing value is the group "?".
        ignore_columns: columns to leave out.
        task: "classification", "regression", or "auto".
        scaling: of quantities, by the training rows: "minmax" to [0, 1], "standard" to mean 0 and
            standard deviation 1, or "none". A constant column becomes 0, unless "none".
        missing: how a missing value is written; nulls and NaN are missing too.
        fill: what is done with rows where a quantity is missing: "refuse" them; "drop" all rows
            with a missing value of any kind, label included; or put the "mean" or "median" of the
            training rows there, with a further feature "column=?" that is 1 there, where training
            rows miss it.
        decimal: what divides decimals, "." or ",".
        thousands: what divides thousands, such as "," or "." or " "; by default nothing.
        date_format: how dates are written unless as 2024-05-31, in the codes of Python's strptime:
            "%d.%m.%Y", "%m/%d/%Y %H:%M", "%Y%m%d".
        delimiter: of text files, one character. By default the one of "," ";" "|" and the tabulator
            that divides the first line.
        encoding: of text files, such as "latin-1". By default UTF-8, or what a byte order mark
            says.
        test_fraction: in (0, 1), used without `test`.
        seed: of the random test rows.
        name: by default the file's name.

    Returns:
        A Dataset of float32 inputs [M, D], with feature names such as "age" and "sex=Female".
        Groups are text.

    Raises:
        FileNotFoundError: no such file.
        TypeError: what is no path and no table; a name where a list of names belongs.
        ValueError: a column that does not exist or cannot be used as it is; each names the file,
            the line and the column.

    Cost: memory in proportion to the file, plus float32 inputs.

    >>> table = {"age": [31, 52, 44, 67, 29], "smokes": ["no", "yes", "no", "no", "yes"],
    ...          "ill": ["no", "yes", "no", "yes", "no"]}
    >>> data = from_table(table, label_column="ill")
    >>> data.feature_names, data.class_names, data.train["x"].shape
    (('age', 'smokes=no', 'smokes=yes'), ('no', 'yes'), (4, 3))
    """
    checks.count("seed", seed)
    checks.one_of("scaling", scaling, typing.get_args(Scaling))
    checks.one_of("fill", fill, typing.get_args(Fill))
    checks.one_of("task", task, typing.get_args(LabelTask))
    _check_lists(
        feature_columns=feature_columns,
        categorical_columns=categorical_columns,
        numeric_columns=numeric_columns,
        group_columns=group_columns,
        ignore_columns=ignore_columns,
        missing=missing,
    )
    _check_texts(
        label_column=label_column,
        thousands=thousands,
        date_format=date_format,
        delimiter=delimiter,
        encoding=encoding,
        name=name,
    )
    written = _written(missing, decimal, thousands, date_format)
    table = _table_files.read("train", train, delimiter, encoding)
    features = feature_columns
    if features is None:
        apart = {label_column, *group_columns, *ignore_columns, *table.index_columns}
        features = [column for column in table.columns.column_names if column not in apart]
    used = [label_column, *features, *group_columns]
    declared = [*categorical_columns, *numeric_columns]
    _check_columns(table, [*used, *declared, *ignore_columns])
    _check_roles(table, label_column, features, declared, {*used} & {*ignore_columns})
    table = _only(table, used, written, fill)

    def of(rows: Table, column: str) -> Column:
        return _table_columns.column(rows, column, written)

    if test is None:
        table, test_table = _hold_out(table, test_fraction, seed)
    else:
        test_table = _table_files.read("test", test, delimiter, encoding)
        _check_columns(test_table, used)
        test_table = _only(test_table, used, written, fill)

    declared_as = dict.fromkeys(categorical_columns, "category")
    declared_as |= dict.fromkeys(numeric_columns, "quantity")
    declared_as |= {
        column: "feature" for column in feature_columns or () if column not in declared_as
    }
    encoders = _features(
        (of(table, column) for column in features), declared_as, scaling=scaling, fill=fill
    )
    labels = _labels(
        of(table, label_column),
        task,
        is_category=label_column in categorical_columns,
        is_quantity=label_column in numeric_columns,
    )
    groups = {column: _group(of(table, column)) for column in group_columns}

    def inputs(rows: Table) -> np.ndarray:
        x = np.empty((len(rows.rows), sum(len(each.names) for each in encoders)), np.float32)
        start = 0
        for column, encoder in zip(features, encoders, strict=True):
            stop = start + len(encoder.names)
            x[:, start:stop] = encoder.encode(of(rows, column))
            start = stop
        return x

    return from_arrays(
        inputs(table),
        labels.encode(of(table, label_column)),
        inputs(test_table),
        labels.encode(of(test_table, label_column)),
        name=name or _name(train),
        class_names=tuple(labels.names),
        train_groups={column: encode(of(table, column)) for column, encode in groups.items()},
        test_groups={column: encode(of(test_table, column)) for column, encode in groups.items()},
        feature_names=[name for encoder in encoders for name in encoder.names],
        task="classification" if labels.names else "regression",
    )


def from_csv(train_path: StrPath, test_path: StrPath | None = None, **options: Any) -> Dataset:
    """Make a data set of CSV files: `from_table`, whose options it takes, of two paths."""
    return from_table(train_path, test_path, **options)


def scaler(train: np.ndarray, scaling: str) -> Callable[[np.ndarray], np.ndarray]:
    """How to scale [M, D] values to float32 by the statistics of the columns of `train`."""
    if scaling == "none":
        return lambda values: values.astype(np.float32)
    known = train.astype(np.float64)
    low, high = known.min(axis=0), known.max(axis=0)
    shift, scale = (
        (low, high - low) if scaling == "minmax" else (known.mean(axis=0), known.std(axis=0))
    )
    # The standard deviation of equal numbers is what rounding leaves, that of tiny ones is 0.
    constant = (low == high) | (scale == 0)
    scale = np.where(constant, 1, scale)
    return lambda values: np.where(constant, 0, (values - shift) / scale).astype(np.float32)


def _check_lists(**lists: Sequence[str] | None) -> None:
    for argument, values in lists.items():
        if isinstance(values, str):
            raise TypeError(
                f"{argument} must be a list such as [{checks.shown(values)}], got "
                f"{checks.shown(values)}"
            )
        if not isinstance(values, Iterable | None):
            raise TypeError(f"{argument} must be a list of text, got {checks.shown(values)}")
        for value in values or ():
            if not isinstance(value, str):
                raise TypeError(
                    f"{argument} must be a list of text, got {checks.shown(value)} in it"
                )
        if len({*(values or ())}) < len([*(values or ())]):
            raise ValueError(f"{argument} lists a name twice: {checks.shown(values)}")


def _check_texts(**texts: str | None) -> None:
    for argument, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{argument} must be text, got {checks.shown(value)}")


def _written(
    missing: Sequence[str], decimal: str, thousands: str | None, date_format: str | None
) -> Written:
    checks.one_of("decimal", decimal, (".", ","))
    if thousands is not None and not re.fullmatch(r"[^\w+%-]|_", thousands):
        raise ValueError(
            f"thousands must be one mark such as ',' or '.' or ' ', got {checks.shown(thousands)}"
        )
    if thousands == decimal:
        raise ValueError(
            f"decimal and thousands are both {decimal!r}: one of them must be another mark"
        )
    if date_format is not None:
        some = datetime.datetime(2024, 5, 31, 12, tzinfo=datetime.UTC)
        try:
            datetime.datetime.strptime(some.strftime(date_format), date_format)
        except ValueError as error:
            raise ValueError(
                "date_format must be written in the codes of Python's strptime, such as "
                f"'%d.%m.%Y', got {checks.shown(date_format)} ({error})"
            ) from error
    return Written(tuple(missing), decimal, thousands, date_format)


def _check_columns(table: Table, named: Iterable[str]) -> None:
    names = table.columns.column_names
    hint = "With one column only: set delimiter to what divides them." * (len(names) == 1)
    known = {*names}
    for column in (each for each in named if each not in known):
        checks.one_of(f"column of {table.name}", column, names, hint=hint)


def _check_roles(
    table: Table,
    label: str,
    features: Sequence[str],
    declared: Sequence[str],
    contradicted: Collection[str],
) -> None:
    if contradicted:
        raise ValueError(
            f"{table.name}: {listed([*contradicted])} cannot be used and be in ignore_columns"
        )
    if label in features:
        raise ValueError(f"the label {checks.shown(label)} is among the feature_columns")
    if not features:
        raise ValueError(
            f"no feature columns are left in {table.name}: it has "
            f"{listed(table.columns.column_names)}"
        )
    for column in declared:
        if column not in (label, *features) or declared.count(column) > 1:
            raise ValueError(
                f"column {checks.shown(column)} of {table.name} is listed in categorical_columns "
                "or numeric_columns: that is for features and the label only, and in one of the two"
            )


def _only(table: Table, used: Sequence[str], written: Written, fill: str) -> Table:
    """The columns that are used, and if told so only the rows that miss nothing there."""
    table = table._replace(columns=table.columns.select(list(dict.fromkeys(used))))
    if fill != "drop":
        return table
    kept = np.ones(len(table.rows), bool)
    for column in table.columns.column_names:
        kept &= _table_columns.column(table, column, written).codes >= 0
    if not kept.any():
        raise ValueError(f"{table.name} has no row without a missing value: fill='drop' drops all")
    return table.filter(kept)


def _hold_out(table: Table, test_fraction: float, seed: int) -> tuple[Table, Table]:
    checks.in_range("test_fraction", test_fraction, 0, 1)
    num_rows = len(table.rows)
    num_test = round(test_fraction * num_rows)
    if not 0 < num_test < num_rows:
        raise ValueError(
            f"test_fraction={test_fraction} of {num_rows} rows leaves no rows for training or for "
            "testing; change it, or give test rows of their own"
        )
    is_test = np.zeros(num_rows, bool)
    is_test[np.random.default_rng(seed).permutation(num_rows)[:num_test]] = True
    return table.filter(~is_test), table.filter(is_test)


def _name(source: Any) -> str:
    if not isinstance(source, str) and not hasattr(source, "__fspath__"):
        return "table"
    path = _table_files.Path(source)
    return (path.with_suffix("") if path.suffix in _table_files.COMPRESSED else path).stem


# ---------------------------------------------------------------- features


class _Feature(NamedTuple):
    """Columns of x: their names, and how a column of the table becomes them, [M, len(names)]."""

    names: list[str]
    encode: Callable[[Column], np.ndarray]


def _features(
    columns: Iterable[Column], declared_as: Mapping[str, str], *, scaling: str, fill: str
) -> list[_Feature]:
    """All features; what is wrong with several columns is said at once."""
    features: list[_Feature] = []
    wrong: dict[str, ValueError] = {}
    for column in columns:
        try:
            features.append(_feature(column, declared_as.get(column.name), scaling, fill))
        except ValueError as error:
            wrong[column.name] = error
    if len(wrong) == 1:
        raise next(iter(wrong.values()))
    if wrong:
        reasons = [f"- {error}" for error in wrong.values()]
        others = f"\nand so with {listed([*wrong][3:])}" * (len(wrong) > 3)
        raise ValueError(
            f"{len(wrong)} columns cannot be inputs as they are:\n"
            + "\n".join(reasons[:3])
            + others
        )
    return features


def _feature(train: Column, declared: str | None, scaling: str, fill: str) -> _Feature:
    if not len(train.distinct):
        raise ValueError(f"{train.title} holds no values; leave it out")
    if declared == "category":
        return _one_hot(train)
    if declared is None:
        _refuse_named_identifier(train)
    is_quantity = declared == "quantity"
    found = None
    if is_quantity or not train.is_category:
        found = _table_columns.quantity(train, declared=is_quantity)
        if found is None:
            _table_columns.refuse_disguised(train)
    if found is None:
        _refuse_identifier(train)
        return _one_hot(train)
    code = _table_columns.leading_zeros(train)
    if code is not None and found.what == "numbers" and not is_quantity:
        raise ValueError(
            f"{train.place(code)} holds numbers with zeros in front, such as {train.text(code)}. "
            "List the column in categorical_columns if they are codes, in numeric_columns if they "
            "are quantities"
        )
    return _quantity(train, found, scaling, fill)


def _quantity(train: Column, how: Quantity, scaling: str, fill: str) -> _Feature:
    def read(column: Column) -> np.ndarray:
        values = how.read(column)
        num_missing = np.count_nonzero(np.isnan(values))
        if num_missing and fill == "refuse":
            raise ValueError(
                f"{column.place(-1)} is numeric, but here the value is missing "
                f"({num_missing:,} such rows). Set fill to 'mean', 'median' or 'drop', or list the "
                "column in ignore_columns or categorical_columns"
            )
        return values[:, None]

    known = read(train)
    present = known[~np.isnan(known)]
    marks = len(present) < len(known)
    substitute = np.median(present) if fill == "median" else np.mean(present)
    scale = scaler(present[:, None], scaling)

    def encode(column: Column) -> np.ndarray:
        values = read(column)
        absent = np.isnan(values)
        x = scale(np.where(absent, substitute, values))
        return np.concatenate([x, absent], axis=1) if marks else x

    names = [f"{train.name}{how.unit}", f"{train.name}=?"]
    return _Feature(names if marks else names[:1], encode)


def _one_hot(train: Column) -> _Feature:
    names_of = _table_columns.naming(train)
    levels = _table_columns.in_order({*names_of(train)})
    place = {level: i for i, level in enumerate(levels)}

    def encode(column: Column) -> np.ndarray:
        places = column.rows(np.array([place.get(n, -1) for n in names_of(column)], np.int64), -1)
        rows = np.flatnonzero(places >= 0)
        x = np.zeros((len(places), len(levels)), np.float32)
        x[rows, places[rows]] = 1
        return x

    return _Feature([f"{train.name}={level}" for level in levels], encode)


def _refuse_identifier(train: Column) -> None:
    """Raise for text that tells rows apart, or tells a story, and so is no category."""
    num_values, num_present = len(train.distinct), np.count_nonzero(train.codes >= 0)
    longest = _table_columns.longest(train)
    all_different = num_values > _FEW and num_values > num_present / 2
    if num_values > _MANY_CATEGORIES or all_different or longest > _LONG_TEXT:
        raise ValueError(
            f"{train.title} has {num_values:,} different values in "
            f"{num_present:,} rows, the longest of {longest:,} characters, such as "
            f"{train.text(0)}: it looks like an identifier or free text. Put it in "
            "ignore_columns, in group_columns if its values are the clients, or in "
            "categorical_columns to have it one-hot all the same"
        )


_IDENTIFIER = re.compile(r"|unnamed: *\d+|index|rownames|(.*[^a-z])?(uu)?id", re.IGNORECASE)
_CAMEL_CASE_IDENTIFIER = re.compile(r".*[a-z]I[Dd]")


def _refuse_named_identifier(train: Column) -> None:
    """Raise for "id", "patient_id", "" and the like, which nobody means as an input."""
    if _IDENTIFIER.fullmatch(train.name) or _CAMEL_CASE_IDENTIFIER.fullmatch(train.name):
        what = "is by its name an identifier" if train.name else "has no name, as an index has none"
        raise ValueError(
            f"{train.title} {what}. List it in ignore_columns to leave it out, in group_columns if "
            "its values are the clients, or in numeric_columns or categorical_columns if it is an "
            "input"
        )


# ---------------------------------------------------------------- labels and groups


class _Labels(NamedTuple):
    """Names of classes, none for a regression; and how the label column becomes y."""

    names: list[str]
    encode: Callable[[Column], np.ndarray]


def _labels(train: Column, task: str, *, is_category: bool, is_quantity: bool) -> _Labels:
    if not len(train.distinct):
        raise _no_label(train)
    if task == "auto" and (is_category or is_quantity):
        task = "classification" if is_category else "regression"
    if task != "classification":
        found = _table_columns.quantity(train, declared=is_quantity)
        if found is not None and (task == "regression" or _is_target(train, found)):
            return _targets(found)
        if found is None:
            _table_columns.refuse_disguised(train)
            if task == "regression":
                raise _table_columns.stray(train, "quantities", 0)
            _refuse_label_text(train)
    return _classes(train)


def _is_target(train: Column, how: Quantity) -> bool:
    """Whether quantities as labels are the targets of a regression rather than classes."""
    values = how.parse(train.distinct, train.written)
    if how.what == "numbers" and (values % 1 == 0).all():
        num_labels = np.count_nonzero(train.codes >= 0)
        if len(values) <= _FEW / 2 or len(values) <= min(_FEW, num_labels / 2):
            return False
        raise ValueError(
            f"{train.title}: the labels are {len(values):,} different integers in "
            f"{num_labels:,} rows, which may be classes or quantities. Set task to "
            "'classification' or 'regression'"
        )
    if how.what == "numbers":
        return True
    raise ValueError(
        f"{train.title}: the labels are {how.what}, such as "
        f"{train.text(0)}. Set task to 'regression' to learn them as quantities, or to "
        "'classification'"
    )


def _targets(how: Quantity) -> _Labels:
    def encode(column: Column) -> np.ndarray:
        targets = how.read(column)
        if np.isnan(targets).any():
            raise _no_label(column)
        return targets

    return _Labels([], encode)


def _classes(train: Column) -> _Labels:
    names_of = _table_columns.naming(train)
    classes = _table_columns.in_order({*names_of(train)})
    place = {name: i for i, name in enumerate(classes)}

    def encode(column: Column) -> np.ndarray:
        if (column.codes < 0).any():
            raise _no_label(column)
        found = np.array([place.get(name, -1) for name in names_of(column)], np.int64)
        if (found < 0).any():
            unknown = int(np.argmin(found))
            raise ValueError(
                f"{column.at(unknown)}: the label {column.text(unknown)} does not occur in the "
                f"training rows, which have {listed(classes)}. Add rows with it, or, if labels are "
                "quantities, set task to 'regression'"
            )
        return column.rows(found, -1)

    return _Labels(classes, encode)


def _no_label(column: Column) -> ValueError:
    return ValueError(
        f"{column.at(-1)}: no label in column {checks.shown(column.name)} "
        f"({np.count_nonzero(column.codes < 0):,} such rows). Remove them, or set fill to 'drop'"
    )


def _refuse_label_text(train: Column) -> None:
    num_values = len(train.distinct)
    if num_values > _MANY_CATEGORIES or (num_values > _FEW and num_values > len(train.codes) / 2):
        raise ValueError(
            f"{train.title}: the labels have {num_values:,} "
            f"different values in {len(train.codes):,} rows, such as {train.text(0)}. Set task to "
            "'classification' if they are classes"
        )


def _group(train: Column) -> Callable[[Column], np.ndarray]:
    names_of = _table_columns.naming(train)

    def encode(column: Column) -> np.ndarray:
        longest = _table_columns.longest(column)
        if longest > _LONG_TEXT:
            raise ValueError(
                f"{column.title} has a value of {longest:,} "
                f"characters, and no group has a name of more than {_LONG_TEXT}"
            )
        return column.rows(np.array(names_of(column), str), "?")

    return encode

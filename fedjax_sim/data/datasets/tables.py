"""Tables: the Adult census data, and people's own CSV files."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_sim.data._files import StrPath, existing, reading
from fedjax_sim.data.datasets.dataset import Dataset, from_arrays, read_shipped
from fedjax_sim.ops import checks

# The categories in the order of UCI's adult.names, so that column 21 of the one-hot features is
# "Doctorate", as in the published experiments.
_LEVEL_LISTS = {
    "workclass": "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov "
    "Without-pay Never-worked",
    "education": "Bachelors Some-college 11th HS-grad Prof-school Assoc-acdm Assoc-voc 9th 7th-8th "
    "12th Masters 1st-4th 10th Doctorate 5th-6th Preschool",
    "marital-status": "Married-civ-spouse Divorced Never-married Separated Widowed "
    "Married-spouse-absent Married-AF-spouse",
    "occupation": "Tech-support Craft-repair Other-service Sales Exec-managerial Prof-specialty "
    "Handlers-cleaners Machine-op-inspct Adm-clerical Farming-fishing Transport-moving "
    "Priv-house-serv Protective-serv Armed-Forces",
    "relationship": "Wife Own-child Husband Not-in-family Other-relative Unmarried",
    "race": "White Asian-Pac-Islander Amer-Indian-Eskimo Other Black",
    "sex": "Female Male",
    "native-country": "United-States Cambodia England Puerto-Rico Canada Germany "
    "Outlying-US(Guam-USVI-etc) India Japan Greece South China Cuba Iran Honduras Philippines "
    "Italy Poland Jamaica Vietnam Mexico Portugal Ireland France Dominican-Republic Laos Ecuador "
    "Taiwan Haiti Columbia Hungary Guatemala Nicaragua Scotland Thailand Yugoslavia El-Salvador "
    "Trinadad&Tobago Peru Hong Holand-Netherlands",
}
ADULT_LEVELS = {column: tuple(levels.split()) for column, levels in _LEVEL_LISTS.items()}
_NUMBERS = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")
_HEADER = (
    "age workclass fnlwgt education education-num marital-status occupation relationship race sex "
    "capital-gain capital-loss hours-per-week native-country"
)
_ADULT_ROWS = {"train": 32_561, "test": 16_281}
_MISSING = 255


def adult(features: str = "categorical", *, folder: StrPath | None = None) -> Dataset:
    """UCI Adult (census income): does a person earn more than 50,000 dollars a year?

    "categorical" are the features of agnostic federated learning: the 8 categorical columns
    one-hot, blocks of 8, 16, 7, 14, 6, 5, 2 and 41 columns, 99 in all, a missing value ("?") an
    all-zero block, all 32,561 / 16,281 rows. "mixed" are the 104 features of the adversarial-lens
    paper: 6 numbers scaled to [0, 1] on the training set and 98 one-hot columns, complete rows
    only, 30,162 / 15,060. One-hot columns are the categories that occur in the training rows.

    The groups are the raw categorical columns ("education", "race", ...) and "doctorate", whose
    values are "doctorate" (413 / 181 rows) and "non-doctorate": the two clients of the paper.

    Args:
        features: "categorical" or "mixed".
        folder: a folder with UCI's own adult.data and adult.test. By default the copy of the same
            rows that ships with the package is read.

    Returns:
        A Dataset of float32 inputs [M, 99] or [M, 104] and two classes.

    Raises:
        ValueError: unknown features; a damaged, incomplete or unexpected file.
        FileNotFoundError: no adult.data or adult.test in the folder.

    References:
        Becker and Kohavi, "Adult", UCI Machine Learning Repository, 1996, CC BY 4.0.
        Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, section 5.
        Bhagoji et al., "Analyzing Federated Learning through an Adversarial Lens", ICML 2019.

    >>> adult().train["x"].shape, adult("mixed").train["x"].shape
    ((32561, 99), (30162, 104))
    """
    checks.one_of("features", features, ("categorical", "mixed"))
    arrays = read_shipped("adult.npz.xz") if folder is None else read_uci_adult(folder)
    codes = {split: arrays[f"{split}_codes"] for split in _ADULT_ROWS}
    numbers = {split: arrays[f"{split}_numbers"] for split in _ADULT_ROWS}
    labels = {split: arrays[f"{split}_labels"] for split in _ADULT_ROWS}
    if features == "mixed":
        for split in _ADULT_ROWS:
            complete = (codes[split] != _MISSING).all(axis=1)
            codes[split] = codes[split][complete]
            numbers[split] = numbers[split][complete]
            labels[split] = labels[split][complete]

    groups: dict[str, dict[str, np.ndarray]] = {"train": {}, "test": {}}
    blocks: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    names: list[str] = []
    if features == "mixed":
        blocks["train"].append(_scaled(numbers["train"], numbers["train"], "minmax"))
        blocks["test"].append(_scaled(numbers["test"], numbers["train"], "minmax"))
        names += _NUMBERS
    for i, (column, levels) in enumerate(ADULT_LEVELS.items()):
        used = np.intersect1d(codes["train"][:, i], np.arange(len(levels)))
        names += [f"{column}={levels[code]}" for code in used]
        for split in _ADULT_ROWS:
            blocks[split].append(_one_hot(codes[split][:, i], used))
            known = np.minimum(codes[split][:, i], len(levels))
            groups[split][column] = np.array([*levels, "?"])[known]
    for split in _ADULT_ROWS:
        is_doctorate = groups[split]["education"] == "Doctorate"
        groups[split]["doctorate"] = np.where(is_doctorate, "doctorate", "non-doctorate")
    return from_arrays(
        np.concatenate(blocks["train"], axis=1),
        labels["train"],
        np.concatenate(blocks["test"], axis=1),
        labels["test"],
        name="adult",
        class_names=("<=50K", ">50K"),
        train_groups=groups["train"],
        test_groups=groups["test"],
        feature_names=names,
    )


def read_uci_adult(folder: StrPath) -> dict[str, np.ndarray]:
    """Read UCI's adult.data and adult.test as small arrays, the content of the shipped file.

    Args:
        folder: where the two files are.

    Returns:
        For each split: `train_codes` [M, 8] uint8 indices into `ADULT_LEVELS` (255 for "?"),
        `train_numbers` [M, 6] int32, `train_labels` [M] uint8, and `test_...` alike.
    """
    hint = "Adult needs UCI's adult.data and adult.test; without folder= the shipped copy is read"
    arrays: dict[str, np.ndarray] = {}
    for split, file in (("train", "adult.data"), ("test", "adult.test")):
        path = existing("folder", Path(folder) / file, hint)
        parsed = (_parse_adult(line, path, i) for i, line in enumerate(_lines(path), start=1))
        rows = [row for row in parsed if row is not None]
        if len(rows) != _ADULT_ROWS[split]:
            raise ValueError(
                f"{path} has {len(rows):,} rows; UCI's has {_ADULT_ROWS[split]:,}. It is "
                "truncated or another file: get it again, or read your own with from_csv"
            )
        codes, numbers, labels = zip(*rows, strict=True)
        arrays[f"{split}_codes"] = np.array(codes, np.uint8)
        arrays[f"{split}_numbers"] = np.array(numbers, np.int32)
        arrays[f"{split}_labels"] = np.array(labels, np.uint8)
    return arrays


def _lines(path: Path) -> list[str]:
    with reading(path):
        return path.read_text(encoding="ascii").splitlines()


def _parse_adult(line: str, path: Path, number: int) -> tuple[list[int], list[int], int] | None:
    if not line.strip() or line.startswith("|"):  # the comment that opens adult.test
        return None
    *fields, income = (field.strip() for field in line.split(","))
    record = dict(zip(_HEADER.split(), fields, strict=False))
    try:
        codes = [
            _MISSING if record[column] == "?" else levels.index(record[column])
            for column, levels in ADULT_LEVELS.items()
        ]
        numbers = [int(record[column]) for column in _NUMBERS]
        label = ("<=50K", ">50K").index(income.removesuffix("."))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path}, line {number}: not a row of UCI Adult ({error}): {line!r}. Get the file again"
        ) from error
    return codes, numbers, label


def from_csv(
    train_path: StrPath,
    test_path: StrPath | None = None,
    *,
    label_column: str,
    feature_columns: Sequence[str] | None = None,
    categorical_columns: Sequence[str] = (),
    group_columns: Sequence[str] = (),
    scaling: str = "minmax",
    missing: Sequence[str] = ("", "?"),
    delimiter: str = ",",
    test_fraction: float = 0.2,
    seed: int = 0,
    name: str | None = None,
) -> Dataset:
    """Read a data set of your own from CSV files whose first line names the columns.

    A column whose training values are all numbers is scaled; one that holds none is one-hot with
    the categories of the training rows. A category seen in the test rows only, and a missing one,
    is an all-zero block. A mixture is refused, as it is most often a typing error; list the column
    in `categorical_columns` if it is meant. Classes are the labels of the training rows, in order.

    Args:
        train_path: the training rows, or all rows.
        test_path: the test rows. By default a random `test_fraction` of the rows of `train_path`.
        label_column: the column with the labels, text or numbers.
        feature_columns: the inputs; by default all but the label and the groups.
        categorical_columns: columns to one-hot even if they hold numbers (a postcode).
        group_columns: columns to keep as groups, e.g. the client. They are inputs only if listed
            in `feature_columns` as well.
        scaling: of numbers, by the training rows: "minmax" to [0, 1], "standard" to mean 0 and
            standard deviation 1, or "none". A constant column becomes 0, unless "none".
        missing: how a missing value is written.
        delimiter: one character.
        test_fraction: in (0, 1), used without `test_path`.
        seed: of the random test rows.
        name: by default the file's name.

    Returns:
        A Dataset of float32 inputs [M, D], with feature names such as "age" and "sex=Female".

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column that does not exist, a row with too few fields, a missing number, a
            label of the test rows that the training rows lack; each names file, line and column.
    """
    checks.one_of("scaling", scaling, ("minmax", "standard", "none"))
    train = _read_csv(existing("train_path", train_path), delimiter)
    if test_path is not None:
        test = _read_csv(existing("test_path", test_path), delimiter)
    else:
        train, test = _hold_out(train, test_fraction, seed)
    if feature_columns is None:
        apart = {label_column, *group_columns}
        feature_columns = [column for column in train.columns if column not in apart]
    if not feature_columns:
        raise ValueError(f"no feature columns are left in {train.path}: it has {[*train.columns]}")
    for column in (label_column, *feature_columns, *categorical_columns, *group_columns):
        for table in (train, test):
            checks.one_of(f"column of {table.path.name}", column, table.columns)

    blocks: list[tuple[np.ndarray, np.ndarray]] = []
    names: list[str] = []
    for column in feature_columns:
        if column not in categorical_columns and _is_numeric(train, column, missing):
            known = _numbers(train, column, missing)
            blocks.append(
                (
                    _scaled(known, known, scaling),
                    _scaled(_numbers(test, column, missing), known, scaling),
                )
            )
            names.append(column)
        else:
            levels = np.setdiff1d(train.columns[column], [*missing])
            _refuse_identifiers(train, column, levels, categorical_columns)
            blocks.append(
                (_one_hot(train.columns[column], levels), _one_hot(test.columns[column], levels))
            )
            names += [f"{column}={level}" for level in levels]
    classes = _classes(train, label_column, missing)
    return from_arrays(
        np.concatenate([block for block, _ in blocks], axis=1),
        _codes(train, label_column, classes),
        np.concatenate([block for _, block in blocks], axis=1),
        _codes(test, label_column, classes),
        name=name or Path(train_path).stem,
        class_names=classes,
        train_groups={column: train.columns[column] for column in group_columns},
        test_groups={column: test.columns[column] for column in group_columns},
        feature_names=names,
    )


class _Table(NamedTuple):
    path: Path
    columns: dict[str, np.ndarray]  # of text, [M] each
    lines: np.ndarray  # [M], for messages

    def take(self, rows: np.ndarray) -> "_Table":
        columns = {column: values[rows] for column, values in self.columns.items()}
        return _Table(self.path, columns, self.lines[rows])


def _read_csv(path: Path, delimiter: str) -> _Table:
    rows: list[list[str]] = []
    lines: list[int] = []
    with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        for row in reader:
            if row:
                rows.append([field.strip() for field in row])
                lines.append(reader.line_num)
    if len(rows) < 2:
        raise ValueError(f"{path} needs a line of column names and at least one row")
    header = rows.pop(0)
    del lines[0]
    if len(set(header)) != len(header):
        twice = sorted({column for column in header if header.count(column) > 1})
        raise ValueError(f"{path} has more than one column named {twice}")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {line}: {len(row)} fields where the header has {len(header)}. Is "
                f"the delimiter {delimiter!r} right, or the file truncated?"
            )
    values = np.array(rows)
    return _Table(path, {c: values[:, i] for i, c in enumerate(header)}, np.array(lines))


def _hold_out(table: _Table, test_fraction: float, seed: int) -> tuple[_Table, _Table]:
    checks.in_range("test_fraction", test_fraction, 0, 1)
    num_rows = len(table.lines)
    num_test = round(test_fraction * num_rows)
    if not 0 < num_test < num_rows:
        raise ValueError(
            f"test_fraction={test_fraction} of {num_rows} rows leaves no rows for training or for "
            "testing; change it, or give test_path"
        )
    order = np.random.default_rng(seed).permutation(num_rows)
    return table.take(np.sort(order[num_test:])), table.take(np.sort(order[:num_test]))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_numeric(table: _Table, column: str, missing: Sequence[str]) -> bool:
    present = np.flatnonzero(~np.isin(table.columns[column], [*missing]))
    if not len(present):
        raise ValueError(f"{table.path}: column {column!r} holds no values; leave it out")
    numeric = np.array([_is_number(text) for text in table.columns[column][present]])
    if numeric.any() and not numeric.all():
        row = present[~numeric][0]
        raise ValueError(
            f"{table.path}, line {table.lines[row]}: column {column!r} holds numbers, but here "
            f"{str(table.columns[column][row])!r}. Correct it, add it to missing=, or list the "
            "column in categorical_columns"
        )
    return bool(numeric.all())


def _numbers(table: _Table, column: str, missing: Sequence[str]) -> np.ndarray:
    text = table.columns[column]
    absent = np.isin(text, [*missing])
    bad = absent | ~np.array([_is_number(value) for value in text])
    values = np.where(bad, "nan", text).astype(np.float64)
    wrong = ~np.isfinite(values)
    if wrong.any():
        row = np.flatnonzero(wrong)[0]
        raise ValueError(
            f"{table.path}, line {table.lines[row]}: column {column!r} is numeric, but here "
            f"{str(text[row])!r} ({np.count_nonzero(wrong)} such rows). Fill the gaps, remove the "
            "rows, leave the column out of feature_columns, or list it in categorical_columns"
        )
    return values[:, None]


def _refuse_identifiers(
    table: _Table, column: str, levels: np.ndarray, categorical_columns: Sequence[str]
) -> None:
    if len(levels) > 1_000 and column not in categorical_columns:
        raise ValueError(
            f"{table.path}: column {column!r} has {len(levels):,} different values, which looks "
            "like an identifier. Put it in group_columns, leave it out of feature_columns, or list "
            "it in categorical_columns to have it one-hot all the same"
        )


def _classes(table: _Table, column: str, missing: Sequence[str]) -> list[str]:
    absent = np.flatnonzero(np.isin(table.columns[column], [*missing]))
    if len(absent):
        raise ValueError(
            f"{table.path}, line {table.lines[absent[0]]}: no label in column {column!r}"
        )
    classes = np.unique(table.columns[column]).tolist()
    return sorted(classes, key=float) if all(map(_is_number, classes)) else classes


def _codes(table: _Table, column: str, classes: Sequence[str]) -> np.ndarray:
    index = {label: code for code, label in enumerate(classes)}
    codes = np.array([index.get(label, -1) for label in table.columns[column].tolist()])
    if (codes < 0).any():
        row = np.flatnonzero(codes < 0)[0]
        raise ValueError(
            f"{table.path}, line {table.lines[row]}: the label {str(table.columns[column][row])!r} "
            f"does not occur in the training rows, which have {[*classes]}"
        )
    return codes


def _one_hot(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """[M] values to [M, len(levels)] float32; a value that is no level gives a row of zeros."""
    return (values[:, None] == levels[None, :]).astype(np.float32)


def _scaled(values: np.ndarray, train: np.ndarray, scaling: str) -> np.ndarray:
    """[M, D] values by the statistics of the columns of `train`, in float32."""
    if scaling == "none":
        return values.astype(np.float32)
    known = train.astype(np.float64)
    if scaling == "minmax":
        shift, scale = known.min(axis=0), np.ptp(known, axis=0)
    else:
        shift, scale = known.mean(axis=0), known.std(axis=0)
    constant = scale == 0
    return np.where(constant, 0, (values - shift) / np.where(constant, 1, scale)).astype(np.float32)

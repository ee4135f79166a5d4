"""UCI Adult, the census data."""

from pathlib import Path

import numpy as np

from fedjax_sim.data._files import StrPath, existing, reading
from fedjax_sim.data.datasets.dataset import Dataset, from_arrays, read_shipped
from fedjax_sim.data.datasets.tables import scaler
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
        scaled = scaler(numbers["train"], "minmax")
        blocks["train"].append(scaled(numbers["train"]))
        blocks["test"].append(scaled(numbers["test"]))
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
                "truncated or another file: get it again, or read your own with from_table"
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


def _one_hot(codes: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """[M] codes to [M, len(levels)] float32; a code that is no level gives a row of zeros."""
    return (codes[:, None] == levels[None, :]).astype(np.float32)
